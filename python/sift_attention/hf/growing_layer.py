"""A dynamic cache layer that grows without copying."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from . import huge_pages


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
    _view: Tensor | None = None  # the keys that were handed out last

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values ([B, HK, R, D], [B, HK, R, DV]); return all of them."""
        needs_grad = key_states.requires_grad or value_states.requires_grad
        if torch.compiler.is_compiling() or (needs_grad and torch.is_grad_enabled()):
            return super().update(key_states, value_states, *args, **kwargs)
        keys, added = self.keys, key_states.shape[2]
        is_owned = keys is not None and self._view is keys
        length = keys.shape[2] if is_owned else self.get_seq_length()
        if not is_owned or length == 0 or length + added > self._key_buffer.shape[2]:
            self._key_buffer = _buffer(keys, key_states, length)
            self._value_buffer = _buffer(self.values, value_states, length)
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        self._key_buffer.narrow(2, length, added).copy_(key_states)
        self._value_buffer.narrow(2, length, added).copy_(value_states)
        self.keys = self._view = self._key_buffer.narrow(2, 0, length + added)
        self.values = self._value_buffer.narrow(2, 0, length + added)
        return self.keys, self.values

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Drop the newest tokens; their rows in the buffers are free again."""
        is_owned = self._view is self.keys
        super().crop(*args, **kwargs)
        if is_owned:
            self._view = self.keys

    def reset(self) -> None:
        """Return to an empty layer."""
        # Before transformers 5.18 the stock layer zeroes its tensors but keeps their length.
        if self.is_initialized:
            self.keys, self.values = self.keys[:, :, :0], self.values[:, :, :0]

    def __getstate__(self) -> dict[str, Any]:
        """Without the buffers: a copy makes its own."""
        buffers = ("_key_buffer", "_value_buffer", "_view")
        return {name: value for name, value in self.__dict__.items() if name not in buffers}


def _buffer(rows: Tensor | None, new_rows: Tensor, length: int) -> Tensor:
    """Room for half as many rows again, the first `length` copied; writable in any grad mode."""
    batch, heads, added, dim = new_rows.shape
    capacity = -(-3 * (length + added) // 512) * 256
    with torch.inference_mode(False):
        buffer = huge_pages.empty((batch, heads, capacity, dim), new_rows.dtype, new_rows.device)
    if rows is not None and length > 0:
        buffer[:, :, :length] = rows
    return buffer
