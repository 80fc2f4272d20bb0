"""Configurations that sift, and prompts long enough for them."""

from __future__ import annotations

import pytest
import torch
from modes import prompt
from tiny_models import VERSION

import sift_attention as sift

LONG = 140  # enough for a fit
CHUNKED = {"prefill_chunk_size": 32}
# transformers 4.57 reads chunks past the model's hooks: no calibration.
BYPASSES_CHUNKS = VERSION.major < 5
EXACT = sift.SiftConfig(c=0)
UNIFORM = sift.SiftConfig(c=1.0, min_keys=0)
QUANTILE = sift.SiftConfig(threshold="quantile", quantile=0.5, min_keys=0)
CONFIGS = pytest.mark.parametrize(
    "config",
    [
        UNIFORM,
        sift.SiftConfig(c=1.0, min_keys=0, residual="renormalize"),
        QUANTILE,
        sift.SiftConfig(threshold="quantile", quantile=0.5, slope="fit", min_keys=0),
        sift.SiftConfig(threshold="quantile", quantile=0.5, min_keys=0, warmup_steps=3),
    ],
    ids=["uniform", "renormalize", "quantile", "slope", "warmup"],
)


def ragged() -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """A left-padded batch of three, and its rows alone."""
    tokens = prompt(3, LONG)
    mask = torch.ones_like(tokens)
    for row, padding in enumerate((5, 0, 1)):
        mask[row, :padding] = 0
    rows = [tokens[b, mask[b] == 1][None] for b in range(3)]
    return {"input_ids": tokens.masked_fill(mask == 0, 0), "attention_mask": mask}, rows
