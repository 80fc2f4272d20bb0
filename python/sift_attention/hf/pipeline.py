"""Caches of which this process fills some layers, in a pipeline of several processes."""

from __future__ import annotations

from typing import Any


def held_layers(model: Any) -> range | None:
    """The layers that this process holds of a model that transformers split; None: all."""
    stage = getattr(model, "_pp_stage", None)
    if stage is None:
        return None
    num_layers = model.config.get_text_config().num_hidden_layers
    return range(*stage.layer_range_for_rank(stage.pp_rank, num_layers))


class PipelinedCache:
    """Mixed into a cache's class: answers for a layer held here where it is asked for another.

    Models ask the first layer, or the first of a kind, how many keys there are, for positions and
    masks. Where another process holds that layer, the stock cache says that there are none.
    """

    sift_state: Any

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Tokens in a layer."""
        return super().get_seq_length(self._held(layer_idx))  # type: ignore[misc]

    def get_mask_sizes(self, query: Any, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys that queries in a layer will see."""
        return super().get_mask_sizes(query, self._held(layer_idx))  # type: ignore[misc,no-any-return]

    def _held(self, layer_idx: int) -> int:
        held: range | None = self.sift_state.held
        sliding: frozenset[int] = self.sift_state.sliding
        if not held or layer_idx in held:
            return layer_idx
        slides = layer_idx in sliding
        return next((other for other in held if (other in sliding) == slides), held[0])
