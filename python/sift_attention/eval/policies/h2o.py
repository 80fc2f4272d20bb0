"""H2O: a cache of heavy hitters, the keys that drew the most attention so far, and recent keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Policy, Read, Rows
from .eviction import CACHE_SHARES, attend_evicting

_QUERIES_AT_ONCE = 128  # of the prompt; bounds the memory that its probabilities take


@dataclass(frozen=True)
class H2O(Policy):
    """Keeps a cache of fixed size; half of it is recent, the other half drew the most attention.

    Every key gathers the probability that all queries gave it, those of the prompt included. After
    the prompt, and after every step, the keys outside the recent half that gathered least are
    evicted for good; evicted keys get no attention and give none.

    Equal halves, and 20 % of the prompt for both, are the defaults of the authors' code
    (`--heavy_ratio` and `--recent_ratio` of 0.1). Where query heads share keys, one cache serves
    the group and adds up the attention of its heads.

    Attributes:
        share (float): size of the cache, as a share of the prompt.
    """

    source = "Zhang et al., 2023, arXiv 2306.14048; code FMInference/H2O"

    share: float

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        num_recent = max(1, round(self.share * rows.start / 2))
        num_heavy = max(1, round(self.share * rows.start) - num_recent)
        gathered = torch.zeros_like(rows.k[:, 0])
        for tokens in torch.arange(rows.start, device=rows.k.device).split(_QUERIES_AT_ONCE):
            end = int(tokens[-1]) + 1
            scores = rows.scores_of(rows.q[:, tokens], rows.k[:end], tokens)
            gathered[:end] += rows.softmax(scores).sum((0, 1))

        evicted = torch.zeros_like(gathered)
        surplus = rows.start - num_recent - num_heavy
        if surplus > 0:
            least = gathered[: rows.start - num_recent].topk(surplus, largest=False).indices
            evicted.index_fill_(0, least, -torch.inf)

        def after_step(token: int, p: Tensor, evicted: Tensor) -> None:
            gathered.add_(p.sum(0))
            if token + 1 > num_recent + num_heavy:  # one more than the cache holds
                older = slice(0, token + 1 - num_recent)
                least = (gathered[older] - evicted[older]).argmin()
                evicted.index_fill_(0, least, -torch.inf)

        return attend_evicting(rows, evicted, after_step)


FAMILIES = {"H2O": [H2O(share) for share in CACHE_SHARES]}
