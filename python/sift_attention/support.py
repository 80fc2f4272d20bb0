"""What the decode operator takes, for callers that fall back to dense attention otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
HEAD_DIMS = {"cpu": frozenset({32, 64, 80, 96, 128, 256})}  # by type of device


def obstacle(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the operator cannot decode these tensors.

    Args:
        q (Tensor[B, HQ, R, D]): queries.
        k (Tensor[B, HK, N, D]): keys.
        v (Tensor[B, HK, N, DV]): values.

    Returns:
        str or None: one of `counters.DENSE_REASONS`; None: it can.
    """
    if (q.requires_grad or k.requires_grad or v.requires_grad) and torch.is_grad_enabled():
        return "gradients"
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        return "dtype"
    head_dims = HEAD_DIMS.get(q.device.type)
    if head_dims is None or k.device != q.device or v.device != q.device:
        return "device"
    if q.shape[3] not in head_dims or v.shape[3] != q.shape[3]:
        return "head size"
    return None
