"""Sift with another residual: what a dropped value row holds is guessed from its key."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Policy, Read, Rows
from .sift import MULTIPLES, loaded


@dataclass(frozen=True)
class ValuesFromKeys(Policy):
    """Reads the rows of `Sift` and replaces the others by a linear function of their keys.

    Every key row is read anyway, so that the sum of the dropped keys, weighted by their exact
    probabilities, costs no traffic. With a regression of the prompt's values on its keys,

        v_j ~ v_mean + (k_j - k_mean) W,

    the dropped rows of a head, delta of the probability together, contribute

        sum of p_j v_j  ~  delta * v_mean + (sum of p_j k_j - delta * k_mean) W.

    The means are those of all attended rows, as in `Sift`. W, fitted once to the prompt, has a low
    rank; its two factors are read in every step and count as 2 * rank value rows.

    Attributes:
        c (float): multiple of uniform attention, see `Sift`.
        rank (int): of W, at most D.
        ridge (float): penalty of the regression, in units of the keys' mean variance. A small one
            follows the many keys that no head looks at.
    """

    source = "this project"

    c: float
    rank: int = 4
    ridge: float = 0.5

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        used = loaded(rows, rows.p, self.c / rows.lengths)
        weights = rows.p * used.float()
        kept_mass = weights.sum(-1)
        left = rows.p - weights
        delta = left.sum(-1, keepdim=True)
        k_mean = rows.k.cumsum(0)[rows.start :] / rows.lengths[:, None]
        offset = left @ rows.k - delta * k_mean

        prompt = rows.k[: rows.start] - rows.k[: rows.start].mean(0)
        basis = self._basis(prompt, rows.v[: rows.start])
        # W = basis (prompt basis)^T v / start, so the rest are factors of the prompt's values.
        factors = (offset @ basis) @ (prompt @ basis).T / rows.start
        weights.addcmul_(delta / rows.lengths[:, None], rows.attended.float())
        weights[..., : rows.start] += factors
        return Read(
            weights,
            v_rows=used[0].sum(-1).float() + 2 * self.rank,
            k_rows=rows.lengths.float(),
            kept_mass=kept_mass,
        )

    def _basis(self, k: Tensor, v: Tensor) -> Tensor:
        """Directions [D, rank] of the keys in which W sees them: reduced-rank ridge regression.

        Args:
            k (Tensor[M, D]): keys of the prompt without their mean.
            v (Tensor[M, DV]): its values.

        Source: Izenman, "Reduced-rank regression for the multivariate linear model", 1975.
        """
        covariance = k.T @ k / len(k)
        penalty = self.ridge * covariance.diagonal().mean()
        covariance.diagonal().add_(penalty)
        root = torch.linalg.cholesky(covariance)
        whitened = torch.linalg.solve_triangular(root, k.T @ v / len(k), upper=False)
        directions = torch.linalg.svd(whitened).U[:, : self.rank]
        basis: Tensor = torch.linalg.solve_triangular(root.T, directions, upper=True)
        return basis


FAMILIES = {"sift, values from keys": [ValuesFromKeys(c) for c in MULTIPLES]}
