"""Attention over a cache from which keys are evicted for good."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import Read, Rows, softmax_over

# Shares of the prompt that a cache of fixed size holds; it reads a smaller share as the text grows.
CACHE_SHARES = (0.7, 0.25, 0.06)


def attend_remaining(rows: Rows, used: Tensor) -> Read:
    """Softmax over some keys alone: the others leave the denominator, too.

    Args:
        rows: the decode steps.
        used (Tensor[R, N], bool): the keys of every step, the same for all heads; of those
            attended at least one.
    """
    used = used & rows.attended
    weights, kept_mass = softmax_over(rows, used[None])
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
    scores = rows.scores(rows.tokens)
    weights = torch.zeros_like(scores)
    history = torch.zeros_like(scores[0])
    for step in range(rows.num_steps):
        history[step] = evicted
        weights[:, step] = rows.softmax(scores[:, step : step + 1] + evicted)[:, 0]
        after_step(rows.start + step, weights[:, step], evicted)
    used = ((history == 0.0) & rows.attended).float()
    num_used = used.sum(-1)
    return Read(weights, v_rows=num_used, k_rows=num_used, kept_mass=(used * rows.p).sum(-1))
