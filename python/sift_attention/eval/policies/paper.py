"""The paper's procedure: a power law over generation steps, fitted to a dense warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .base import Policy, Read, Rows, any_of


@dataclass(frozen=True)
class Paper(Policy):
    """Reads everything in the first steps, then what exceeds the law that their quantiles follow.

    For each head, log(quantile) of the warm-up is fitted by least squares against log(x). Later
    steps drop the rows with p < a x^b, keep the true denominator and add nothing; each head uses
    its own rows, and a step may drop them all. The authors' code gives the 1e-8 and 1e-9 that keep
    logarithm and threshold above 0, linear interpolation of the quantiles, a warm-up of 16 steps
    (its example; 64 is the default) and quantile 0.5. Unlike it, probabilities are not rounded to
    half precision.

    Warm-up steps count as reads of every row.

    Attributes:
        quantile (float): which quantile of the probabilities the law follows.
        warmup_steps (int): exact steps, at least 2; with fewer decode steps all are exact.
        over: what x is: the generation "step" from 1, as in the paper, or the "length", the number
            of attended keys, prompt included.
    """

    source = "Koley et al., arXiv 2506.05300; axonn-ai/yalis, branch thresh_attn"

    quantile: float
    warmup_steps: int = 16
    over: Literal["step", "length"] = "step"

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        x = (rows.lengths - rows.start if self.over == "step" else rows.lengths).double()
        warmup = slice(0, self.warmup_steps)
        seen = rows.p[:, warmup].masked_fill(~rows.attended[warmup], torch.nan)
        log_a, b = fit_log_log(x[warmup], seen.nanquantile(self.quantile, -1) + 1e-8)
        theta = (log_a[:, None] + b[:, None] * x.log()).exp() + 1e-9
        theta[:, warmup] = 0.0
        return read_above(rows, rows.p >= theta[..., None])


def read_above(rows: Rows, used: Tensor) -> Read:
    """Attend with the true denominator and nothing added; unlike `attend`, a head may get no row.

    Args:
        rows: the decode steps.
        used (Tensor[G, R, N], bool): the rows that each head uses.
    """
    used = used & rows.attended
    weights = rows.p * used.float()
    return Read(
        weights,
        v_rows=any_of(used, 0).sum(-1, dtype=torch.float32),
        k_rows=rows.lengths.float(),
        kept_mass=weights.sum(-1),
    )


def fit_log_log(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares of log y = log_a + b log x.

    Args:
        x (Tensor[W], float64): positive, not all equal; lengths that hardly differ need the digits.
        y (Tensor[G, W]): positive.

    Returns:
        tuple: log_a and b, both [G].
    """
    dx = x.log() - x.log().mean()
    log_y = y.to(x.dtype).log()
    b = (dx * log_y).sum(-1) / (dx * dx).sum()
    return log_y.mean(-1) - b * x.log().mean(), b


FAMILIES = {
    "paper": [Paper(quantile) for quantile in (0.5, 0.95, 0.998)],
    "paper, 64 steps": [Paper(quantile, warmup_steps=64) for quantile in (0.95, 0.998)],
    "paper over lengths": [Paper(quantile, over="length") for quantile in (0.5, 0.98)],
}
