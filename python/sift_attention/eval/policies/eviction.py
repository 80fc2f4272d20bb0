"""Attention over a cache from which keys are evicted for good."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import Read, Rows

# Shares of the prompt that a cache of fixed size holds; it reads a smaller share as the text grows.
CACHE_SHARES = (0.7, 0.4, 0.2, 0.1, 0.05)

# Below this, what probabilities have left is too little for what remains to be told apart.
_LEAST_MASS = 1e-30


def attend_remaining(rows: Rows, used: Tensor) -> Read:
    """Softmax over some keys alone: the others leave the denominator, too.

    Args:
        rows: the decode steps.
        used (Tensor[R, N], bool): the keys of every step, the same for all heads; of those
            attended at least one.
    """
    used = used & rows.attended
    weights = used.float() * rows.p
    kept_mass = weights.sum(-1)
    if rows.sinks is None and kept_mass.amin() > _LEAST_MASS:
        weights.div_(kept_mass[..., None])
    else:
        tokens = torch.arange(rows.start, rows.k.shape[0], device=rows.k.device)
        hidden = torch.zeros_like(rows.p[0]).masked_fill_(~used, -torch.inf)
        weights = rows.softmax(rows.scores(tokens).add_(hidden))
    num_used = used.sum(-1, dtype=torch.float32)
    return Read(weights, v_rows=num_used, k_rows=num_used, kept_mass=kept_mass)


def attend_evicting(
    rows: Rows, evicted: Tensor, after_step: Callable[[int, Tensor, Tensor], None]
) -> Read:
    """Decode step by step; every key of an earlier step may be gone for good.

    Args:
        rows: the decode steps.
        evicted (Tensor[N], float32): -inf for the keys that did not outlive the prompt, else 0.
        after_step: called as `after_step(token, p, evicted)` after the step of a token, with the
            probabilities p [G, N] over the keys that remained; evicts by writing -inf.
    """
    scores = rows.scores(torch.arange(rows.start, rows.k.shape[0], device=rows.k.device))
    weights = torch.zeros_like(scores)
    history = torch.zeros_like(scores[0])
    for step in range(rows.num_steps):
        history[step] = evicted
        weights[:, step] = rows.softmax(scores[:, step : step + 1] + evicted)[:, 0]
        after_step(rows.start + step, weights[:, step], evicted)
    used = ((history == 0.0) & rows.attended).float()
    num_used = used.sum(-1)
    return Read(weights, v_rows=num_used, k_rows=num_used, kept_mass=(used * rows.p).sum(-1))
