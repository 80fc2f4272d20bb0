"""Caches that carry the sifting states of their layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer, EncoderDecoderCache, StaticLayer

from ..config import SiftConfig
from ..state import SiftState
from .growing_layer import GrowingLayer
from .pipeline import PipelinedCache
from .stats import Totals


class CacheState:
    """The sifting states of a cache's layers; a plain object, so that nothing tries to move it.

    Args:
        config: what the layers do.
        totals: where they count; None: each by itself, as in copies and pickles of a cache until
            they are adopted.
        held: layers that this process holds; None: all.

    Attributes:
        layers (dict[int, SiftState]): by `layer_idx`.
        sliding (frozenset[int]): layers whose cache drops old keys.
        quantized (bool): the values of old tokens change whenever the cache is read.
        pad_token (Tensor[] or None): what finished rows of a batch are fed; None: rows never end.
        in_forward (bool): a forward is at work on the cache, or was interrupted.
    """

    def __init__(
        self, config: SiftConfig, totals: Totals | None, held: range | None = None
    ) -> None:
        self.config = config
        self.totals = totals
        self.held = held
        self.layers: dict[int, SiftState] = {}
        self.sliding: frozenset[int] = frozenset()
        self.quantized = False
        self.pad_token: Tensor | None = None
        self.in_forward = False

    def layer(self, layer_idx: int, batch: int, num_q_heads: int, v: Tensor) -> SiftState:
        """The state of a layer, new where the layer or its batch is.

        Args:
            layer_idx: of the attention module; layers that share their keys have one each.
            batch: B.
            num_q_heads: HQ.
            v (Tensor[B, HK, N, D]): values.
        """
        state = self.layers.get(layer_idx)
        if state is None or state.log_alpha.shape != (batch, num_q_heads):
            state = SiftState(self.config)
            sizes = (num_q_heads, v.shape[1], v.shape[3] * v.dtype.itemsize, v.device)
            counters = None if self.totals is None else self.totals.counters(layer_idx, *sizes)
            state.allocate(batch, num_q_heads, v.shape[1], v.shape[3], v.dtype, v.device, counters)
            self.layers[layer_idx] = state
        state.values.is_stale |= self.quantized
        return state

    def count_in(self, totals: Totals) -> None:
        """Count in `totals` from now on; steps may have passed unseen."""
        unseen = self.totals is not None
        self.totals = totals
        for layer_idx, state in self.layers.items():
            old = state.counters
            state.counters = totals.counters(
                layer_idx, old.num_q_heads, old.num_kv_heads, old.row_bytes, old.dense.device
            )
            state.values.is_stale |= unseen

    def __getstate__(self) -> dict[str, Any]:
        """Without the totals, which belong to a model."""
        return {**self.__dict__, "totals": None}


class SiftingCache(PipelinedCache):
    """Mixed into a cache's class: its layers' states follow whatever happens to its rows."""

    sift_state: CacheState
    layers: list[Any]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows, for beam search."""
        with self._following(lambda state: state.reorder(beam_idx)):
            super().reorder_cache(beam_idx)  # type: ignore[misc]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        with self._following(lambda state: state.select(indices)):
            super().batch_select_indices(indices)  # type: ignore[misc]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        with self._following(lambda state: state.repeat(repeats)):
            super().batch_repeat_interleave(repeats)  # type: ignore[misc]

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Drop the newest tokens."""
        self._raise_if_static()
        length = self.get_seq_length()

        def follow(state: SiftState) -> None:
            if (left := self.get_seq_length()) < length:
                state.crop_to(left)

        with self._following(follow):
            super().crop(*args, **kwargs)  # type: ignore[misc]

    def activate_past_recording(self) -> None:
        """Prepare for `crop`."""
        self._raise_if_static()
        super().activate_past_recording()  # type: ignore[misc]

    def reset(self) -> None:
        """Return to an empty cache."""
        with self._following(lambda state: state.reset()):
            super().reset()  # type: ignore[misc]

    @contextmanager
    def _following(self, change: Callable[[SiftState], None]) -> Iterator[None]:
        """Change the states of the layers after the cache, which has none until both are done.

        If the change fails or is interrupted it stays so: the layers then start with new states,
        whose sums are taken anew and whose fitted laws are exact until the next prompt.
        """
        held = self.sift_state
        layers, held.layers = held.layers, {}
        yield
        for state in layers.values():
            change(state)
        held.layers = layers

    def _raise_if_static(self) -> None:
        if any(isinstance(layer, StaticLayer) for layer in self.layers):
            raise ValueError(
                "generate: the cache must be dynamic for assisted generation and prompt lookup, "
                "got a static one"
            )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle by the stock class, since this one has no importable name."""
        stock: Any = type(self).__bases__[1]
        return _sifting_like, (stock,), self.__dict__


