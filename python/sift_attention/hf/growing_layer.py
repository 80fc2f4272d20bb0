"""A dynamic cache layer that grows without copying."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A dynamic cache layer whose buffers grow by half; the stock one copies all keys every step.

    `keys` and `values` are views of the first S rows of the buffers. The buffers belong to this
    layer while `keys` is the view it handed out; whatever replaces `keys` (reorder, select, repeat)
    makes the next update copy once.
    """

    # NOTE: never define `_layer_type` here: it would replace the library's layer for every model.

    keys: Any
    values: Any
    _key_buffer: Tensor
    _value_buffer: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values ([B, HK, R, D], [B, HK, R, DV]); return all of them."""
        needs_grad = key_states.requires_grad or value_states.requires_grad
        if torch.compiler.is_compiling() or (needs_grad and torch.is_grad_enabled()):
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
            length = 0
        else:
            length = self.get_seq_length()
        grown = length + key_states.shape[2]
        if length == 0 or not self._owns_buffers() or grown > self._key_buffer.shape[2]:
            self._key_buffer = _buffer(self.keys, key_states, length)
            self._value_buffer = _buffer(self.values, value_states, length)
        self._key_buffer.narrow(2, length, grown - length).copy_(key_states)
        self._value_buffer.narrow(2, length, grown - length).copy_(value_states)
        self.keys = self._view = self._key_buffer.narrow(2, 0, grown)
        self.values = self._value_buffer.narrow(2, 0, grown)
        return self.keys, self.values

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Drop the newest tokens; their rows in the buffers are free again."""
        owned = self._owns_buffers()
        super().crop(*args, **kwargs)
        if owned:
            self._view = self.keys

    def reset(self) -> None:
        """Return to an empty layer."""
        # Before transformers 5.18 the stock layer zeroes its tensors but keeps their length.
        if self.is_initialized:
            self.keys, self.values = self.keys[:, :, :0], self.values[:, :, :0]

    def _owns_buffers(self) -> bool:
        return self.is_initialized and self.__dict__.get("_view") is self.keys

    def __getstate__(self) -> dict[str, Any]:
        """Without the buffers: a copy makes its own."""
        buffers = ("_key_buffer", "_value_buffer", "_view")
        return {name: value for name, value in self.__dict__.items() if name not in buffers}


def _buffer(rows: Tensor | None, new_rows: Tensor, length: int) -> Tensor:
    """Room for half as many rows again, the first `length` copied; writable in any grad mode."""
    batch, heads, added, dim = new_rows.shape
    capacity = -(-3 * (length + added) // 512) * 256
    with torch.inference_mode(False):
        buffer = torch.empty(
            batch, heads, capacity, dim, dtype=new_rows.dtype, device=new_rows.device
        )
    if rows is not None and length > 0:
        buffer[:, :, :length] = rows
    return buffer
