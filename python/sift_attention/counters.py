"""What the decode steps of one layer did, summed on the device."""

from __future__ import annotations

import os
import threading

import torch
from torch import Tensor
from torch.nn.functional import pad

from .attended import AttendedKeys
from .rows import is_recorded, mark_static

# Why a decode step ran dense, in the order of `Counters.dense`.
DENSE_REASONS = (
    "skipped layer",
    "sliding window",
    "position bias",
    "mask",
    "training",
    "gradients",
    "dropout",
    "dtype",
    "head size",
    "device",
)


# What `Counters.totals` sums, in its order.
ROWS_LOADED, COVERED_MASS, KEYS, ROW_STEPS, CALLS = range(5)

FOLD_EVERY = 64  # steps; summing each by itself would cost more than all other bookkeeping

# Threads that share a model share its counters. One lock for all of them lets counters be copied
# and pickled, and a child process start with it free.
_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
    )


class Counters:
    """Running totals of one layer. Adding never waits for the device; reading does.

    Steps in Python keep their small results and sum them many at a time; compiled steps, and those
    captured in a CUDA graph, add to tensors at once. What the host knows, it counts in Python.
    Steps in Python may run in several threads at once.

    Args:
        num_q_heads: HQ.
        num_kv_heads: HK.
        row_bytes: bytes of one K or V row of one KV head.
        device: device of the layer.

    Attributes:
        calls (int): decode steps through the operator, counted by the host.
        keys (int): attended keys summed over steps and sequences, counted by the host.
        row_steps (int): decode steps summed over sequences, counted by the host.
        totals (Tensor[5], float64): what the device counts, in one tensor so that a compiled step
            needs one kernel for it; the properties name its parts.
        unfitted (Tensor[], int64): heads whose law could not be fitted to the last prompt.
        dense (Tensor[len(DENSE_REASONS)], int64): decode steps that ran dense, by reason.
        newest (tuple or None): of the last step in Python, num_loaded [B, HK] and the probability
            of loaded keys and sinks [B, HQ], float32.
    """

    def __init__(
        self, num_q_heads: int, num_kv_heads: int, row_bytes: int, device: torch.device
    ) -> None:
        self.num_q_heads, self.num_kv_heads = num_q_heads, num_kv_heads
        self.row_bytes = row_bytes
        self.calls = self.keys = self.row_steps = 0
        self.newest: tuple[Tensor, Tensor] | None = None
        self._pending: list[tuple[Tensor, Tensor, Tensor | None]] = []
        with torch.inference_mode(False):
            self.totals = torch.zeros(5, dtype=torch.float64, device=device)
            self.unfitted = torch.zeros((), dtype=torch.int64, device=device)
            self.dense = torch.zeros(len(DENSE_REASONS), dtype=torch.int64, device=device)
        mark_static(*self._tensors())

    @property
    def rows_loaded(self) -> Tensor:
        """Value rows loaded, summed over KV heads (Tensor[], int64)."""
        return self.totals[ROWS_LOADED].long()

    @property
    def covered_mass(self) -> Tensor:
        """Probability of loaded keys and sinks, summed over query heads (Tensor[], float64)."""
        return self.totals[COVERED_MASS]

    @property
    def keys_and_steps(self) -> Tensor:
        """As `keys` and `row_steps`, counted by the device (Tensor[2], float64)."""
        return self.totals[KEYS : ROW_STEPS + 1]

    @property
    def compiled_calls(self) -> Tensor:
        """As `calls`, counted by the device (Tensor[], int64)."""
        return self.totals[CALLS].long()

    def reset(self) -> None:
        """Set every total to zero, in place."""
        with _LOCK:
            self.calls = self.keys = self.row_steps = 0
            self.newest = None
            self._pending.clear()
            for tensor in self._tensors():
                tensor.zero_()

    def add_dense(self, reason: str) -> None:
        """Count one decode step that ran dense.

        Args:
            reason: one of DENSE_REASONS.
        """
        total = self.dense[DENSE_REASONS.index(reason)]
        if is_recorded(total):
            total.add_(1)
        else:
            with _LOCK:
                total.add_(1)

    def add(
        self,
        attended: AttendedKeys | int,
        lse: Tensor,
        kept_mass: Tensor,
        num_loaded: Tensor,
        sinks: Tensor | None = None,
        active: Tensor | None = None,
    ) -> None:
        """Count one call of the operator.

        Args:
            attended: the keys it attended; a number when every sequence attends that many.
            lse (Tensor[B, HQ], float32): as `decode` returns it.
            kept_mass (Tensor[B, HQ], float32): as `decode` returns it.
            num_loaded (Tensor[B, HK], int32): as `decode` returns it.
            sinks (Tensor[HQ], float32, or None): as `decode` took them.
            active (Tensor[B], bool, or None): sequences still generating; None: all.
        """
        if sinks is not None:
            kept_mass = kept_mass + (sinks - lse).exp()
        if active is not None:
            num_loaded, kept_mass = num_loaded * active[:, None], kept_mass * active[:, None]
        keys_and_steps = None if isinstance(attended, int) else attended.keys_and_steps(active)
        if is_recorded(num_loaded):
            self._add_to_totals(num_loaded, kept_mass, keys_and_steps, calls=1)
            return
        with _LOCK:
            if isinstance(attended, int):
                self.keys += attended * num_loaded.shape[0]
                self.row_steps += num_loaded.shape[0]
            self.calls += 1
            self.newest = num_loaded, kept_mass
            self._pending.append((num_loaded, kept_mass, keys_and_steps))
            if len(self._pending) >= FOLD_EVERY:
                self.fold()

    def fold(self) -> None:
        """Bring the tensors up to date."""
        with _LOCK:
            if self._pending:
                pending, self._pending = self._pending, []
                num_loaded, kept_mass, keys_and_steps = zip(*pending, strict=True)
                known = [both for both in keys_and_steps if both is not None]
                self._add_to_totals(
                    torch.cat(num_loaded),
                    torch.cat(kept_mass),
                    torch.stack(known).sum(0) if known else None,
                    calls=0,
                )

    def _add_to_totals(
        self, num_loaded: Tensor, kept_mass: Tensor, keys_and_steps: Tensor | None, calls: int
    ) -> None:
        """Sum all five at once, in a form that a compiler makes one reduction of."""
        rows = pad(num_loaded, (0, kept_mass.shape[1] - num_loaded.shape[1]))  # [B, HQ], too
        index = torch.arange(5, device=rows.device)
        which = index[:, None, None]
        of_heads = torch.where(which == COVERED_MASS, kept_mass.double(), 0.0)
        of_heads = torch.where(which == ROWS_LOADED, rows, of_heads).sum((1, 2))
        if keys_and_steps is not None:
            of_heads = of_heads + pad(keys_and_steps, (KEYS, CALLS - ROW_STEPS))
        self.totals.add_(torch.where(index == CALLS, calls, of_heads))

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.totals, self.unfitted, self.dense
