"""The controller without warm-up with which the paper's authors later replaced its fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .base import Policy, Read, Rows
from .paper import read_above

_DOUBLING_FROM = 128  # keys; below, updates come every _FIRST_INTERVAL steps
_FIRST_INTERVAL = 4
_RATES = (0.15, 0.015)  # of log_a and b
_ANNEALING = (0.98, 0.995)  # of the rates, per update from _DOUBLING_FROM keys on
_LOG_A_RANGE = (math.log(1e-4), math.log(30.0))
_B_RANGE = (-3.0, -1e-4)
_LOG_THETA_RANGE = (-20.0, 0.0)


@dataclass(frozen=True)
class YalisController(Policy):
    """Follows a kept share of all keys so far by moving each head's law theta = a S^b.

    The law starts at 1 / S. At some steps, the share of the keys that the head kept in all decode
    steps so far, minus the wanted one, is added to log a and to b, times a rate each that shrinks.
    The interval between these steps is 4 below 128 keys, 8 below 256, 16 below 512 and so on. The
    prompt takes no part, the newest key is always kept, the denominator is the true one and nothing
    is added. All constants are those of the authors' code.

    After a prompt, updates are so rare that the wanted share hardly matters.

    Attributes:
        quantile (float): 1 minus the wanted share of the keys ("percentile" in the code).
    """

    source = "axonn-ai/yalis, pull request 91, nowmp_thresh (2026)"

    quantile: float

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        is_newest = torch.arange(rows.k.shape[0], device=rows.k.device) == rows.tokens[:, None]
        log_a = rows.p.new_zeros(rows.p.shape[0])
        b = torch.full_like(log_a, -1.0)
        kept, total = torch.zeros_like(log_a), 0.0
        rates = _RATES
        used = torch.zeros_like(rows.p, dtype=torch.bool)
        step = 0
        while step < rows.num_steps:
            length = rows.start + step + 1
            # The law stays until the next length that is a multiple of the interval, inclusive.
            end = min(step + -length % update_interval(length) + 1, rows.num_steps)
            lengths = rows.lengths[step:end]
            log_theta = log_a[:, None] + b[:, None] * lengths.log()
            theta = log_theta.clamp(*_LOG_THETA_RANGE).exp()
            keep = (rows.p[:, step:end] >= theta[..., None]) | is_newest[step:end]
            used[:, step:end] = keep & rows.attended[step:end]
            kept += used[:, step:end].sum((1, 2))
            total += float(lengths.sum())
            excess = kept / total - (1.0 - self.quantile)
            log_a = (log_a + rates[0] * excess).clamp(*_LOG_A_RANGE)
            b = (b + rates[1] * excess).clamp(*_B_RANGE)
            if rows.start + end >= _DOUBLING_FROM:
                rates = (rates[0] * _ANNEALING[0], rates[1] * _ANNEALING[1])
            step = end
        return read_above(rows, used)


def update_interval(length: int) -> int:
    """Steps between updates while so many keys are attended."""
    return _FIRST_INTERVAL << (length // _DOUBLING_FROM).bit_length()


FAMILIES = {"paper's later controller": [YalisController(quantile) for quantile in (0.5, 0.98)]}
