"""This project's fitted rule: a power law through quantiles of the prompt's exact probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sift_attention import ops
from sift_attention.calibration import sample_grid
from sift_attention.config import SiftConfig
from sift_attention.law import PowerLaw

from .base import Policy, Read, Rows, attend
from .sift import loaded


@dataclass(frozen=True)
class PromptFitted(Policy):
    """Reads the rows above a power law in S that each head's quantiles follow over the prompt.

    The samples are those of `SiftConfig`: `prompt_rows` lengths for every factor of 4 from 32 keys.
    A head whose quantiles allow no fit stays exact.

    Attributes:
        quantile (float): which quantile of the probabilities the law follows.
        slope: exponent of the law, or "fit".
        residual: what stands in for the other rows.
        prompt_rows (int): see SiftConfig.
    """

    source = "this project: SiftConfig(threshold='quantile'), after arXiv 2506.05300"

    quantile: float
    slope: float | Literal["fit"] = 1.0
    residual: Literal["mean", "renormalize", "none"] = "mean"
    prompt_rows: int = 32

    def read(self, rows: Rows) -> Read:
        """See Policy."""
        law, _ = prompt_law(rows, self.sift_config())
        log_alpha, beta = (torch.as_tensor(part)[0, :, None] for part in (law.log_alpha, law.beta))
        theta = (log_alpha - beta * rows.lengths.log()).exp().clamp(max=1.0)
        return attend(rows, loaded(rows, rows.p, theta), self.residual)

    def sift_config(self) -> SiftConfig:
        """See Policy."""
        return SiftConfig(
            threshold="quantile",
            quantile=self.quantile,
            slope=self.slope,
            prompt_rows=self.prompt_rows,
            residual=self.residual,
        )


def prompt_law(rows: Rows, config: SiftConfig) -> tuple[PowerLaw, Tensor]:
    """The power laws of a group's heads, fitted to the prompt.

    Args:
        rows: one key/value head.
        config: quantile, slope and prompt_rows.

    Returns:
        tuple: the law, float32 [1, G], and which heads have a fit, bool [1, G].
    """
    grid = [length for length in sample_grid(config.prompt_rows) if length <= rows.start]
    lengths = torch.tensor([grid], dtype=torch.int32, device=rows.k.device)
    beta = None if config.slope == "fit" else float(config.slope)
    return ops.fit_power_law(lengths, quantiles(rows, grid, config.quantile), beta)


def quantiles(rows: Rows, lengths: Sequence[int], quantile: float) -> Tensor:
    """Quantiles of the exact probabilities of the tokens that attend so many keys.

    Returns:
        Tensor[1, G, M]: float32, in the order of the M lengths.
    """
    at = torch.tensor([lengths], dtype=torch.int32, device=rows.k.device)
    return ops.score_quantile(
        rows.q[None, :, at[0] - 1].contiguous(),
        rows.k[None, None].contiguous(),
        at,
        quantile,
        scale=rows.scale,
        softcap=rows.softcap,
        sinks=rows.sinks,
    )


_QUANTILES = (0.92, 0.97, 0.985, 0.995)

FAMILIES = {
    "sift, fitted": [PromptFitted(quantile) for quantile in _QUANTILES],
    "sift, fitted slope": [PromptFitted(quantile, slope="fit") for quantile in _QUANTILES],
}
