"""Ways to compute a decode step, each as a call without arguments that walks through the layers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import sift_attention as sift
from workload import DTYPE_NAMES, Layer, Problem

Call = Callable[[], Tensor]
# The widened matmul makes float32 copies up to this size, so that they stay in a core's cache.
WIDENED_BYTES = 2 << 20
COPIED_BYTES = 1 << 30  # half of what a copy moves; the L2 cannot hide the other half


def sift_call(problem: Problem, sharpness: float, law: sift.PowerLaw | None) -> Call:
    """Our operator; law None is its exact mode."""
    q = problem.query(sharpness)
    layers = problem.layers
    v_sum = None if law is None else problem.v_sum
    if q.is_cuda:  # a law of numbers would put two kernels that fill tensors into every graph
        law = law or sift.PowerLaw.exact()
        fill = functools.partial(torch.full, q.shape[:2], dtype=torch.float32, device=q.device)
        law = sift.PowerLaw(fill(law.log_alpha), fill(law.beta))

    def call() -> Tensor:
        k, v, _ = next(layers)
        return sift.decode(q, k, v, law, v_sum=v_sum)

    return call


def read_call(problem: Problem) -> Call:
    """The limit: a reduction that reads every byte of K and V once."""
    layers = problem.layers
    return lambda: next(layers).words.amax()


def copy_call() -> Call:
    """A GPU's limit: a copy, which moves 2 COPIED_BYTES."""
    source = torch.ones(COPIED_BYTES // 4, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def cuda_calls(problem: Problem, sharpness: float, *, flex: bool) -> dict[str, Call]:
    """Dense attention by PyTorch on a GPU. A backend may refuse a shape when it is called."""
    q, layers, name = problem.query(sharpness), problem.layers, problem.case.dtype_name
    calls = {
        f"SDPA flash, {name}": _sdpa(q, layers, SDPBackend.FLASH_ATTENTION),
        f"SDPA cuDNN, {name}": _sdpa(q, layers, SDPBackend.CUDNN_ATTENTION),
        f"grouped matmul, {name}": _grouped_matmul(q, layers),
    }
    if flex:
        calls[f"flex_attention, {name}"] = _flex_attention(q, layers)
    return calls


def pytorch_calls(problem: Problem, sharpness: float, *, flex: bool) -> dict[str, Call]:
    """Dense attention by PyTorch on a cache in the case's dtype, and on one in float32.

    Each call takes and returns tensors as suits it best; the results hold [B, HQ, D] in order.
    """
    caches = {problem.case.dtype: problem.layers, torch.float32: problem.wide_layers}
    calls = {}
    for dtype, layers in caches.items():
        q = problem.query(sharpness).to(dtype)
        name = DTYPE_NAMES[dtype]
        calls[f"SDPA, {name}"] = _sdpa(q, layers)
        calls[f"grouped matmul, {name}"] = _grouped_matmul(q, layers)
        if dtype != torch.float32:
            calls[f"grouped matmul, {name} widened"] = _widened_matmul(q, layers)
        if flex:
            calls[f"flex_attention, {name}"] = _flex_attention(q, layers)
    return calls


def _sdpa(q: Tensor, layers: Iterator[Layer], backend: SDPBackend | None = None) -> Call:
    q = q.unsqueeze(2)

    def call() -> Tensor:
        k, v, _ = next(layers)
        return scaled_dot_product_attention(q, k, v, enable_gqa=True)

    def restricted_call() -> Tensor:
        with sdpa_kernel(backend):
            return call()

    return call if backend is None else restricted_call


def _flex_attention(q: Tensor, layers: Iterator[Layer]) -> Call:
    """Compiled once per shape, dtype and number of threads; `dynamic` spares it the lengths."""
    from torch.nn.attention.flex_attention import flex_attention

    # Past this limit torch would silently run the eager form; `fullgraph` makes that an error.
    torch._dynamo.config.recompile_limit = 1000
    compiled = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    q = q.unsqueeze(2)

    def call() -> Tensor:
        k, v, _ = next(layers)
        return compiled(q, k, v, enable_gqa=True)

    return call


def _grouped_matmul(q: Tensor, layers: Iterator[Layer]) -> Call:
    """Two lines an expert would write: the heads of a group as the rows of one matrix."""
    scale = 1 / math.sqrt(q.shape[-1])

    def call() -> Tensor:
        k, v, _ = next(layers)
        grouped = (q * scale).view(k.shape[0] * k.shape[1], -1, q.shape[-1])
        return torch.bmm(torch.bmm(grouped, k.flatten(0, 1).mT).softmax(-1), v.flatten(0, 1))

    return call


def _widened_matmul(q: Tensor, layers: Iterator[Layer]) -> Call:
    """The grouped matmul in float32 on a 16-bit cache, few heads at a time."""
    scale = 1 / math.sqrt(q.shape[-1])

    def call() -> Tensor:
        k, v, _ = next(layers)
        num_heads = max(1, WIDENED_BYTES // (4 * k.shape[2] * k.shape[3]))
        grouped = (q.float() * scale).view(k.shape[0] * k.shape[1], -1, q.shape[-1])
        parts = zip(
            *(t.split(num_heads) for t in (grouped, k.flatten(0, 1), v.flatten(0, 1))), strict=True
        )
        out = [torch.bmm(torch.bmm(q, k.float().mT).softmax(-1), v.float()) for q, k, v in parts]
        return torch.cat(out).to(k.dtype)

    return call
