"""Which keys one forward attends, worked out once and shared by all layers that see the mask."""

from __future__ import annotations

import torch
from torch import Tensor


class AttendedKeys:
    """The attended keys of the newest query row, and how their number grew over the query rows.

    Everything stays on the mask's device and is computed at most once. Without a mask, query row
    i of R attends keys 0..i of a cache that began empty (R > 1), or every key (R = 1).

    Args:
        mask (Tensor[1 or B, 1, R, N], bool, or None): True where a query row attends a key.
        batch: B.
        num_rows: R, query rows of this forward.
        capacity: N, keys in the cache.
        device: where to compute.

    Attributes:
        capacity (int): N.
        device (torch.device): where the tensors are.
        num_keys (int): attended keys lie in [0, num_keys).
        key_mask (Tensor[B, N] or None, bool): keys that the newest row attends; None: all of them.
    """

    def __init__(
        self, mask: Tensor | None, batch: int, num_rows: int, capacity: int, device: torch.device
    ) -> None:
        self.capacity = capacity
        self.num_keys = num_rows if mask is None and num_rows > 1 else capacity
        self.key_mask: Tensor | None = None
        self._rows: Tensor | None = None
        if mask is not None:
            self._rows = mask[:, 0].expand(batch, -1, -1)
            newest = self._rows.select(1, -1)
            self.key_mask = newest if newest.stride(1) == 1 else newest.contiguous()
        self._batch, self._num_rows, self.device = batch, num_rows, device
        self._count: Tensor | None = None
        self._previous: Tensor | None = None
        self._has_keys: Tensor | None = None
        self._newest: Tensor | None = None
        self._row_lengths: Tensor | None = None
        self._keys_and_steps: Tensor | None = None
        self._enough: tuple[int, Tensor] | None = None

    @staticmethod
    def accepts(mask: Tensor, batch: int, num_rows: int, capacity: int) -> bool:
        """Whether a mask is a boolean [1 or B, 1, R, N]; others have no count of keys per row."""
        return (
            mask.dtype == torch.bool
            and mask.shape[1:] == (1, num_rows, capacity)
            and mask.shape[0] in (1, batch)
        )

    @classmethod
    def of(
        cls, mask: Tensor | AttendedKeys | None, batch: int, num_rows: int, k: Tensor
    ) -> AttendedKeys:
        """The keys of k (Tensor[B, HK, N, D]) that a mask attends; an AttendedKeys is itself.

        Raises:
            ValueError: `accepts` refuses the mask.
        """
        if isinstance(mask, AttendedKeys):
            return mask
        if mask is not None and not cls.accepts(mask, batch, num_rows, k.shape[2]):
            shape, got = (batch, 1, num_rows, k.shape[2]), tuple(mask.shape)
            raise ValueError(f"SiftState: mask must be bool {shape}, got {mask.dtype} {got}")
        return cls(mask, batch, num_rows, k.shape[2], k.device)

    @property
    def count(self) -> Tensor:
        """S, the number of keys that the newest row attends (Tensor[B], int64)."""
        if self._count is None:
            if self.key_mask is None:
                self._count = torch.full((self._batch,), self.num_keys, device=self.device)
            else:
                self._count = self.key_mask.sum(-1)
        return self._count

    @property
    def previous(self) -> Tensor:
        """S - 1: what a running sum covers before the newest key joins (Tensor[B, 1], int64)."""
        if self._previous is None:
            self._previous = self.count[:, None] - 1
        return self._previous

    @property
    def has_keys(self) -> Tensor:
        """Which sequences attend a key at all (Tensor[B, 1], bool)."""
        if self._has_keys is None:
            self._has_keys = self.count[:, None] > 0
        return self._has_keys

    @property
    def row_lengths(self) -> Tensor:
        """How many keys each query row attends (Tensor[B, R], int64)."""
        if self._row_lengths is None:
            if self._rows is None:
                first = self.num_keys - self._num_rows + 1
                lengths = torch.arange(first, self.num_keys + 1, device=self.device)
                self._row_lengths = lengths.expand(self._batch, -1)
            else:
                self._row_lengths = self._rows.sum(-1)
        return self._row_lengths

    @property
    def begins(self) -> Tensor:
        """Sequences that begin here: the first row attends itself at most (Tensor[B], bool)."""
        return self.row_lengths[:, 0] <= 1

    def at_least(self, min_keys: int) -> Tensor:
        """Which sequences attend at least `min_keys` keys (Tensor[B, 1], bool)."""
        if self._enough is None or self._enough[0] != min_keys:
            self._enough = (min_keys, (self.count >= min_keys)[:, None])
        return self._enough[1]

    def keys_and_steps(self, active: Tensor | None) -> Tensor:
        """Attended keys, and sequences that attend them, for the totals of a decode step.

        Args:
            active (Tensor[B], bool, or None): sequences that count; None: all.

        Returns:
            Tensor[2]: float64.
        """
        if self._keys_and_steps is None:
            counted = torch.ones_like(self.count) if active is None else active
            both = torch.stack([self.count * counted, counted])
            self._keys_and_steps = both.sum(1, dtype=torch.float64)
        return self._keys_and_steps

    def newest_row(self, v: Tensor) -> Tensor:
        """The value row of the last attended key.

        Args:
            v (Tensor[B, HK, N, DV]): values.

        Returns:
            Tensor[B, HK, 1, DV]: zeros where no key is attended.
        """
        if self.key_mask is None:
            return v[:, :, self.num_keys - 1 : self.num_keys]
        rows = (v.shape[0], v.shape[1], 1, v.shape[3])
        if self._newest is None or self._newest.shape != rows:
            positions = torch.arange(self.key_mask.shape[1], device=self.device)
            newest = torch.where(self.key_mask, positions, 0).amax(-1)
            self._newest = newest[:, None, None, None].expand(rows)
        return v.gather(2, self._newest).masked_fill(~self.has_keys[:, :, None, None], 0.0)

    def sum_values(self, v: Tensor) -> Tensor:
        """The sum of the attended value rows.

        Args:
            v (Tensor[B, HK, N, DV]): values.

        Returns:
            Tensor[B, HK, DV]: float64.
        """
        if self.key_mask is not None:
            v = v.masked_fill(~self.key_mask[:, None, :, None], 0.0)
        return v[:, :, : self.num_keys].sum(2, dtype=torch.float64)
