"""Log-likelihoods of known tokens, decoded one at a time, so that attention sifts as it decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .simulate import keep_logits


@dataclass(frozen=True)
class Likelihood:
    """What a model predicted along one row of T tokens, from token `first` on.

    Attributes:
        log_probs (Tensor[T - 1 - first], float32): natural log-probability of every next token.
        is_top (Tensor[T - 1 - first], bool): whether it was the most likely one.
        last (Tensor[V], float32): natural log-probabilities after the last token.
    """

    log_probs: Tensor
    is_top: Tensor
    last: Tensor

    def of(self, continuation: Sequence[int]) -> tuple[float, bool]:
        """Log-likelihood of tokens of which all but the last end the row; are they the greedy ones?

        Args:
            continuation: 1 to T - first tokens.

        Returns:
            tuple: natural log-likelihood, and whether greedy decoding gives them.
        """
        start = len(self.log_probs) - (len(continuation) - 1)
        token = continuation[-1]
        total = self.log_probs[start:].double().sum() + self.last[token]
        return float(total), bool(self.is_top[start:].all() and self.last.argmax() == token)


@torch.inference_mode()
def step_through(
    model: Any, rows: Sequence[Sequence[int]], prefill: int, first: int
) -> list[Likelihood]:
    """Feed rows of known tokens: the first ones in one dense forward, all others one at a time.

    A row that is shorter than others leaves the batch when it ends, so the counters of a model that
    sifts count no padding.

    Args:
        model: Hugging Face causal language model, in eval mode; `hf.enable` makes its steps sift.
        rows: B rows of token ids; row b has T_b tokens.
        prefill (int): tokens read densely, at least 1.
        first (int): the token whose prediction is the first to report, below all T_b.

    Returns:
        list[Likelihood]: one for each row, in order.

    Raises:
        ValueError: `first` is not below the length of every row.
    """
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    lengths = [len(rows[row]) for row in order]
    if first >= lengths[-1]:
        raise ValueError(
            f"step_through: first must be below the shortest row's {lengths[-1]}, got {first}"
        )
    tokens = torch.zeros(len(rows), lengths[0] + 1, dtype=torch.int64)  # 0 after the ends
    for place, row in enumerate(order):
        tokens[place, : lengths[place]] = torch.tensor(rows[row])
    tokens = tokens.to(model.device)
    scores = _Scores(tokens, lengths, first)

    prefill = min(prefill, lengths[0])
    keep = keep_logits(model, max(prefill - first, 1))
    output = model(input_ids=tokens[:, :prefill], use_cache=True, **keep)
    cache = output.past_key_values
    scores.add(output.logits, end=prefill)
    num_active = len(rows)
    for step in range(prefill, lengths[0]):
        num_longer = sum(length > step for length in lengths)
        if num_longer < num_active:
            num_active = num_longer
            cache.batch_select_indices(torch.arange(num_active, device=tokens.device))
        token = tokens[:num_active, step, None]
        logits = model(input_ids=token, past_key_values=cache, use_cache=True).logits
        scores.add(logits, end=step + 1)
    by_row = dict(zip(order, scores.likelihoods(), strict=True))
    return [by_row[row] for row in range(len(rows))]


class _Scores:
    """Gathers predictions; rows are ordered from the longest to the shortest."""

    def __init__(self, tokens: Tensor, lengths: Sequence[int], first: int) -> None:
        self._tokens = tokens
        self._lengths = lengths
        self._first = first
        self._log_probs = torch.zeros(tokens.shape, device=tokens.device)
        self._is_top = torch.zeros_like(tokens, dtype=torch.bool)
        self._last: dict[int, Tensor] = {}

    def add(self, logits: Tensor, end: int) -> None:
        """Take logits [b, R, V] after the tokens end - R ... end - 1 of the first b rows."""
        start = max(end - logits.shape[1], self._first)
        if start >= end:
            return
        log_p = logits[:, start - end :].float().log_softmax(-1)
        known = self._tokens[: len(log_p), start + 1 : end + 1]
        here = (slice(len(log_p)), slice(start, end))
        self._log_probs[here] = log_p.gather(-1, known[..., None])[..., 0]
        self._is_top[here] = log_p.argmax(-1) == known
        for row in range(len(log_p)):
            position = self._lengths[row] - 1
            if start <= position < end:
                self._last[row] = log_p[row, position - start].clone()

    def likelihoods(self) -> list[Likelihood]:
        return [
            Likelihood(
                self._log_probs[row, self._first : length - 1].cpu(),
                self._is_top[row, self._first : length - 1].cpu(),
                self._last[row].cpu(),
            )
            for row, length in enumerate(self._lengths)
        ]
