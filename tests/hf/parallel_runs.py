"""Models split over two processes: which, how, and what is recorded of a run in one or in two."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from unittest import mock

import torch
from configurations import QUANTILE, UNIFORM, ragged
from modes import MODES, NEW, Result, generate, prompt
from packaging.version import Version
from tiny_models import VERSION
from torch import Tensor
from transformers import PreTrainedModel

import sift_attention as sift
from sift_attention.counters import Counters
from sift_attention.state import SiftState

HAS_PIPELINES = Version("5.17") <= VERSION
HAS_TENSOR_PARALLEL = not Version("5.15") <= VERSION < Version("5.17")
BASIC = ("left_padded", "left_padded_static")
# Split, then family, then modes: of modes.py, or of `run` here.
SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "sharded": {"llama": ("own_row", "own_rows"), "gpt_oss": ("own_row",)},
    "replicated": {"llama": ("own_row", "own_loop")},
}
if HAS_TENSOR_PARALLEL:
    SPLITS["tensor"] = {
        "llama": (*BASIC, "fitted", "beams", "multi_turn", "prompt_lookup"),
        "qwen3": BASIC,
        "gemma2": BASIC,
        "gpt_oss": (*BASIC, "fitted"),
        "phi3": BASIC,
    }
if HAS_PIPELINES:  # before, chunks of the prompt bypass the model's hooks
    SPLITS["tensor"]["llama"] += ("chunked_prefill", "chunked_prefill_static")
    SPLITS["experts"] = {"gpt_oss": BASIC}
    SPLITS["pipeline"] = {
        "llama": (*SPLITS["tensor"]["llama"], "own_loop"),
        "qwen3": BASIC,
        "gemma2": (*BASIC, "chunked_prefill"),
        "gpt_oss": (*BASIC, "fitted", "multi_turn"),
    }
CASES = [
    (split, family, mode)
    for split, families in SPLITS.items()
    for family, modes in families.items()
    for mode in modes
]


def run(model: Any, mode: str, rank: int) -> Result:
    """Decode in a mode; in some, every rank has prompts and lengths of its own."""
    if mode == "fitted":
        return generate(model, ragged()[0])
    if mode in ("own_row", "own_rows"):
        num_rows = 1 if mode == "own_row" else 2
        tokens = prompt(4)[num_rows * rank : num_rows * (rank + 1)]
        # Rank 1 ends first; where ranks hold parts of each other's weights, it has to go on.
        synced = torch.distributed.is_initialized()
        return generate(model, tokens, max_new_tokens=NEW - 2 * rank, synced_gpus=synced)
    return MODES[mode](model)


def record(model: PreTrainedModel, mode: str, rank: int) -> dict[str, Any]:
    """What a run gave: tokens, logits, and by layer its totals and, where it sifted, what it did.

    Returns:
        dict: "tokens", "logits", "totals" (by layer), "rows" (by layer [steps, B, HK], value rows
            loaded) and "laws" (by layer [2, B, HQ], log_alpha and beta in the end).
    """
    rows: dict[Counters, list[Tensor]] = {}
    laws: dict[Counters, Tensor] = {}

    def decode(self: SiftState, *args: Any, **kwargs: Any) -> Tensor:
        out = original(self, *args, **kwargs)
        assert self.counters.newest is not None
        rows.setdefault(self.counters, []).append(self.counters.newest[0])
        laws[self.counters] = torch.stack([self.log_alpha, self.beta])
        return out

    original = SiftState.decode
    config = QUANTILE if mode == "fitted" else UNIFORM
    with mock.patch.object(SiftState, "decode", decode), sift.hf.enabled(model, config) as handle:
        handle.reset_stats()
        tokens, logits = run(model, mode, rank)
        totals = {layer: asdict(total) for layer, total in handle.stats().layers.items()}
        counters = handle._totals._counters.items()
    sifted = {layer: one for (layer, _), one in counters if one in rows}
    return {
        "tokens": tokens,
        "logits": logits,
        "totals": totals,
        "rows": {layer: torch.stack(rows[one]) for layer, one in sifted.items()},
        "laws": {layer: laws[one] for layer, one in sifted.items()},
    }
