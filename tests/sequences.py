"""Random sequences that are fed to a SiftState position by position."""

from __future__ import annotations

import torch

import sift_attention as sift
from sift_attention import reference

HQ, HK, D = 4, 2, 32


class Sequence:
    """Random q, k and v of a whole sequence; positions are fed in order."""

    def __init__(self, length: int, batch: int = 1) -> None:
        self.q = 3.0 * torch.randn(batch, HQ, length, D)
        self.k = torch.randn(batch, HK, length, D)
        self.v = torch.randn(batch, HK, length, D)

    def prefill(self, state: sift.SiftState, end: int, start: int = 0) -> None:
        mask = None
        if start > 0:
            mask = torch.ones(end, end, dtype=torch.bool).tril()[None, None, start:]
        state.observe(self.q[:, :, start:end], self.k[:, :, :end], self.v[:, :, :end], mask)

    def step(self, state: sift.SiftState, position: int, mask=None, **options) -> torch.Tensor:
        end = position + 1
        q, k, v = self.q[:, :, position], self.k[:, :, :end], self.v[:, :, :end]
        return state.decode(q, k, v, mask, **options)

    def exact(self, position: int) -> torch.Tensor:
        end = position + 1
        return reference.decode(self.q[:, :, position], self.k[:, :, :end], self.v[:, :, :end])


def calibrated(**options) -> sift.SiftState:
    options = {"quantile": 0.8, "min_keys": 0, **options}
    return sift.SiftState(sift.SiftConfig(threshold="quantile", **options))
