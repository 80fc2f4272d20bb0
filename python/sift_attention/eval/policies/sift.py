"""This project's own rule: rows whose probability exceeds c times uniform attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sift_attention.config import SiftConfig

from .base import Policy, Read, Residual, Rows, any_of, attend


@dataclass(frozen=True)
class Sift(Policy):
    """Reads the rows with p > c / S, S the number of attended keys.

    Attributes:
        c (float): multiple of uniform attention.
        residual: what stands in for the other rows, see `attend`.
        group: the rows of the heads that share keys. "any": what one head wants, all use, as the
            operator does; "own": it is read, but only heads that want it use it; "mean": what the
            mean of the heads' probabilities wants, all use.
    """

    source = "this project: decode with PowerLaw.uniform(c)"

    c: float
    residual: Residual = "mean"
    group: Literal["any", "own", "mean"] = "any"

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        theta = self.c / rows.lengths
        if self.group == "own":
            return attend(rows, rows.p > theta[:, None], self.residual)
        wanted = rows.p.mean(0, keepdim=True) if self.group == "mean" else rows.p
        return attend(rows, loaded(rows, wanted, theta), self.residual)

    def sift_config(self) -> SiftConfig | None:
        """See Policy."""
        if self.group != "any" or self.residual == "mean of dropped":
            return None
        return SiftConfig(c=self.c, residual=self.residual)


def loaded(rows: Rows, wanted: Tensor, theta: Tensor) -> Tensor:
    """The rows that the heads of a group load together, as the operator chooses them.

    Args:
        rows: the decode steps.
        wanted (Tensor[H, R, N], float32): probabilities of each head, or of the group (H = 1).
        theta (Tensor, broadcastable to [H, R]): thresholds; 0 loads every attended key.

    Returns:
        Tensor[1, R, N]: bool; where nothing passes, the key with the largest value.
    """
    theta = theta.masked_fill(theta == 0.0, -1.0)
    passed = any_of(wanted > theta[..., None], 0)[None] & rows.attended
    empty = ~any_of(passed, -1)[..., None]
    if empty.any():
        best = wanted.amax(0, keepdim=True).argmax(-1, keepdim=True)
        passed = passed | (empty & torch.zeros_like(passed).scatter_(-1, best, True))
    return passed


MULTIPLES = (1.0, 2.0, 3.0, 6.5)

FAMILIES = {
    "sift": [Sift(c) for c in sorted((*MULTIPLES, 1.5))],
    "sift, mean of dropped": [Sift(c, "mean of dropped") for c in MULTIPLES],
    "sift, renormalized": [Sift(c, "renormalize") for c in MULTIPLES],
    "sift, nothing added": [Sift(c, "none") for c in (1.0, 2.5, 6.5)],
    "sift, rows per head": [Sift(c, group="own") for c in MULTIPLES],
    "sift, mean of heads": [Sift(c, group="mean") for c in (0.45, 0.8, 1.2, 2.2)],
}
