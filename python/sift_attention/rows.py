"""Batch rows of named tensors, rearranged as a cache rearranges its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def mark_static(*tensors: Tensor) -> None:
    """Tell torch.compile that these tensors keep their addresses; not possible while tracing."""
    if not torch.compiler.is_compiling():
        for tensor in tensors:
            torch._dynamo.mark_static_address(tensor)


def is_recorded(tensor: Tensor) -> bool:
    """Whether this run of Python stands for many: a compiler or a CUDA graph records it."""
    return torch.compiler.is_compiling() or (
        tensor.is_cuda and torch.cuda.is_current_stream_capturing()
    )


class BatchRows:
    """Base of objects whose `ROW_TENSORS` have the batch as their first dimension."""

    ROW_TENSORS: tuple[str, ...] = ()

    def map_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every row tensor by `change` of it, in place where the shape stays."""
        for name in self.ROW_TENSORS:
            tensor = getattr(self, name)
            with torch.inference_mode(False):  # writable in any grad mode
                changed = change(tensor)
            if changed.shape == tensor.shape:
                tensor.copy_(changed)
            else:
                mark_static(changed)
                setattr(self, name, changed)

    def zero_rows(self) -> None:
        """Set every row tensor to zero, in place."""
        for name in self.ROW_TENSORS:
            getattr(self, name).zero_()
