"""Quest: pages of keys, chosen by an upper bound of their scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Policy, Read, Rows, largest
from .selected import attend_selected, share


@dataclass(frozen=True)
class Quest(Policy):
    """Reads the newest page and the pages whose bound on q . k is largest.

    A page stores the minimum and the maximum of its keys in every dimension; its bound is the sum
    over dimensions of the larger of q times the minimum and q times the maximum. The newest page
    is always read and needs no bound (`quest/utils/controller.py`); the others are complete.

    Every query head chooses its own pages, as the published code does after repeating the keys of
    a group; the group reads the union. Bytes: 2 rows per complete page, then the chosen rows.

    Pages of 16 keys are the paper's; its budgets are 256 to 4096 tokens of 5k to 32k, so here a
    share of the context. Its first two layers of 32 stay dense; here all are treated alike.

    Attributes:
        fraction: share of the pages that a query head reads, the newest included; at least two.
        page_size: keys of a page.
    """

    source = "Tang et al., 2024, arXiv 2406.10774; code mit-han-lab/Quest"

    fraction: float
    page_size: int = 16

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        num_complete = rows.k.shape[0] // self.page_size
        pages = rows.k[: num_complete * self.page_size].unflatten(0, (num_complete, -1))
        q = rows.q[:, rows.start :]
        bounds = q.clamp(min=0.0) @ pages.amax(1).T + q.clamp(max=0.0) @ pages.amin(1).T

        page = torch.arange(rows.k.shape[0], device=rows.k.device) // self.page_size  # [N]
        newest = (rows.lengths - 1) // self.page_size  # [R], also the number of older pages
        older = torch.arange(num_complete, device=page.device) < newest[:, None]
        budget = share(newest + 1, self.fraction) - 1
        chosen = largest(bounds.masked_fill(~older, -torch.inf), budget.clamp(min=1))

        used = rows.attended.new_zeros(len(q), *rows.attended.shape)
        used[..., : num_complete * self.page_size] = chosen.repeat_interleave(self.page_size, -1)
        used |= (page == newest[:, None]) & rows.attended
        return attend_selected(rows, used, summaries=2.0 * newest)


FAMILIES = {"Quest": [Quest(fraction) for fraction in (0.4, 0.12, 0.03)]}
