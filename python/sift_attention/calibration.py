"""The power law of one layer, fitted to quantiles of the prompt's exact probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import ops
from .attended import AttendedKeys
from .config import SiftConfig
from .rows import BatchRows, mark_static

SHORTEST_SAMPLE = 32  # keys; the first prompt_rows samples span a factor of 4 from here
LONGEST_SAMPLE = 1 << 22  # keys


def sample_grid(prompt_rows: int) -> list[int]:
    """Lengths at which prompts are sampled: `prompt_rows` for every factor of 4.

    The grid is absolute, so that a prompt read in chunks, continued or padded is sampled at the
    same lengths as one read at once.
    """
    if prompt_rows == 0:
        return []
    ratio = 4.0 ** (1.0 / prompt_rows)
    grid: list[int] = []
    length = float(SHORTEST_SAMPLE)
    while length < LONGEST_SAMPLE:
        if not grid or round(length) > grid[-1]:
            grid.append(round(length))
        length *= ratio
    return grid


class Calibration(BatchRows):
    """Samples (length, quantile) of one layer and the power law fitted to them.

    Args:
        config: threshold "quantile".
        batch: B.
        num_q_heads: HQ.
        device: device of the layer.

    Attributes:
        lengths (Tensor[B, R], int32): length of each sample; 0: no sample yet. The columns are the
            grid of prompt lengths, then the warm-up steps, then one that never holds a sample.
        quantiles (Tensor[B, HQ, R], float32): quantile of the exact probabilities at that length.
        fitted (Tensor[B, HQ], bool): which heads have a fit.
        fitted_count (Tensor[B], int64): attended keys when the fit was last made.
        is_decoding (Tensor[B], bool): a step was decoded; prompts now leave finished fits alone.
    """

    ROW_TENSORS = ("lengths", "quantiles", "fitted", "fitted_count", "is_decoding")

    def __init__(
        self, config: SiftConfig, batch: int, num_q_heads: int, device: torch.device
    ) -> None:
        self._config = config
        self._lengths_in_grid = sample_grid(config.prompt_rows)
        num_columns = len(self._lengths_in_grid) + config.warmup_steps + 1
        with torch.inference_mode(False):
            self._grid = torch.tensor(self._lengths_in_grid, dtype=torch.int64, device=device)
            self.lengths = torch.zeros(batch, num_columns, dtype=torch.int32, device=device)
            self.quantiles = torch.zeros(batch, num_q_heads, num_columns, device=device)
            self.fitted = torch.zeros(batch, num_q_heads, dtype=torch.bool, device=device)
            self.fitted_count = torch.zeros(batch, dtype=torch.int64, device=device)
            self.is_decoding = torch.zeros(batch, dtype=torch.bool, device=device)
        mark_static(self._grid, *(getattr(self, name) for name in self.ROW_TENSORS))

    def crop(self, count: Tensor, law: tuple[Tensor, Tensor]) -> None:
        """Forget samples longer than `count` keys, and fits that more keys were needed for.

        Args:
            count (Tensor[B, 1], int64): attended keys that are left.
            law: as for `fit`; fitted anew where its fit is forgotten.
        """
        self.lengths.masked_fill_(self.lengths > count, 0)
        count = count[:, 0]
        self.fit(count, law, renew=False, lost=count < self.fitted_count)

    def sample_prompt(
        self,
        q: Tensor,
        k: Tensor,
        attended: AttendedKeys,
        scale: float,
        softcap: float,
        sinks: Tensor | None,
    ) -> None:
        """Sample the query rows of a forward whose lengths lie on the grid.

        Sequences that begin with this forward forget earlier samples.

        Args:
            q (Tensor[B, HQ, R, D]): query rows.
            k (Tensor[B, HK, N, D]): keys.
            attended: the keys that the rows attend.
            scale: factor of the scores.
            softcap: 0, or the cap of the scores.
            sinks (Tensor[HQ], float32, or None): sink logits.
        """
        num_lengths = sum(length <= attended.num_keys for length in self._lengths_in_grid)
        is_earlier = (self.lengths > 0) & ~attended.begins[:, None]
        if num_lengths == 0:
            self.lengths.mul_(is_earlier)
            return
        grid = self._grid[:num_lengths].expand(q.shape[0], -1)
        row_lengths = attended.row_lengths.contiguous()
        row = torch.searchsorted(row_lengths, grid.contiguous()).clamp(max=q.shape[2] - 1)
        found = row_lengths.gather(1, row) == grid
        rows = q.gather(2, row[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
        quantiles = self._score_quantile(
            rows, k, torch.where(found, grid, 0), attended, scale, softcap, sinks
        )
        previous = self.quantiles[:, :, :num_lengths]
        previous.copy_(torch.where(found[:, None], quantiles, previous))
        # Last, since a length declares a sample: an interrupt in between leaves none.
        lengths = self.lengths * is_earlier
        lengths[:, :num_lengths] = torch.where(found, grid, lengths[:, :num_lengths])
        self.lengths.copy_(lengths)

    def sample_step(
        self,
        step: Tensor,
        q: Tensor,
        k: Tensor,
        attended: AttendedKeys,
        scale: float,
        softcap: float,
        sinks: Tensor | None,
    ) -> None:
        """Sample the newest query row while the warm-up lasts.

        Args:
            step (Tensor[1], int64): decode steps taken before this one.
            q (Tensor[B, HQ, D]): the query.
            k (Tensor[B, HK, N, D]): keys.
            attended: the keys that the query attends.
            scale: factor of the scores.
            softcap: 0, or the cap of the scores.
            sinks (Tensor[HQ], float32, or None): sink logits.
        """
        warming = step < self._config.warmup_steps
        lengths = torch.where(warming, attended.count, 0)[:, None]
        quantiles = self._score_quantile(q[:, :, None], k, lengths, attended, scale, softcap, sinks)
        column = len(self._lengths_in_grid) + step.clamp(max=self._config.warmup_steps)
        self.quantiles.index_copy_(2, column, quantiles)
        self.lengths.index_copy_(1, column, lengths.int())

    def fit(
        self,
        count: Tensor,
        law: tuple[Tensor, Tensor],
        renew: Tensor | bool,
        lost: Tensor | None = None,
    ) -> None:
        """Fit the power law to the samples.

        A finished fit stays, unless asked to renew it or the sequence has doubled since: tokens
        verified by speculative decoding do not move it, a new long prompt does.

        Args:
            count (Tensor[B], int64): attended keys now.
            law (two of Tensor[B, HQ], float32): log_alpha and beta in use, replaced in place where
                a head takes the fit.
            renew (bool or Tensor[1 or B], bool): whether finished fits are replaced.
            lost (Tensor[B], bool, or None): sequences whose finished fits are void.
        """
        slope = None if self._config.slope == "fit" else float(self._config.slope)
        fit, ok = ops.fit_power_law(self.lengths, self.quantiles, slope)
        log_alpha, beta, fitted, fitted_count = old = [*law, self.fitted, self.fitted_count]
        if lost is not None:
            heads = lost[:, None]
            log_alpha, beta = log_alpha.masked_fill(heads, -math.inf), beta.masked_fill(heads, 0.0)
            fitted, fitted_count = fitted & ~heads, fitted_count.masked_fill(lost, 0)
        renew = (count >= 2 * fitted_count) | renew
        taken = ok & (renew[:, None] | ~fitted)
        # One call, which no interrupt divides: half a law would drop rows that matter.
        torch._foreach_copy_(
            old,
            [
                torch.where(taken, fit.log_alpha, log_alpha),
                torch.where(taken, fit.beta, beta),
                fitted | ok,
                torch.where(taken.any(1), count, fitted_count),
            ],
        )

    def _score_quantile(
        self,
        q: Tensor,
        k: Tensor,
        lengths: Tensor,
        attended: AttendedKeys,
        scale: float,
        softcap: float,
        sinks: Tensor | None,
    ) -> Tensor:
        return ops.score_quantile(
            q,
            k,
            lengths.int(),
            self._config.quantile,
            scale=scale,
            key_mask=attended.key_mask,
            softcap=softcap,
            sinks=sinks,
        )
