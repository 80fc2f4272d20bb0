"""What the rivals that select keys have in common: a softmax over the selected keys only."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Read, Rows, any_of, softmax_over


def attend_selected(
    rows: Rows, used: Tensor, summaries: Tensor, estimates: Tensor | None = None
) -> Read:
    """Softmax over the selected keys, whose key and value rows are both read.

    Args:
        rows: the decode steps.
        used (Tensor[G, R, N], or [1, R, N] for all heads, bool): attended keys that each query
            head selects, at least one.
        summaries (Tensor[R], float32): what the selection itself read, in rows.
        estimates (Tensor[G, R, N], float32, or None): scores with which other keys take part
            without being read; -inf for those that do not. None: no other key does.

    Returns:
        Read: a key that several heads of the group select is read once.
    """
    if estimates is None:
        weights, kept_mass = softmax_over(rows, used)
    else:
        weights = rows.softmax(torch.where(used, rows.scores(rows.tokens), estimates))
        kept_mass = (rows.p * used.float()).sum(-1)
    num_selected = any_of(used, 0).sum(-1, dtype=torch.float32)
    return Read(weights, num_selected, summaries + num_selected, kept_mass)


def scaled(rows: Rows, dots: Tensor) -> Tensor:
    """Scores of estimated products of queries and keys, of any shape, as the model makes them."""
    scores = rows.scale * dots
    return rows.softcap * torch.tanh(scores / rows.softcap) if rows.softcap > 0.0 else scores


def share(total: Tensor, fraction: float, least: int = 1) -> Tensor:
    """The nearest whole number to a fraction of each entry of `total` (int64), or `least`."""
    return (fraction * total.double()).round().long().clamp(min=least)


def sketch_dims(head_dim: int, fraction: float, least: int) -> int:
    """Dimensions of a sketch: a fraction of the head's, at least `least` if it has as many."""
    return min(head_dim, max(least, round(fraction * head_dim)))
