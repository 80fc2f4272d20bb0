"""What the decode steps of one layer did, summed on the device."""

from __future__ import annotations

import os
import threading

import torch
from torch import Tensor

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
        compiled_calls (Tensor[], int64): as `calls`, counted by the device.
        keys_and_steps (Tensor[2], float64): as `keys` and `row_steps`, counted by the device.
        rows_loaded (Tensor[], int64): value rows loaded, summed over KV heads.
        covered_mass (Tensor[], float64): probability of loaded keys and sinks, summed over heads.
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
            self.compiled_calls = torch.zeros((), dtype=torch.int64, device=device)
            self.keys_and_steps = torch.zeros(2, dtype=torch.float64, device=device)
            self.rows_loaded = torch.zeros((), dtype=torch.int64, device=device)
            self.covered_mass = torch.zeros((), dtype=torch.float64, device=device)
            self.unfitted = torch.zeros((), dtype=torch.int64, device=device)
            self.dense = torch.zeros(len(DENSE_REASONS), dtype=torch.int64, device=device)
        mark_static(*self._tensors())

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
            self.compiled_calls.add_(1)
            self._add_sums([num_loaded], [kept_mass], [keys_and_steps])
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
                num_loaded, kept_mass, keys_and_steps = map(list, zip(*pending, strict=True))
                self._add_sums(num_loaded, kept_mass, keys_and_steps)

    def _add_sums(
        self, num_loaded: list[Tensor], kept_mass: list[Tensor], keys_and_steps: list[Tensor | None]
    ) -> None:
        self.rows_loaded.add_(torch.cat(num_loaded).sum())
        self.covered_mass.add_(torch.cat(kept_mass).sum(dtype=torch.float64))
        known = [both for both in keys_and_steps if both is not None]
        if known:
            self.keys_and_steps.add_(torch.stack(known).sum(0))

    def _tensors(self) -> tuple[Tensor, ...]:
        return (
            self.compiled_calls,
            self.keys_and_steps,
            self.rows_loaded,
            self.covered_mass,
            self.unfitted,
            self.dense,
        )
