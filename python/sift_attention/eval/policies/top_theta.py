"""Top-theta: static thresholds, calibrated per head to keep a given number of rows on average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .base import Policy, Read, Rows, ascending, attend

_BUCKET = 64  # row lengths that share a threshold
_STRIDE = 4  # of the calibration rows, whose neighbours hardly differ
_SIGMAS = 0.1  # standard deviations between the mean of the calibration rows and the threshold


@dataclass(frozen=True)
class TopTheta(Policy):
    """Reads the rows whose probability exceeds a threshold learnt offline, per head and row length.

    A threshold is the probability below the k largest, averaged over calibration rows, plus a tenth
    of their standard deviation (`--calib_add_sigma 0.1` in the authors' code). The missing mass
    goes to the mean value row (V-mean compensation, `--vmc`). Every head uses its own rows.

    Of the paper's two placements this is the one after the softmax (`--placement post-softmax`).
    It needs no compensation of the denominator, which is at hand where all keys are read, and errs
    far less than thresholds on the scores do. The paper keeps a constant number of rows, 64 to 128
    and 512 in the first two layers; here k is a share of the row, one for all layers, so that
    lengths compare. Calibration is on exact attention (without `--calib_tac`), on every fourth row.

    Attributes:
        fraction (float): share of the keys that a head keeps of calibration rows.
        thresholds: for every (layer, head) the probabilities [G, buckets of lengths], NaN where
            calibration saw no row.
    """

    source = "Berestizshevsky et al., 2025, arXiv 2502.08363; code huawei-csl/top-theta-attention"

    fraction: float
    thresholds: Mapping[tuple[int, int], Tensor] = field(
        default_factory=dict, repr=False, compare=False
    )

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        thresholds = self.thresholds.get((rows.layer, rows.head))
        if thresholds is None:
            raise ValueError(
                "TopTheta: thresholds must be calibrated before use, got none for layer "
                f"{rows.layer}, head {rows.head}"
            )
        seen = thresholds.isfinite().all(0).nonzero()[:, 0]
        nearest = (rows.lengths[:, None] // _BUCKET - seen).abs().argmin(-1)
        return attend(rows, rows.p > thresholds[:, seen[nearest], None], "mean")

    def calibrate(self, observed: Mapping[tuple[int, int], Sequence[Rows]]) -> TopTheta:
        """See Policy."""
        thresholds = {head: self._thresholds(sample) for head, sample in observed.items()}
        return replace(self, thresholds=thresholds)

    def _thresholds(self, sample: Sequence[Rows]) -> Tensor:
        """Thresholds [G, buckets] of one key/value head."""
        dropped = torch.cat([self._largest_dropped(rows) for rows in sample], dim=-1)
        bucket = torch.cat([rows.lengths[::_STRIDE] for rows in sample]) // _BUCKET
        members = [dropped[:, bucket == i] for i in range(int(bucket.max()) + 1)]
        mean = torch.stack([p.mean(-1) for p in members], dim=-1)
        variance = torch.stack([p.square().mean(-1) for p in members], dim=-1) - mean.square()
        return mean + _SIGMAS * variance.clamp(min=0.0).sqrt()

    def _largest_dropped(self, rows: Rows) -> Tensor:
        """The largest probability that top-k drops, of every head and fourth step: [G, R / 4]."""
        tokens = rows.tokens[::_STRIDE]
        count = (self.fraction * (tokens + 1)).round().long().clamp(min=1)
        ordered = ascending(rows.probabilities(tokens))  # keys that are not attended come first
        place = (rows.k.shape[0] - 1 - count).clamp(min=0).expand(*ordered.shape[:2])
        return ordered.gather(-1, place[..., None])[..., 0]


FAMILIES = {"Top-theta": [TopTheta(fraction) for fraction in (0.12, 0.06, 0.03, 0.01)]}
