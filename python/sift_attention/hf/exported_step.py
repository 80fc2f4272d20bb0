"""One forward of a decoder as torch.export traces it: all that lasts is an argument."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, StaticCache

from ..config import SiftConfig
from ..state import SiftState
from .attention import Forward
from .cache import CacheState
from .layout import Layout


class ExportedStep(nn.Module):
    """One forward of a model whose cache and sifting states are arguments.

    Args:
        model: enabled to sift.
        config: what its layers do.
        layout: of the state.
    """

    def __init__(self, model: PreTrainedModel, config: SiftConfig, layout: Layout) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.layout = layout
        self._takes_position = "cache_position" in inspect.signature(model.forward).parameters

    def forward(
        self, tokens: Tensor, position: Tensor, padding: Tensor, state: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `export`."""
        capacity = state[0].shape[2]
        rows = position + torch.arange(tokens.shape[1], device=tokens.device)
        slots = torch.arange(capacity, device=tokens.device)
        mask = (slots >= padding[:, None, None]) & (slots <= rows[:, None])
        cache = StaticCache(config=self.model.config, max_cache_len=capacity)
        states = CacheState(self.config, None)
        for layer_idx, layer in enumerate(cache.layers):
            keys, values, v_sum, count = state[4 * layer_idx : 4 * layer_idx + 4]
            _fill(layer, keys, values, position)
            states.layers[layer_idx] = self._sift_state(v_sum, count)
        options = {"cache_position": rows} if self._takes_position else {}
        out = self.model(
            input_ids=tokens,
            attention_mask=mask[:, None],
            position_ids=(rows - padding[:, None]).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            sift_state=Forward(states),
            **options,
        )
        rows_loaded = [layer.counters.rows_loaded for layer in states.layers.values()]
        return out.logits[:, -1], torch.stack(rows_loaded)

    def _sift_state(self, v_sum: Tensor, count: Tensor) -> SiftState:
        layout = self.layout
        state = SiftState(self.config)
        state.allocate(
            layout.batch,
            layout.num_q_heads,
            layout.num_kv_heads,
            layout.head_dim,
            layout.dtype,
            v_sum.device,
        )
        state.values.continue_in(v_sum, count)
        return state


def _fill(layer: Any, keys: Tensor, values: Tensor, position: Tensor) -> None:
    """Let a static cache layer keep its keys and values in the tensors of the caller."""
    layer.keys, layer.values = keys, values
    layer.dtype, layer.device = keys.dtype, keys.device
    layer.cumulative_length = position.clone()  # the layer advances it
    layer.is_initialized = True
