"""StreamingLLM: the first few tokens and a window of the last ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Policy, Read, Rows
from .eviction import CACHE_SHARES, attend_remaining


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Keeps `num_sinks` initial tokens and fills the rest of a cache of fixed size with the latest.

    Four initial tokens are the paper's. Its positions count within the cache, so that
    a text may outgrow the context; here no text does, and keys keep the rotation of their place in
    the text.

    Attributes:
        share (float): size of the cache, as a share of the prompt.
        num_sinks (int): initial tokens that are never evicted.
    """

    source = "Xiao et al., 2023, arXiv 2309.17453; code mit-han-lab/streaming-llm"

    share: float
    num_sinks: int = 4

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        window = max(1, round(self.share * rows.start) - self.num_sinks)
        keys = torch.arange(rows.k.shape[0], device=rows.k.device)
        is_recent = keys >= rows.lengths[:, None] - window
        return attend_remaining(rows, is_recent | (keys < self.num_sinks))


FAMILIES = {"StreamingLLM": [StreamingLLM(share) for share in CACHE_SHARES]}
