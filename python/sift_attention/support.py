"""What the decode operator takes, for callers that fall back to dense attention otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import HAS_CUDA, has_tangent

# What the kernels of a type of device take: dtypes, head sizes.
KERNELS = {
    "cpu": (
        frozenset({torch.float32, torch.bfloat16, torch.float16}),
        frozenset({32, 64, 80, 96, 128, 256}),
    )
}
if HAS_CUDA:
    KERNELS["cuda"] = (
        frozenset({torch.bfloat16, torch.float16}),
        frozenset({64, 80, 96, 128, 256}),
    )


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
    if has_tangent(q, k, v):
        return "gradients"
    kernels = KERNELS.get(q.device.type)
    if kernels is None or k.device != q.device or v.device != q.device:
        return "device"
    dtypes, head_dims = kernels
    if q.dtype not in dtypes or k.dtype != q.dtype or v.dtype != q.dtype:
        return "dtype"
    if q.shape[3] not in head_dims or v.shape[3] != q.shape[3]:
        return "head size"
    return None
