"""A law as the operator takes it: tensors with one number per sequence and query head."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ._library import is_watched
from .law import PowerLaw


def per_head(law: PowerLaw, heads: tuple[int, int], q: Tensor) -> tuple[Tensor, Tensor]:
    """The tensors of a law that `decode` takes.

    Args:
        law: of numbers, or of tensors that broadcast to the heads.
        heads: B, HQ.
        q: tensor on the device that they must be on.

    Returns:
        log_alpha and beta (Tensor[B, HQ], float32): contiguous; untouched if they are that already.

    Raises:
        ValueError: a tensor has the wrong shape.
    """
    log_alpha, beta = law.log_alpha, law.beta
    is_constant = not (isinstance(log_alpha, Tensor) or isinstance(beta, Tensor))
    if is_constant and not is_watched():
        stream = 0 if q.is_cpu else _cuda_stream(q)
        if stream is not None:
            return _constants(log_alpha, beta, heads, q.device, stream)
    return _factor("log_alpha", log_alpha, heads, q), _factor("beta", beta, heads, q)


@functools.lru_cache(maxsize=128)
def _constants(
    log_alpha: float, beta: float, heads: tuple[int, int], device: torch.device, stream: int
) -> tuple[Tensor, Tensor]:
    """A law of two numbers, kept because making it takes 4 us, a third of a short call.

    Nobody writes to it, and it is used on the stream that made it only.
    """
    full = functools.partial(torch.full, heads, dtype=torch.float32, device=device)
    return full(log_alpha), full(beta)


def _cuda_stream(q: Tensor) -> int | None:
    """The current stream of q's device; None where tensors made for a call must not be kept.

    A CUDA graph that is being captured would go on reading them after they were dropped.
    """
    if not q.is_cuda or q.get_device() != torch.cuda.current_device():
        return None
    if torch.cuda.is_current_stream_capturing():
        return None
    return torch.cuda.current_stream().cuda_stream


def _factor(name: str, factor: Tensor | float, heads: tuple[int, int], q: Tensor) -> Tensor:
    if not isinstance(factor, Tensor):
        return torch.full(heads, factor, dtype=torch.float32, device=q.device)
    if factor.shape != heads:
        try:
            factor = factor.expand(heads)
        except RuntimeError:
            raise ValueError(
                f"decode: {name} must be broadcastable to [B, HQ] = {heads}, "
                f"got {tuple(factor.shape)}"
            ) from None
    return factor.contiguous()
