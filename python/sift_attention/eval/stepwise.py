"""Decoding step by step through the operator, with everything that the steps read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..config import SiftConfig
from ..hf.enable import Handle, enabled
from .decoded import Decoded, Reads
from .simulate import check_tokens, keep_logits

# What keeps layers exact by their nature or by configuration; they have no part in what was read.
_EXACT_BY_NATURE = {"sliding window", "skipped layer"}


class Steps:
    """Decode steps of B sequences after a prompt, with a cache of their own.

    Args:
        model: Hugging Face causal language model, in eval mode.
        prompt (Tensor[B, P], int64): read densely in one forward pass.
    """

    def __init__(self, model: Any, prompt: Tensor) -> None:
        self._model = model
        self._cache: Any = model(
            input_ids=prompt.to(model.device), use_cache=True, **keep_logits(model, 1)
        ).past_key_values
        self._num_keys = prompt.shape[1]

    def take(self, tokens: Tensor) -> Tensor:
        """One step: the logits [B, V] after the tokens [B]."""
        self._num_keys += 1
        logits: Tensor = self._model(
            input_ids=tokens[:, None].to(self._model.device),
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        return logits[:, -1]


class SiftedSteps(Steps):
    """Steps through the operator that remember what they read.

    Args:
        handle: of the model, which stays enabled while steps are taken.
        prompt (Tensor[B, P], int64): as for Steps.
    """

    def __init__(self, handle: Handle, prompt: Tensor) -> None:
        super().__init__(handle.model, prompt)
        self._handle = handle
        self._start = self._num_keys
        self._v_rows: dict[int, list[Tensor]] = {}
        self._dropped: dict[int, list[Tensor]] = {}

    def take(self, tokens: Tensor) -> Tensor:
        """See Steps.

        Raises:
            ValueError: a layer that should sift did not.
        """
        self._handle.reset_stats()
        logits = super().take(tokens)
        if self._num_keys == self._start + 1:
            self._check()
        for layer_idx, state in self._cache.sift_state.layers.items():
            if state.counters.newest is not None:
                num_loaded, covered = state.counters.newest
                self._v_rows.setdefault(layer_idx, []).append(num_loaded)
                self._dropped.setdefault(layer_idx, []).append(covered)
        return logits

    def reads(self) -> tuple[range, dict[int, Reads]]:
        """Attended keys of the steps so far, and what every layer read."""
        num_keys = range(self._start + 1, self._num_keys + 1)
        attended = torch.tensor(num_keys, dtype=torch.float32)[:, None]
        layers = {}
        for layer_idx, num_loaded in self._v_rows.items():
            v_rows = torch.stack(num_loaded, 1).float().cpu()
            covered = torch.stack(self._dropped[layer_idx], 1).cpu()
            layers[layer_idx] = Reads(
                v_rows=v_rows,
                k_rows=attended.expand_as(v_rows),
                dropped_mass=(1.0 - covered).clamp(min=0.0),
            )
        return num_keys, dict(sorted(layers.items()))

    def _check(self) -> None:
        for layer_idx, layer in self._handle.stats().layers.items():
            for reason in layer.dense_calls.keys() - _EXACT_BY_NATURE:
                raise ValueError(
                    "stepwise: every layer of model must be one that the operator decodes, got "
                    f"layer {layer_idx} of {type(self._model).__name__}: {reason}"
                )


@torch.inference_mode()
def stepwise(
    model: Any,
    tokens: Tensor,
    num_steps: int,
    config: SiftConfig | None = None,
    progress: bool = False,
) -> Decoded:
    """Decode the last tokens of known sequences one at a time through the operator.

    The tokens before them are a dense prompt, which also calibrates.

    Args:
        model: Hugging Face causal language model; evaluated as it stands, so put it in eval mode.
        tokens (Tensor[B, N], int64): known tokens without padding.
        num_steps (int): R, 1 <= R < N.
        config: defaults to SiftConfig().
        progress: show a progress bar over the steps.

    Returns:
        Decoded: of the R steps; layers that `config` skips are not among its layers.

    Raises:
        ValueError: the model cannot sift, or tokens or num_steps do not fit.
    """
    check_tokens("stepwise", tokens, num_steps)
    start = tokens.shape[1] - num_steps
    logits = []
    with enabled(model, config) as handle:
        steps = SiftedSteps(handle, tokens[:, :start])
        for step in tqdm(range(num_steps), desc="stepwise", unit="step", disable=not progress):
            logits.append(steps.take(tokens[:, start + step]))
    num_keys, layers = steps.reads()
    return Decoded(torch.stack(logits, 1), num_keys, layers)
