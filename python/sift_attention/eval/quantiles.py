"""How well the power law of a prompt predicts the quantiles of the decode steps after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..config import SiftConfig
from .policies.base import Rows
from .policies.prompt_fitted import prompt_law, quantiles

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
    first, last = math.log(rows.start + 1), math.log(rows.k.shape[0])
    spaced = torch.linspace(first, last, _NUM_STEPS, dtype=torch.float64)
    steps = spaced.exp().round().long().unique().tolist()
    law, ok = prompt_law(rows, config)
    true = quantiles(rows, steps, config.quantile)[0]
    log_alpha, beta = (
        torch.as_tensor(part)[0].double().cpu() for part in (law.log_alpha, law.beta)
    )
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
