"""The running sum of the attended value rows, which the mean residual needs."""

from __future__ import annotations

import torch
from torch import Tensor

from .attended import AttendedKeys
from .rows import BatchRows, is_recorded, mark_static


class ValueSum(BatchRows):
    """Sum of V over the keys that the newest query attends, and their number.

    One row joins per decode step. The number tells whether the sum can be trusted: where the host
    sees a jump (the cache was filled elsewhere, or cropped) the sum is taken again; where only the
    device can see it, `add_attended` says so and the step has to be exact.

    Args:
        batch: B.
        num_kv_heads: HK.
        value_dim: DV.
        device: device of the layer.

    Attributes:
        total (Tensor[B, HK, DV], float32): the sum.
        count (Tensor[B, 1], int64): keys that it covers.
    """

    ROW_TENSORS = ("total", "count")

    def __init__(self, batch: int, num_kv_heads: int, value_dim: int, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.total = torch.zeros(batch, num_kv_heads, value_dim, device=device)
            self.count = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        mark_static(self.total, self.count)
        self._capacity = 0  # keys in the cache at the last update
        self.is_stale = True

    def continue_in(self, total: Tensor, count: Tensor) -> None:
        """Keep `total` and `count` in these tensors from now on, and believe what they hold."""
        self.total, self.count, self.is_stale = total, count, False

    def take(self, v: Tensor, attended: AttendedKeys) -> None:
        """Sum the attended rows of v (Tensor[B, HK, N, DV]) anew."""
        self.total.copy_(attended.sum_values(v))
        self.count.copy_(attended.count[:, None])
        self._capacity, self.is_stale = v.shape[2], False

    def add_newest(self, v: Tensor) -> None:
        """Add the last row of v (Tensor[B, HK, N, DV]), of which every row is attended."""
        num_keys = v.shape[2]
        if self.is_stale or num_keys != self._capacity + 1:
            torch.sum(v, dim=2, dtype=torch.float32, out=self.total)
        else:
            self.total.add_(v.select(2, -1))
        self.count.fill_(num_keys)
        self._capacity, self.is_stale = num_keys, False

    def add_attended(self, v: Tensor, attended: AttendedKeys) -> Tensor | None:
        """Add the row of the newest attended key.

        Args:
            v (Tensor[B, HK, N, DV]): values.
            attended: the attended keys.

        Returns:
            Tensor[B, 1], bool: where the sum covers the attended keys; None: everywhere.
        """
        jumped = not is_recorded(v) and not 0 <= v.shape[2] - self._capacity <= 1
        if self.is_stale or jumped:
            self.take(v, attended)
            return None
        covered = self.count == attended.previous
        self.count.add_(1)
        self.total.unsqueeze(2).add_(attended.newest_row(v))
        if not is_recorded(v):
            self._capacity = v.shape[2]
        return covered

    def crop(self, num_keys: int) -> None:
        """Forget the newest keys; the next step sums again."""
        self.count.sub_(num_keys).clamp_(min=0)
        self.is_stale = True

    def reset(self) -> None:
        """Return to an empty cache, in place."""
        self.zero_rows()
        self._capacity, self.is_stale = 0, False
