"""What tensors hold, checked under SIFT_CHECK=1.

The operators leave values on the device and are safe with any: lengths are clamped, keys in blocks
that do not exist are not attended, and a law that is NaN keeps every key. To look at them takes a
wait for the device, which is for finding a mistake, not for production.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

ARE_CHECKED = os.environ.get("SIFT_CHECK") == "1"


def check_values(
    op: str,
    k: Tensor,
    seq_lens: Tensor | None = None,
    block_table: Tensor | None = None,
    log_alpha: Tensor | None = None,
    beta: Tensor | None = None,
) -> None:
    """Raise ValueError for the first value that its argument must not have.

    Args:
        op: the operator, which has found shapes and dtypes to be right.
        k (Tensor): keys, as the operator takes them.
        seq_lens (Tensor[B], int32): each in [0, N].
        block_table (Tensor[B, max_blocks], int32): each in [0, num_blocks); -1: not mapped.
        log_alpha (Tensor[B, HQ]): each below infinity.
        beta (Tensor[B, HQ]): each finite.
    """
    capacity = k.shape[2] if block_table is None else k.shape[1] * block_table.shape[1]
    if seq_lens is not None:
        _check(op, "seq_lens", seq_lens, 0, capacity, f"in [0, {capacity}]")
    if block_table is not None:
        num_blocks = k.shape[0]
        _check(op, "block_table", block_table, -1, num_blocks - 1, f"-1 or in [0, {num_blocks})")
    largest = torch.finfo(torch.float32).max
    if log_alpha is not None:
        _check(op, "log_alpha", log_alpha, -math.inf, largest, "below infinity")
    if beta is not None:
        _check(op, "beta", beta, -largest, largest, "finite")


def _check(op: str, name: str, tensor: Tensor, low: float, high: float, wanted: str) -> None:
    bad = ~((tensor >= low) & (tensor <= high))  # NaN is neither
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"{op}: {name} must be {wanted}, got {tensor[index].item()} at {index}")
