"""Exact parallel simulation of a decode policy: one forward pass in place of many steps.

Attention is causal, so the hidden state of a token depends on earlier tokens alone. When every row
of the decode steps attends in every layer as its policy decides, errors travel through layers and
keys exactly as they do step by step. What comes before the steps depends on no policy: it is read
once for all of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..config import SiftConfig
from ..hf.cache import adopt
from ..hf.enable import check_attention, switch_attention
from ..hf.stats import Totals
from .decoded import Decoded
from .policies.base import Policy, Read, Rows
from .policies.exact import Exact
from .simulated_attention import NAME, Attend, Decoding, Reading


class Simulation:
    """Known sequences after one dense forward of their prompt, for any number of policies.

    Args:
        model: Hugging Face decoder; evaluated as it stands, so put it in eval mode.
        tokens (Tensor[B, N], int64): known tokens without padding.
        num_steps (int): R, 1 <= R < N; the tokens before the last R are the prompt.

    Raises:
        ValueError: the model's attention cannot be replaced, or tokens or num_steps do not fit.
    """

    @torch.inference_mode()
    def __init__(self, model: Any, tokens: Tensor, num_steps: int) -> None:
        check_tokens("simulate", tokens, num_steps)
        check_attention(model, "simulate")
        if model.config.is_encoder_decoder:
            raise ValueError(f"simulate: model must be a decoder, got {type(model).__name__}")
        self._model = model
        self._length, self._num_steps = tokens.shape[1], num_steps
        prompt, self._known = tokens.to(model.device).split(
            [self._length - num_steps, num_steps], dim=1
        )
        self._reading = Reading(
            num_steps, adopt(DynamicCache(config=model.config), SiftConfig(), Totals())
        )
        self._cache = self._forward(prompt, self._reading, **keep_logits(model, 1)).past_key_values

    @torch.inference_mode()
    def decode(self, policy: Policy) -> Decoded:
        """Decode the steps by a policy. Layers with sliding windows stay exact.

        Args:
            policy: decides for each key/value head which rows the steps read.
        """
        decoding = Decoding(self._reading, policy)
        cache = copy.deepcopy(self._cache)
        logits = self._forward(self._known, decoding, past_key_values=cache).logits
        num_keys = range(self._length - self._num_steps + 1, self._length + 1)
        return Decoded(logits, num_keys, decoding.layers)

    def _forward(self, tokens: Tensor, attend: Attend, **kwargs: Any) -> Any:
        previous = switch_attention(self._model, NAME, "simulate")
        try:
            return self._model(input_ids=tokens, use_cache=True, sift_simulation=attend, **kwargs)
        finally:
            switch_attention(self._model, previous, "simulate")


def simulate(model: Any, tokens: Tensor, num_steps: int, policy: Policy) -> Decoded:
    """Decode the last tokens of known sequences by a policy, in one forward pass.

    Args:
        model: see Simulation, as for the others, which keeps the prompt for further policies.
        tokens (Tensor[B, N], int64): likewise.
        num_steps (int): likewise.
        policy: decides for each key/value head which rows the steps read.

    Returns:
        Decoded: of the R steps.

    Raises:
        ValueError: see Simulation.

    Example:
        >>> exact = exact_logits(model, tokens, 512)  # doctest: +SKIP
        >>> decoded = simulate(model, tokens, 512, Sift(c=2.0))  # doctest: +SKIP
        >>> measure(samples, exact, decoded)["kl"]  # doctest: +SKIP
    """
    return Simulation(model, tokens, num_steps).decode(policy)


def observe(model: Any, tokens: Tensor, num_steps: int) -> dict[tuple[int, int], list[Rows]]:
    """The decode steps of exact attention, for calibration and for looking at probabilities.

    Args:
        model: as for `simulate`.
        tokens (Tensor[B, N], int64): likewise.
        num_steps (int): likewise.

    Returns:
        dict: for every (layer, key/value head) the rows of the B sequences. Together they hold the
        queries, keys and values of every token.
    """
    observer = _Observer()
    simulate(model, tokens, num_steps, observer)
    return observer.observed


@torch.inference_mode()
def exact_logits(model: Any, tokens: Tensor, num_steps: int) -> Tensor:
    """Logits [B, R, V] of the last R tokens under the model's own attention."""
    check_tokens("exact_logits", tokens, num_steps)
    tokens, kept = tokens.to(model.device), keep_logits(model, num_steps)
    logits: Tensor = model(input_ids=tokens, use_cache=False, **kept).logits
    return logits[:, -num_steps:]


def keep_logits(model: Any, num_rows: int) -> dict[str, int]:
    """Argument of a forward that computes no logits but the last ones, where it knows one."""
    return {"logits_to_keep": num_rows} if model._supports_logits_to_keep() else {}


def check_tokens(caller: str, tokens: Tensor, num_steps: int) -> None:
    """Refuse, in the name of `caller`, tokens that are no sequences or too short."""
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise ValueError(
            f"{caller}: tokens must be int64 with 2 dimensions, "
            f"got {tokens.dtype} of shape {tuple(tokens.shape)}"
        )
    if not 1 <= num_steps < tokens.shape[1]:
        raise ValueError(
            f"{caller}: num_steps must be between 1 and {tokens.shape[1] - 1}, got {num_steps}"
        )


@dataclass(frozen=True)
class _Observer(Exact):
    """Exact attention that keeps the rows it saw, without the probabilities they cached."""

    observed: dict[tuple[int, int], list[Rows]] = field(default_factory=dict)

    def read(self, rows: Rows) -> Read:
        self.observed.setdefault((rows.layer, rows.head), []).append(replace(rows))
        return super().read(rows)
