"""CORM: evict the keys that none of the recent queries found important."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Policy, Read, Rows, any_of
from .eviction import attend_evicting


@dataclass(frozen=True)
class CORM(Policy):
    """Evicts a key for good once the last `window` queries all gave it less than `factor / t`.

    t is the number of keys that a query has behind it, itself included; queries of the prompt
    count. The latest `window` keys are never evicted. The cache is as large as it has to be.

    A threshold of 1 / t and windows of 256, for contexts of some 4,000 tokens, are taken to be the
    paper's; a window of 1/16 of the prompt is that proportion. That leaves much to read where heads
    share keys, since a key stays if any of them finds it important. Larger factors, which are not
    the paper's, reach smaller budgets, and lose less than shorter windows do.

    NOTE: only the abstract was at hand; threshold and windows were not checked against the paper.

    Attributes:
        factor (float): times uniform attention from which a key is important.
        window (float): queries that are asked, and keys too recent to evict, as a share of the
            prompt.
    """

    source = "Dai et al., 2024, arXiv 2404.15949"

    factor: float = 1.0
    window: float = 1 / 16

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        window = max(1, round(self.window * rows.start))
        keys = torch.arange(rows.k.shape[0], device=rows.k.device)
        queries = keys[max(0, rows.start - window) : rows.start]
        important = self._important(rows.probabilities(queries), queries[:, None] + 1)
        # The last query that found a key important; so early that all forgot it where none did.
        last = torch.where(important, queries[:, None], -window).amax(0)

        def evict(token: int, evicted: Tensor) -> None:
            older = slice(0, max(0, token + 1 - window))
            evicted[older].masked_fill_(last[older] <= token - window, -torch.inf)

        def after_step(token: int, p: Tensor, evicted: Tensor) -> None:
            last.masked_fill_(self._important(p, token + 1), token)
            evict(token, evicted)

        evicted = torch.zeros_like(rows.k[:, 0])
        evict(rows.start - 1, evicted)
        return attend_evicting(rows, evicted, after_step)

    def _important(self, p: Tensor, num_keys: Tensor | int) -> Tensor:
        """Whether any head gives a key enough of its p [G, ..., N]: bool [..., N]."""
        return any_of(p >= self.factor / num_keys, 0)


FAMILIES = {"CORM": [CORM(), CORM(4.0), CORM(16.0, window=1 / 64)]}
