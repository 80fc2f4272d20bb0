"""BLASST: skip tiles of keys whose largest score is far below the largest so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch.nn.functional import pad

from .base import Policy, Read, Rows
from .eviction import attend_remaining


@dataclass(frozen=True)
class BLASST(Policy):
    """Skips a tile where exp(its largest score - the largest so far) < scale / S in every head.

    Keys are visited in order, as one pass of a flash kernel does; "so far" includes the tile, so
    the first is never skipped. A skipped tile's values are not read, and its scores do not enter
    the denominator either: neither has the kernel a use for them then.

    The paper's threshold is lambda = scale / S, S the context length, with one scale per model and
    phase that is calibrated to the wanted sparsity; tiles have 128 or 64 keys. All query heads that
    share keys must agree (decode kernels of TensorRT-LLM). The smaller tiles below are not the
    paper's: 1,024 keys are but 16 tiles of 64, nearly all of which matter to some head, so that
    even lambda = 1 reads most of them.

    Attributes:
        scale (float): lambda times S; lambda is at most 1.
        tile (int): keys of a tile.
    """

    source = "Yuan et al., 2025, arXiv 2512.12087; NVIDIA/TensorRT-LLM, skip softmax"

    scale: float
    tile: int = 64

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        num_keys = rows.k.shape[0]
        num_tiles = math.ceil(num_keys / self.tile)
        # Ratios of probabilities are those of exponentials of scores.
        p = pad(rows.p, (0, num_tiles * self.tile - num_keys))
        largest = p.unflatten(-1, (num_tiles, self.tile)).amax(-1)
        least = (self.scale / rows.lengths).clamp(max=1.0)[:, None] * largest.cummax(-1).values
        is_read = (largest >= least).any(0)
        used = is_read.repeat_interleave(self.tile, dim=-1)[:, :num_keys]
        return replace(attend_remaining(rows, used), k_rows=rows.lengths.float())


FAMILIES = {
    "BLASST": [
        BLASST(1024.0),
        BLASST(1024.0, tile=16),
        BLASST(1024.0, tile=8),
    ]
}
