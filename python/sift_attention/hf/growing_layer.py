"""A dynamic cache layer that grows without copying."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from . import huge_pages


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A dynamic cache layer whose buffers grow by half; the stock one copies all keys every step.

    `keys` and `values` are views of the first S rows of the buffers. The buffers belong to this
    layer while those are the views it handed out; whatever replaces them (reorder, select, repeat,
    crop) makes the next update copy once, so that no row that someone may hold is written again.
    """

    # NOTE: never define `_layer_type` here: it would replace the library's layer for every model.

    keys: Any
    values: Any
    _buffers: tuple[Tensor, Tensor]
    _views: tuple[Tensor | None, Tensor | None] = (None, None)  # keys and values handed out last

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values ([B, HK, R, D], [B, HK, R, DV]); return all of them."""
        old, new = (self.keys, self.values), (key_states, value_states)
        if torch.compiler.is_compiling() or _needs_grad(new) or not _fits(old, new):
            return super().update(key_states, value_states, *args, **kwargs)
        is_owned = self.keys is not None and all(map(operator.is_, self._views, old))
        length = self.keys.shape[2] if is_owned else self.get_seq_length()
        added = key_states.shape[2]
        if not is_owned or length == 0 or length + added > self._buffers[0].shape[2]:
            keys, values = (_buffer(*both, length) for both in zip(old, new, strict=True))
            self._buffers = keys, values
            self.dtype, self.device = key_states.dtype, key_states.device
        for buffer, rows in zip(self._buffers, new, strict=True):
            buffer.narrow(2, length, added).copy_(rows)
        keys, values = (buffer.narrow(2, 0, length + added) for buffer in self._buffers)
        self.keys, self.values = self._views = keys, values
        self.is_initialized = True
        return keys, values

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Drop the newest tokens; a layer that another process of a pipeline holds has none."""
        if self.is_initialized:
            super().crop(*args, **kwargs)

    def reset(self) -> None:
        """Return to an empty layer."""
        # Before transformers 5.18 the stock layer zeroes its tensors but keeps their length.
        if self.is_initialized:
            self.keys, self.values = self.keys[:, :, :0], self.values[:, :, :0]

    def __getstate__(self) -> dict[str, Any]:
        """Without the buffers: a copy makes its own."""
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_buffers", "_views")
        }


def _needs_grad(rows: tuple[Tensor, Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in rows)


def _fits(old: tuple[Tensor | None, Tensor | None], new: tuple[Tensor, Tensor]) -> bool:
    """Whether new rows can join old ones as they are; what cannot is for the stock layer to say."""
    if new[0].shape[:3] != new[1].shape[:3]:
        return False
    return all(
        rows is None
        or rows.numel() == 0
        or (rows.shape[:2], rows.shape[3], rows.dtype, rows.device)
        == (more.shape[:2], more.shape[3], more.dtype, more.device)
        for rows, more in zip(old, new, strict=True)
    )


def _buffer(rows: Tensor | None, new_rows: Tensor, length: int) -> Tensor:
    """Room for half as many rows again, the first `length` copied; writable in any grad mode."""
    batch, heads, added, dim = new_rows.shape
    capacity = -(-3 * (length + added) // 512) * 256
    with torch.inference_mode(False):
        buffer = huge_pages.empty((batch, heads, capacity, dim), new_rows.dtype, new_rows.device)
    if rows is not None and length > 0:
        buffer[:, :, :length] = rows
    return buffer
