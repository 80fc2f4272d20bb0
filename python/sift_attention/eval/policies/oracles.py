"""Choices that know every probability before they choose: what a threshold can at best follow.

Rows are shared by the group and the mean of the values stands in for the others, as in `Sift`, so
that families differ in the choice of the rows only.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import Policy, Read, Rows, ascending, attend, largest, shared


@dataclass(frozen=True)
class TopK(Policy):
    """Each head reads its most probable rows, a fixed share of the attended keys.

    Attributes:
        fraction (float): the share; rounded up to whole rows.
    """

    source = "oracle"
    is_oracle = True

    fraction: float

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        count = (self.fraction * rows.lengths.double()).ceil().long()
        return attend(rows, shared(largest(rows.p, count)), "mean")


@dataclass(frozen=True)
class TopP(Policy):
    """Each head reads the fewest rows that leave out no more than a given probability.

    Attributes:
        dropped (float): the probability that a head may leave out.
    """

    source = "oracle; the rule of Twilight (Lin et al., 2025) with exact probabilities"
    is_oracle = True

    dropped: float

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        ordered = ascending(rows.p)
        num_dropped = (ordered.cumsum(-1) <= self.dropped).sum(-1, keepdim=True)
        cut = ordered.gather(-1, num_dropped.clamp(max=ordered.shape[-1] - 1))
        return attend(rows, shared(rows.p >= cut), "mean")


@dataclass(frozen=True)
class TrueQuantile(Policy):
    """Each head reads what exceeds the quantile of its own probabilities in the same step.

    This is what the paper's power law predicts, without the error of the prediction. The quantile
    is the entry floor(quantile * (S - 1)) of the S probabilities in ascending order, as
    `sift_attention.score_quantile` takes it.

    Attributes:
        quantile (float): in [0, 1).
    """

    source = "oracle; the target of arXiv 2506.05300"
    is_oracle = True

    quantile: float

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        # Keys that are not attended have probability 0 and come first.
        unattended = rows.k.shape[0] - rows.lengths
        index = unattended + (self.quantile * (rows.lengths - 1).double()).floor().long()
        index = index[None, :, None].expand(*rows.p.shape[:2], 1)
        theta = ascending(rows.p).gather(-1, index)
        return attend(rows, shared(rows.p > theta), "mean")


FAMILIES = {
    "oracle top-k": [TopK(fraction) for fraction in (0.12, 0.05, 0.02, 0.01)],
    "oracle top-p": [TopP(dropped) for dropped in (0.25, 0.5, 0.85)],
    "true quantile": [TrueQuantile(quantile) for quantile in (0.88, 0.95, 0.985)],
}
