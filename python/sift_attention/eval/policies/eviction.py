"""Attention over a cache from which keys are evicted for good."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import Read, Rows

# Shares of the prompt that a cache of fixed size holds; it reads a smaller share as the text grows.
CACHE_SHARES = (0.7, 0.4, 0.2, 0.1, 0.05)


def attend_evicting(
    rows: Rows, remaining: Tensor, after_step: Callable[[int, Tensor, Tensor], None]
) -> Read:
    """Decode step by step; every key of an earlier step may be gone for good.

    Args:
        rows: the decode steps.
        remaining (Tensor[N], bool): the keys of the prompt that outlived it.
        after_step: called as `after_step(token, p, remaining)` after the step of a token, with the
            probabilities p [G, N] over the keys that remained; evicts by writing False into
            `remaining` [N], where later tokens are still False.
    """
    scores = rows.scores(steps(rows))
    weights = torch.zeros_like(scores)
    used = torch.zeros_like(rows.attended)
    for step in range(rows.num_steps):
        token = rows.start + step
        remaining[token] = True
        used[step] = remaining
        weights[:, step] = rows.softmax(scores[:, step : step + 1] + _hiding(~remaining))[:, 0]
        after_step(token, weights[:, step], remaining)
    num_used = used.sum(-1, dtype=torch.float32)
    kept_mass = used.float().mul(rows.p).sum(-1)
    return Read(weights, v_rows=num_used, k_rows=num_used, kept_mass=kept_mass)


def steps(rows: Rows) -> Tensor:
    """Tokens of the decode steps: int64 [R]."""
    return torch.arange(rows.start, rows.k.shape[0], device=rows.k.device)


def _hiding(hidden: Tensor) -> Tensor:
    """What to add to scores to hide some keys; on a CPU faster than filling all heads' scores."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
