"""Drift: whether sifting gets worse over thousands of decode steps, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..config import SiftConfig
from ..hf.enable import enabled
from .measure import Comparison, compare, summary
from .simulate import check_tokens, keep_logits
from .stepwise import SiftedSteps
from .tokens import Sample, stacked

_PIECE = 256  # steps whose logits are held


@torch.inference_mode()
def drift(
    model: Any,
    samples: Sequence[Sample],
    num_steps: int,
    config: SiftConfig | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Decode many known tokens through the operator and compare with the exact model, in pieces.

    The exact model reads each piece in one dense forward, with a cache of its own, before the
    operator decodes it token by token. Only one piece's logits exist at a time.

    Args:
        model: Hugging Face causal language model; evaluated as it stands, so put it in eval mode.
        samples: B, of N tokens each.
        num_steps (int): R, 2 <= R < N.
        config: defaults to SiftConfig().
        progress: show a progress bar over the steps.

    Returns:
        dict: as `measure.measure` returns it; by_step tells the drift.
    """
    (tokens,) = stacked(samples, "tokens")
    check_tokens("drift", tokens, num_steps)
    length = tokens.shape[1]
    start = length - num_steps
    parts = []
    with enabled(model, config) as handle:
        steps = SiftedSteps(handle, tokens[:, :start])
        exact = _Exact(model, tokens[:, :start])
        with tqdm(total=num_steps, desc="drift", unit="step", disable=not progress) as bar:
            for first in range(start, length, _PIECE):
                logits = []
                for position in range(first, min(first + _PIECE, length)):
                    logits.append(steps.take(tokens[:, position]))
                    bar.update()
                known = tokens[:, first : first + _PIECE]
                targets = tokens[:, first + 1 : first + _PIECE + 1].to(model.device)
                num_scored = targets.shape[1]  # nothing follows the last token
                if num_scored:
                    sifted = torch.stack(logits[:num_scored], 1)
                    parts.append(compare(exact.read(known)[:, :num_scored], sifted, targets))
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    found = Comparison(*(torch.cat(column, 1) for column in columns))
    return summary(samples, found, *steps.reads())


class _Exact:
    """Dense reading of known tokens piece by piece, with a cache.

    Args:
        model: as for `drift`; one that sifts reads several tokens at once densely too.
        prompt (Tensor[B, P], int64): the first tokens.
    """

    def __init__(self, model: Any, prompt: Tensor) -> None:
        self._model = model
        self._cache: Any = None
        self._cache = self._forward(prompt, **keep_logits(model, 1)).past_key_values

    def read(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of the next tokens [B, T], at least two of them."""
        logits: Tensor = self._forward(tokens).logits
        return logits

    def _forward(self, tokens: Tensor, **kwargs: Any) -> Any:
        tokens = tokens.to(self._model.device)
        return self._model(input_ids=tokens, past_key_values=self._cache, use_cache=True, **kwargs)
