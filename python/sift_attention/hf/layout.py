"""The sizes of an exported decoder, and the state that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from ..config import SiftConfig
from .attention import Forward
from .cache import adopt
from .stats import Totals


@dataclass(frozen=True)
class Layout:
    """The sizes of a program; its state consists of four tensors for each layer, layer after layer.

    | tensor | shape, dtype                 | holds                                   |
    |--------|------------------------------|-----------------------------------------|
    | keys   | [B, HK, N, D], dtype         | keys of the tokens so far               |
    | values | [B, HK, N, D], dtype         | their values                            |
    | v_sum  | [B, HK, D], float64          | sum of the value rows that are attended |
    | count  | [B, 1], int64                | how many keys `v_sum` covers            |

    Attributes:
        batch: B.
        num_layers: layers.
        num_q_heads: HQ.
        num_kv_heads: HK.
        head_dim: D.
        vocab_size: V.
        dtype: of keys and values.
        device: of all tensors.
    """

    batch: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    dtype: torch.dtype
    device: torch.device

    def empty_state(self, capacity: int) -> list[Tensor]:
        """The state before the first token.

        Args:
            capacity: N, tokens that the cache has room for; 3 at least.

        Returns:
            list[Tensor]: `4 * num_layers` tensors of zeros.
        """
        heads = (self.batch, self.num_kv_heads)
        shapes: list[tuple[tuple[int, ...], torch.dtype]] = [
            ((*heads, capacity, self.head_dim), self.dtype),
            ((*heads, capacity, self.head_dim), self.dtype),
            ((*heads, self.head_dim), torch.float64),
            ((self.batch, 1), torch.int64),
        ]
        return [
            torch.zeros(shape, dtype=dtype, device=self.device)
            for _ in range(self.num_layers)
            for shape, dtype in shapes
        ]

    def metadata(self) -> dict[str, str]:
        """All of it in words, for a program that loads the package."""
        sizes = {name: str(getattr(self, name)) for name in self.__dataclass_fields__}
        return {**sizes, "dtype": str(self.dtype).removeprefix("torch.")}


def probe(model: PreTrainedModel, config: SiftConfig, batch: int) -> Layout:
    """Let one decode step of a model show whether all layers sift, and the sizes of their state.

    Args:
        model: enabled to sift.
        config: what its layers do.
        batch: B.

    Returns:
        Layout: of the state of a program.

    Raises:
        ValueError: a layer does not keep all keys, shares those of another, has another shape, or
            decodes dense.
    """
    name = type(model).__name__
    cache = StaticCache(config=model.config, max_cache_len=2)
    totals = Totals()
    states = adopt(cache, config, totals)
    layers: list[Any] = cache.layers
    sliding = sorted(states.sliding)
    if sliding or not all(type(layer) is StaticLayer for layer in layers):
        raise ValueError(
            "export: every layer of model must keep the keys of all tokens, got sliding windows in "
            f"layers {sliding} of {name}"
        )
    token = torch.zeros(batch, 1, dtype=torch.int64, device=model.device)
    forward = Forward(states)
    out = model(input_ids=token, past_key_values=cache, use_cache=True, sift_state=forward)
    for layer_idx, layer in totals.stats().layers.items():
        for reason in layer.dense_calls.keys() - {"skipped layer"}:
            raise ValueError(
                "export: every layer of model must be one that the operator decodes, "
                f"got layer {layer_idx} of {name}: {reason}"
            )
    layouts = {
        Layout(
            batch=batch,
            num_layers=len(layers),
            num_q_heads=states.layers[layer_idx].log_alpha.shape[1],
            num_kv_heads=layer.keys.shape[1],
            head_dim=layer.keys.shape[3],
            vocab_size=out.logits.shape[2],
            dtype=layer.keys.dtype,
            device=layer.keys.device,
        )
        for layer_idx, layer in enumerate(layers)
        if layer_idx in states.layers
    }
    if len(layouts) != 1 or len(states.layers) != len(layers):
        raise ValueError(
            "export: every layer of model must attend to its own keys, all of one shape, "
            f"got {name}"
        )
    return layouts.pop()
