"""The attention function that transformers calls under the name "sift"."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..attended import AttendedKeys
from ..support import obstacle
from .cache import CacheState

NAME = "sift"


class Forward:
    """What one forward of a model shares between its layers; lives as long as the forward.

    Args:
        cache: states of the cache in use.
        active (Tensor[B], bool, or None): sequences that still generate; None: all.
    """

    def __init__(self, cache: CacheState, active: Tensor | None = None) -> None:
        self.cache = cache
        self.active = active
        self._mask: Tensor | None = None
        self._attended: AttendedKeys | None = None

    def attended(self, mask: Tensor | None, key: Tensor, num_rows: int) -> AttendedKeys | None:
        """The keys that a mask attends, worked out for the first layer that shows it.

        Returns:
            AttendedKeys or None: None where a mask has no count of keys per row.
        """
        known = self._attended
        capacity = key.shape[2]
        if (
            known is not None
            and mask is self._mask
            and known.capacity == capacity
            and known.device == key.device  # layers may lie on several
        ):
            return known
        if mask is not None and not AttendedKeys.accepts(mask, key.shape[0], num_rows, capacity):
            return None
        self._mask = mask
        self._attended = AttendedKeys(mask, key.shape[0], num_rows, capacity, key.device)
        return self._attended


def sift_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one layer: sifted for one query token, dense otherwise.

    Args:
        module: the layer's attention module.
        query (Tensor[B, HQ, R, D]): queries, any strides with a last stride of 1.
        key (Tensor[B, HK, N, D]): keys after the cache took the new ones.
        value (Tensor[B, HK, N, DV]): values likewise.
        attention_mask (Tensor[B, 1, R, N], bool or additive, or None): attended keys.
        scaling: factor of the scores; None: 1/sqrt(D).
        dropout: of the probabilities, while training.
        **kwargs: of the model; `sift_state` is the Forward that `enable` adds.

    Returns:
        tuple: output [B, R, HQ, DV], and None.
    """
    forward: Forward | None = kwargs.pop("sift_state", None)
    if forward is None and isinstance(kwargs.get("kwargs"), dict):  # pipeline parallel nests them
        forward = kwargs["kwargs"].get("sift_state")
    # Cross-attention shares layer_idx and also has one query token, but is not causal.
    is_causal = getattr(module, "is_causal", False) is True and kwargs.get("is_causal") is not False
    if forward is None or not is_causal:
        if is_causal and query.shape[2] == 1:
            _warn_unreached()
        return dense(module, query, key, value, attention_mask, scaling, dropout, kwargs)

    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    batch, num_q_heads, num_rows, _ = query.shape
    state = forward.cache.layer(layer_idx, batch, num_q_heads, value)
    reason = why_dense(module, layer_idx, forward.cache, kwargs) or obstacle(query, key, value)
    attended = None
    # Without a mask, the state of a single row knows all lengths from the shapes.
    if reason is None and (
        attention_mask is not None or num_rows > 1 or forward.active is not None
    ):
        attended = forward.attended(attention_mask, key, num_rows)
        reason = "mask" if attended is None else None
    softcap, sinks = kwargs.get("softcap") or 0.0, kwargs.get("s_aux")
    active = None if forward.active is None else forward.active.to(query.device)
    if reason is None and num_rows == 1:
        out = state.decode(
            query.squeeze(2),
            key,
            value,
            attended,
            scale=scaling,
            softcap=softcap,
            sinks=sinks,
            active=active,
        )
        return out.unsqueeze(1), None
    if reason is None:
        state.observe(query, key, value, attended, scale=scaling, softcap=softcap, sinks=sinks)
    else:
        state.skip(reason, query, value)
    return dense(module, query, key, value, attention_mask, scaling, dropout, kwargs)


def why_dense(
    module: nn.Module, layer_idx: int, cache: CacheState, kwargs: dict[str, Any]
) -> str | None:
    """One of `counters.DENSE_REASONS`, or None where this layer may sift."""
    if layer_idx in cache.config.skip_layers:
        return "skipped layer"
    if kwargs.get("sliding_window") is not None or layer_idx in cache.sliding:
        return "sliding window"
    if kwargs.get("position_bias") is not None:
        return "position bias"
    return "training" if module.training else None


def dense(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """SDPA; the model's eager attention where softcap or sinks, which SDPA would drop, matter."""
    if kwargs.get("softcap") is None and kwargs.get("s_aux") is None:
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
        )
    num_rows = query.shape[2]
    if mask is None and num_rows > 1:  # always an empty cache: causal from the upper left
        key, value = key[:, :, :num_rows], value[:, :, :num_rows]
        mask = torch.ones(num_rows, num_rows, dtype=torch.bool, device=query.device).tril()
        mask = mask[None, None]
    if mask is not None and mask.dtype == torch.bool:
        hidden = torch.finfo(query.dtype).min
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, hidden)
    eager = eager_attention(type(module))
    out, _ = eager(module, query, key, value, mask, scaling=scaling, dropout=dropout, **kwargs)
    return out, None


def eager_attention(attention_class: type) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The eager attention of a model, found beside the class of its attention modules.

    FSDP and parametrizations derive from that class in modules of their own.
    """
    for base in attention_class.__mro__:
        eager = getattr(sys.modules.get(base.__module__), "eager_attention_forward", None)
        if eager is not None:
            return eager  # type: ignore[no-any-return]
    raise NotImplementedError(
        "sift_attention: softcap and sinks need the model's eager_attention_forward, got none "
        f"beside {attention_class.__name__}"
    )


def _warn_unreached() -> None:
    if not torch.compiler.is_compiling():
        warnings.warn(
            'attn_implementation="sift" decodes dense: call the model that '
            "sift_attention.hf.enable was given, with a cache, and not a module inside it",
            stacklevel=3,
        )


def raise_unsupported(*args: Any, **kwargs: Any) -> NoReturn:
    """Stand in for continuous batching, which would decode without masks."""
    raise NotImplementedError(
        "sift_attention: continuous batching is not supported; use generate(), or another "
        "attn_implementation"
    )


AttentionInterface.register(NAME, sift_attention_forward)
AttentionInterface.register(f"paged|{NAME}", raise_unsupported)
AttentionMaskInterface.register(NAME, sdpa_mask)
