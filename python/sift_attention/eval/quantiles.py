"""How well the power law of a prompt predicts the quantiles of the decode steps after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..calibration import sample_grid
from ..config import SiftConfig
from .policies.base import Rows

_NUM_STEPS = 8  # compared of every head, spaced logarithmically


def predicted_quantiles(
    observed: Mapping[tuple[int, int], Sequence[Rows]], config: SiftConfig | None = None
) -> list[dict[str, Any]]:
    """Quantiles of exact probabilities at decode steps, predicted and true.

    The law is the one of SiftConfig(threshold="quantile"): fitted to the prompt at the lengths of
    `calibration.sample_grid`.

    Args:
        observed: rows of exact attention by (layer, key/value head), see `simulate.observe`.
        config: quantile, slope and prompt_rows; defaults to SiftConfig().

    Returns:
        list[dict]: "layer", "head" (query head of the layer), "length" (attended keys),
        "predicted" and "true" quantile, and "beta", the slope of the law, of every head that has a
        fit.
    """
    config = SiftConfig() if config is None else config
    return [
        found
        for (_, head), sequences in observed.items()
        for rows in sequences
        for found in _compare(rows, head * rows.q.shape[0], config)
    ]


def _compare(rows: Rows, first_head: int, config: SiftConfig) -> list[dict[str, Any]]:
    """The heads of a group, whose first query head of the layer is given."""
    prompt = [length for length in sample_grid(config.prompt_rows) if length <= rows.start]
    ends = torch.tensor([rows.start + 1, rows.k.shape[0]], dtype=torch.float64)
    spaced = torch.linspace(*ends.log().tolist(), _NUM_STEPS, dtype=torch.float64)
    steps = spaced.exp().round().long().unique().tolist()
    lengths = torch.tensor([prompt], dtype=torch.int32, device=rows.k.device)
    slope = None if config.slope == "fit" else float(config.slope)
    law, ok = ops.fit_power_law(lengths, _quantiles(rows, prompt, config.quantile), slope)
    true = _quantiles(rows, steps, config.quantile)[0]
    log_alpha, beta = (part.double().cpu()[0] for part in (law.log_alpha, law.beta))
    return [
        {
            "layer": rows.layer,
            "head": first_head + g,
            "length": length,
            "predicted": float(torch.exp(log_alpha[g]) * length ** -beta[g]),
            "true": float(true[g, i]),
            "beta": float(beta[g]),
        }
        for g in range(rows.q.shape[0])
        if ok[0, g]
        for i, length in enumerate(steps)
    ]


def _quantiles(rows: Rows, lengths: Sequence[int], quantile: float) -> Tensor:
    """Quantiles [1, G, M] of the rows that attend so many keys."""
    at = torch.tensor([lengths], dtype=torch.int32, device=rows.k.device)
    return ops.score_quantile(
        rows.q[None, :, at[0] - 1].contiguous(),
        rows.k[None, None].contiguous(),
        at,
        quantile,
        scale=rows.scale,
        softcap=rows.softcap,
        sinks=rows.sinks,
    )
