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

    Rows are added in float64: whatever their number and order, `total` is the exact sum to half a
    unit in the last place of float32. In float32, 100,000 equal rows go astray by 2,400 units.

    An update that fails or is interrupted leaves the sum stale: the next step takes it anew.

    Args:
        batch: B.
        num_kv_heads: HK.
        value_dim: DV.
        device: device of the layer.

    Attributes:
        sums (Tensor[B, HK, DV], float64): the sum.
        count (Tensor[B, 1], int64): keys that it covers.
        num_keys (int): keys in the cache at the last update.
        is_stale (bool): the sum is to be taken anew.
    """

    ROW_TENSORS = ("sums", "count")

    def __init__(self, batch: int, num_kv_heads: int, value_dim: int, device: torch.device) -> None:
        sizes = (batch, num_kv_heads, value_dim)
        with torch.inference_mode(False):
            self.sums = torch.zeros(sizes, dtype=torch.float64, device=device)
            self.count = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        mark_static(self.sums, self.count)
        self.num_keys = 0
        self.is_stale = True

    @property
    def total(self) -> Tensor:
        """The sum as `decode` takes it (Tensor[B, HK, DV], float32)."""
        return self.sums.float()

    def continue_in(self, sums: Tensor, count: Tensor) -> None:
        """Keep `sums` and `count` in these tensors from now on, and believe what they hold."""
        self.sums, self.count, self.is_stale = sums, count, False

    def take(self, v: Tensor, attended: AttendedKeys) -> None:
        """Sum the attended rows of v (Tensor[B, HK, N, DV]) anew."""
        self.is_stale = True
        self.sums.copy_(attended.sum_values(v))
        self.count.copy_(attended.count[:, None])
        self.num_keys, self.is_stale = v.shape[2], False

    def add_newest(self, v: Tensor) -> None:
        """Add the last row of v (Tensor[B, HK, N, DV]), of which every row is attended."""
        num_keys = v.shape[2]
        follows = not self.is_stale and num_keys == self.num_keys + 1
        self.is_stale = True
        if follows:
            self.sums.add_(v.select(2, -1))
        else:
            torch.sum(v, dim=2, dtype=torch.float64, out=self.sums)
        self.count.fill_(num_keys)
        self.num_keys, self.is_stale = num_keys, False

    def add_attended(self, v: Tensor, attended: AttendedKeys) -> Tensor | None:
        """Add the row of the newest attended key; a sequence without one stays as it is.

        Args:
            v (Tensor[B, HK, N, DV]): values.
            attended: the attended keys.

        Returns:
            Tensor[B, 1], bool: where the sum covers the attended keys; None: everywhere.
        """
        grown = v.shape[2] - self.num_keys
        # A mask may admit keys of a cache that does not grow.
        follows = grown == 1 or (grown == 0 and attended.key_mask is not None)
        if self.is_stale or not (follows or is_recorded(v)):
            self.take(v, attended)
            return None
        self.is_stale = True
        covered = self.count == attended.previous
        self.count.add_(attended.has_keys)
        self.sums.unsqueeze(2).add_(attended.newest_row(v))
        if not is_recorded(v):
            self.num_keys = v.shape[2]
        self.is_stale = False
        return covered

    def crop(self, num_keys: int) -> None:
        """Forget the newest keys; the next step sums again."""
        self.is_stale = True
        self.count.sub_(num_keys).clamp_(min=0)
        self.num_keys = max(0, self.num_keys - num_keys)

    def reset(self) -> None:
        """Return to an empty cache, in place."""
        self.is_stale = True
        self.zero_rows()
        self.num_keys, self.is_stale = 0, False
