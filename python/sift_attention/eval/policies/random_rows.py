"""Random rows: what a policy must beat to show that its choice of rows means something."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Policy, Read, Rows, attend, largest
from .selected import share


@dataclass(frozen=True)
class RandomRows(Policy):
    """Reads the newest row and others at random, a fixed share of the attended keys in all.

    Every step draws anew, once for the heads that share keys. The mean of the values stands in for
    the other rows, as in `Sift`, so that the two differ in the choice of the rows only.

    Attributes:
        fraction (float): the share.
        seed (int): of the draws, which follow from it, the layer, the head and the number of keys.
    """

    source = "chance"

    fraction: float
    seed: int = 0

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        # The generator heeds the low 32 bits of its seed only.
        mixed = (self.seed * 1_000_003 + rows.layer) * 1009 + rows.head
        generator = torch.Generator().manual_seed(mixed % 2**32)
        # A row of numbers per token, whatever the number of steps: a token always draws alike.
        num_keys = rows.k.shape[0]
        drawn = torch.rand(num_keys, num_keys, generator=generator)[rows.start :].to(rows.k.device)
        drawn.masked_fill_(~rows.attended, -torch.inf)
        drawn.scatter_(-1, rows.tokens[:, None], torch.inf)
        used = largest(drawn, share(rows.lengths, self.fraction))
        return attend(rows, used[None], "mean")


FAMILIES = {"random rows": [RandomRows(fraction) for fraction in (0.3, 0.12, 0.04)]}
