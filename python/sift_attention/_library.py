"""Loads the operators and tells PyTorch what it needs besides their kernels."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

_FOLDER = Path(__file__).parent / "lib"
_CUDA_LIBRARY = _FOLDER / "libsift_attention_cuda.so"
_AUTOGRAD = torch.library.Library("sift_attention", "IMPL")
_VERSIONS = (
    f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}"
)


def _load(library: Path) -> None:
    if not library.exists():
        raise ImportError(
            f"sift_attention: {library} must exist, got none ({_VERSIONS}). The package was "
            "imported from a source tree that is not built, or its build ran without the "
            "operators; build with: pip install --no-build-isolation ."
        )
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise ImportError(
            f"sift_attention: {library} could not be loaded ({_VERSIONS}): {error}. It needs torch "
            "2.11 or newer, and a platform like the one it was built on; rebuild with: "
            "pip install --no-build-isolation ."
        ) from error


def _cuda_obstacle() -> str | None:
    """Why the CUDA operators stay away, after which CPU tensors work all the same."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    if not _CUDA_LIBRARY.exists():
        return (
            "the package was built for the CPU only, SIFT_WITH_CUDA=ON pip install "
            "--no-build-isolation . builds it for CUDA"
        )
    built_with = (_FOLDER / "cuda_version").read_text().strip()
    if built_with.split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"the package was built with CUDA {built_with} and torch with {torch.version.cuda}"
    return None


def _refuse_cuda(op: str, reason: str) -> None:
    def refuse(first: Tensor, *args: Any) -> NoReturn:
        name = getattr(torch.ops.sift_attention, op).default._schema.arguments[0].name
        raise RuntimeError(f"{op}: {name} must be on the CPU, got {first.device}: {reason}")

    torch.library.impl(f"sift_attention::{op}", "cuda", refuse)


def _fake_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_alpha: Tensor,
    beta: Tensor,
    scale: float,
    seq_lens: Tensor | None = None,
    key_mask: Tensor | None = None,
    v_sum: Tensor | None = None,
    residual: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    block_table: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, num_q_heads, _ = q.shape
    num_kv_heads = k.shape[1 if block_table is None else 2]
    return (
        q.new_empty(q.shape),
        q.new_empty((batch, num_q_heads), dtype=torch.float32),
        q.new_empty((batch, num_q_heads), dtype=torch.float32),
        q.new_empty((batch, num_kv_heads), dtype=torch.int32),
    )


def _fake_score_quantile(
    q: Tensor,
    k: Tensor,
    lengths: Tensor,
    quantile: float,
    scale: float,
    key_mask: Tensor | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    block_table: Tensor | None = None,
) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=torch.float32)


def _fake_fit_power_law(
    lengths: Tensor, quantiles: Tensor, beta: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    shape = quantiles.shape[:2]
    return (
        quantiles.new_empty(shape),
        quantiles.new_empty(shape),
        quantiles.new_empty(shape, dtype=torch.bool),
    )


def wants_gradient(*args: Any) -> bool:
    """Whether a tensor among the arguments requires a gradient, or carries one forward."""
    return (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)) or has_tangent(*args)


def has_tangent(*args: Any) -> bool:
    """Whether a tensor among the arguments carries a gradient forward."""
    if forward_ad._current_level < 0:
        return False
    tensors = (value for value in args if isinstance(value, Tensor))
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def is_watched() -> bool:
    """Whether a compiler, a mode or a function transform follows what is called.

    Fake and functional tensors must not be kept, and whoever follows a call wants all of it.
    """
    return (
        is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def refuse_gradients(op: str, *args: Any) -> None:
    """Raises where results without a gradient would pass for constants."""
    if wants_gradient(*args):
        raise RuntimeError(
            f"{op}: gradients are not supported, call it under torch.no_grad() or detach its inputs"
        )


def _register(op: str, fake: Callable[..., Any]) -> None:
    operator = getattr(torch.ops.sift_attention, op).default

    def autograd(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        refuse_gradients(op, *args, *kwargs.values())
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

    names = [argument.name for argument in operator._schema.arguments]

    @functools.wraps(fake)
    def fake_on_one_device(*args: Any, **kwargs: Any) -> Any:
        """The kernels check this themselves, but without a kernel nobody would."""
        (first, device), *others = (
            (name, value.device)
            for name, value in {**dict(zip(names, args, strict=False)), **kwargs}.items()
            if isinstance(value, Tensor)
        )
        for name, other in others:
            if other != device:
                raise RuntimeError(
                    f"{op}: {name} must be on the device of {first} = {device}, got {other}"
                )
        return fake(*args, **kwargs)

    torch.library.register_fake(f"sift_attention::{op}", fake_on_one_device)
    _AUTOGRAD.impl(op, autograd, "Autograd", with_keyset=True)


_load(_FOLDER / "libsift_attention.so")
_register("decode", _fake_decode)
_register("score_quantile", _fake_score_quantile)
_register("fit_power_law", _fake_fit_power_law)

_obstacle = _cuda_obstacle()
HAS_CUDA = _obstacle is None
if _obstacle is None:
    _load(_CUDA_LIBRARY)
else:
    for _op in ("decode", "score_quantile", "fit_power_law"):
        _refuse_cuda(_op, _obstacle)
