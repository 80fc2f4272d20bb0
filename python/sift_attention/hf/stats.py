"""What a model's decode steps did: totals and one line per layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from ..counters import DENSE_REASONS, Counters


@dataclass(frozen=True)
class LayerStats:
    """Totals of one layer.

    Attributes:
        decode_calls: decode steps through the operator.
        dense_calls: decode steps that ran dense, by reason.
        keys: keys attended, counted for every step, sequence and KV head.
        rows_loaded: value rows loaded, counted likewise.
        head_steps: decode steps, counted for every sequence and query head.
        dropped: probability mass of the keys whose value row was not loaded, summed likewise.
        bytes_read: K rows scored and V rows loaded.
        bytes_dense: what dense attention would have read in these steps.
        unfitted_heads: query heads, over sequences, that decode exactly because no law could be
            fitted to the last prompt.

    Rows of a batch that `generate` has finished do not count.
    """

    decode_calls: int = 0
    dense_calls: dict[str, int] = field(default_factory=dict)
    keys: int = 0
    rows_loaded: int = 0
    head_steps: int = 0
    dropped: float = 0.0
    bytes_read: int = 0
    bytes_dense: int = 0
    unfitted_heads: int = 0

    @property
    def loaded_fraction(self) -> float:
        """Value rows loaded per key attended."""
        return self.rows_loaded / self.keys if self.keys else 0.0

    @property
    def dropped_mass(self) -> float:
        """Probability mass whose value rows were not loaded, on average."""
        return self.dropped / self.head_steps if self.head_steps else 0.0

    @classmethod
    def of(cls, counters: Counters) -> LayerStats:
        """Read counters; waits for the device."""
        counters.fold()
        keys, row_steps = (round(total) for total in counters.keys_and_steps.tolist())
        keys = (keys + counters.keys) * counters.num_kv_heads
        head_steps = (row_steps + counters.row_steps) * counters.num_q_heads
        rows_loaded = int(counters.rows_loaded.item())
        dense = zip(DENSE_REASONS, counters.dense.tolist(), strict=True)
        return cls(
            decode_calls=counters.calls + int(counters.compiled_calls.item()),
            dense_calls={reason: calls for reason, calls in dense if calls},
            keys=keys,
            rows_loaded=rows_loaded,
            head_steps=head_steps,
            dropped=head_steps - counters.covered_mass.item(),
            bytes_read=(keys + rows_loaded) * counters.row_bytes,
            bytes_dense=2 * keys * counters.row_bytes,
            unfitted_heads=int(counters.unfitted.item()),
        )

    @classmethod
    def sum(cls, parts: Iterable[LayerStats]) -> LayerStats:
        """The totals of several."""
        total = cls()
        for part in parts:
            dense = {
                reason: total.dense_calls.get(reason, 0) + part.dense_calls.get(reason, 0)
                for reason in (*total.dense_calls, *part.dense_calls)
            }
            numbers = {
                name: getattr(total, name) + getattr(part, name)
                for name in cls.__dataclass_fields__
                if name != "dense_calls"
            }
            total = cls(dense_calls=dense, **numbers)
        return total


@dataclass(frozen=True)
class SiftStats:
    """Totals of a model; prints as a table.

    Attributes:
        layers: totals by `layer_idx`.
        total: totals of all layers.
    """

    layers: dict[int, LayerStats]
    total: LayerStats

    def __str__(self) -> str:
        """One line per layer, one for all, one for each reason to decode dense or exactly."""
        lines = [
            f"{'layer':>6} {'decode':>8} {'dense':>7} {'keys':>14} {'V rows loaded':>14} "
            f"{'loaded':>8} {'dropped mass':>13} {'GB read':>9} {'of dense':>9}"
        ]
        for name, layer in [*self.layers.items(), ("all", self.total)]:
            of_dense = layer.bytes_read / layer.bytes_dense if layer.bytes_dense else 0.0
            lines.append(
                f"{name:>6} {layer.decode_calls:>8} {sum(layer.dense_calls.values()):>7} "
                f"{layer.keys:>14} {layer.rows_loaded:>14} {layer.loaded_fraction:>8.1%} "
                f"{layer.dropped_mass:>13.5f} {layer.bytes_read / 1e9:>9.3f} {of_dense:>9.1%}"
            )
        for reason, calls in self.total.dense_calls.items():
            lines.append(f"dense, {reason}: {calls} calls")
        if self.total.unfitted_heads:
            lines.append(f"exact for want of a fit: {self.total.unfitted_heads} heads")
        return "\n".join(lines)


class Totals:
    """The counters of a model's layers, shared by all of its caches.

    Args:
        owner: a number that tells the model from others; None: of no model in particular.
    """

    def __init__(self, owner: int | None = None) -> None:
        self.owner = owner
        self._counters: dict[tuple[int, torch.device], Counters] = {}

    def counters(
        self,
        layer_idx: int,
        num_q_heads: int,
        num_kv_heads: int,
        row_bytes: int,
        device: torch.device,
    ) -> Counters:
        """The counters of a layer on a device; see Counters."""
        key = (layer_idx, device)
        if key not in self._counters:
            new = Counters(num_q_heads, num_kv_heads, row_bytes, device)
            self._counters.setdefault(key, new)  # another thread may have been faster
        return self._counters[key]

    def reset(self) -> None:
        """Set every counter to zero, in place."""
        for counters in list(self._counters.values()):
            counters.reset()

    def stats(self) -> SiftStats:
        """Read the counters; waits for the device."""
        parts: dict[int, list[LayerStats]] = {}
        for (layer_idx, _), counters in list(self._counters.items()):
            parts.setdefault(layer_idx, []).append(LayerStats.of(counters))
        layers = {layer_idx: LayerStats.sum(parts[layer_idx]) for layer_idx in sorted(parts)}
        return SiftStats(layers, LayerStats.sum(layers.values()))