@functools.cache
def _sifting_class(stock: Any) -> Any:
    return type(f"Sift{stock.__name__}", (SiftingCache, stock), {})


def _sifting_like(stock: Any) -> Any:
    sifting: Any = _sifting_class(stock)
    return sifting.__new__(sifting)


def check_whole(cache: Any, held: range | None) -> None:
    """Refuse a cache of which an interrupted forward left some layers longer than others.

    Args:
        cache (Cache): the cache.
        held: layers that this process holds; None: all.
    """
    layers = cache.layers if held is None else cache.layers[held.start : held.stop]
    counting = (layer for layer in layers if isinstance(layer, (DynamicLayer, StaticLayer)))
    lengths = [int(layer.get_seq_length()) for layer in counting]
    if len(set(lengths)) > 1:
        raise ValueError(
            "forward: past_key_values must hold the same tokens in all layers, got "
            f"{min(lengths)} to {max(lengths)} tokens after a forward that was interrupted; "
            "reset it or start a new one"
        )


def _check_owner(cache: Any, old: Totals | None, new: Totals) -> None:
    """Refuse a cache that holds tokens of another model; copies and pickles are of none."""
    is_other = old is not None and None not in (old.owner, new.owner) and old.owner != new.owner
    if is_other and int(cache.get_seq_length()) > 0:
        raise ValueError(
            "forward: past_key_values must be empty or filled by this model, got one that another "
            "model filled; where both have the same weights, pass copy.deepcopy(past_key_values)"
        )


def adopt(cache: Any, config: SiftConfig, totals: Totals, held: range | None = None) -> CacheState:
    """Give a cache sifting states, in place; again for another configuration.

    Args:
        cache (Cache): of any class; of an encoder-decoder cache, the self-attention part.
        config: what its layers shall do.
        totals: where they shall count.
        held: layers that this process holds; None: all.

    Returns:
        CacheState: the states it carries from now on.

    Raises:
        ValueError: another model filled the cache.
    """
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    state: CacheState | None = cache.sift_state if isinstance(cache, SiftingCache) else None
    if state is not None and state.config is config and state.totals is totals:
        return state
    if state is not None:
        _check_owner(cache, state.totals, totals)
        state.held = held
    if state is None or state.config != config:
        state = CacheState(config, totals, held)
        state.sliding = frozenset(i for i, sliding in enumerate(cache.is_sliding) if sliding)
        state.quantized = any(hasattr(layer, "_dequantize") for layer in cache.layers)
        cache.sift_state = state
    else:
        state.config = config
        state.count_in(totals)
    if not isinstance(cache, SiftingCache):
        if not getattr(cache, "offloading", False):
            for layer in cache.layers:
                if type(layer) is DynamicLayer:
                    layer.__class__ = GrowingLayer
            if cache.layer_class_to_replicate is DynamicLayer:
                cache.layer_class_to_replicate = GrowingLayer
        stock: Any = type(cache)
        cache.__class__ = _sifting_class(stock)  # last: it tells that all of this is done
    return state


def preallocate(cache: Any, num_layers: int, group_size: int) -> None:
    """Create the states of an adopted cache's static layers, before anything is traced.

    Args:
        cache (Cache): as `adopt` took it.
        num_layers: layers of the model; those beyond the cache's share the keys of others.
        group_size: query heads per KV head.
    """
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    layers: list[Any] = cache.layers
    if not layers or not all(isinstance(x, StaticLayer) and x.is_initialized for x in layers):
        return
    held = cache.sift_state.held
    for layer_idx in range(num_layers) if held is None else held:
        values = layers[min(layer_idx, len(layers) - 1)].values
        batch, num_kv_heads = values.shape[:2]
        cache.sift_state.layer(layer_idx, batch, num_kv_heads * group_size, values)
