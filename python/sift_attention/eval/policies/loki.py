"""Loki: keys ranked in the leading principal components of the keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .base import Policy, Read, Rows, largest
from .selected import attend_selected, share, sketch_dims


@dataclass(frozen=True)
class Loki(Policy):
    """Reads the keys whose scores over d principal components are largest.

    The components are those of the covariance of calibration keys, per key/value head; queries
    and keys are projected without centring. Here the keys are rotated, the paper's
    "post-rotary" variant. Every query head makes its own choice, as in the published code
    (`methods/pca_topk`); the group reads the union. No key is read for being new.

    Bytes: d / D row per attended key, then the chosen rows. The projection itself is small.

    Settings: the paper recommends d = D / 4 and k a quarter or an eighth of the context, and
    tries d = 16, 32 and 64 of 128. Here d is at least 16: for D = 32 that measures far better
    than d = 8 on text, at equal V rows and at equal K + V rows.

    Attributes:
        fraction: share of the attended keys that a query head reads.
        dim_fraction: d / D.
        least_dims: smallest d.
    """

    source = "Singhania et al., 2024, arXiv 2406.02542; code hpcgroup/loki"

    fraction: float
    dim_fraction: float = 0.25
    least_dims: int = 16
    components: Mapping[tuple[int, int], Tensor] = field(
        default_factory=dict, repr=False, compare=False
    )

    def calibrate(self, observed: Mapping[tuple[int, int], Sequence[Rows]]) -> Loki:
        """The policy with the components [D, d] of every (layer, key/value head)."""
        return replace(
            self,
            components={
                place: self._components(torch.cat([rows.k for rows in several]))
                for place, several in observed.items()
            },
        )

    def read(self, rows: Rows) -> Read:
        """See Policy; the policy must be calibrated."""
        place = rows.layer, rows.head
        if place not in self.components:
            raise ValueError(
                f"Loki.read: policy must be calibrated for layer {rows.layer}, head {rows.head}"
            )
        components = self.components[place]
        q, k = rows.q[:, rows.start :] @ components, rows.k @ components
        estimate = rows.scores_of(q, k, rows.tokens)
        used = largest(estimate, share(rows.lengths, self.fraction))
        return attend_selected(
            rows, used, summaries=components.shape[1] / rows.k.shape[1] * rows.lengths
        )

    def _components(self, k: Tensor) -> Tensor:
        """Leading principal components of keys [M, D], one a column."""
        num_dims = sketch_dims(k.shape[1], self.dim_fraction, self.least_dims)
        vectors: Tensor = torch.linalg.eigh(torch.cov(k.double().T)).eigenvectors
        return vectors[:, -num_dims:].to(k.dtype)  # of largest variance


FAMILIES = {"Loki": [Loki(fraction) for fraction in (0.2, 0.1, 0.04, 0.015)]}
