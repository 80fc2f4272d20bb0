"""What a user chooses once for a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SiftConfig:
    """How the layers of a model sift.

    Args:
        threshold: "uniform" takes theta = c / S; "quantile" fits a power law per sequence and head
            to quantiles of the exact probabilities of the prompt.
        c: multiple of uniform attention below which keys are dropped; 0 is exact attention.
            Used by the uniform threshold.
        quantile: which quantile of the probabilities the fitted law follows, in [0, 1); 0.95 asks
            for about 5 % of the keys. Used by the quantile threshold.
        slope: beta of the fitted law, or "fit". Used by the quantile threshold.
        prompt_rows: query rows sampled from the prompt, at lengths spaced logarithmically.
        warmup_steps: exact decode steps whose quantiles join the fit.
        residual: what stands in for dropped value rows: "mean", "renormalize" or "none".
        min_keys: with fewer attended keys than this, decode exactly.
        skip_layers: indices of the layers that stay exact.

    Raises:
        ValueError: a field is outside the range above.

    Source: arXiv 2506.05300 for the warm-up and the power law; the prompt quantiles, the uniform
        threshold and the mean residual are this project's.
    """

    threshold: Literal["uniform", "quantile"] = "uniform"
    c: float = 2.0
    quantile: float = 0.95
    slope: float | Literal["fit"] = 1.0
    prompt_rows: int = 32
    warmup_steps: int = 0
    residual: Literal["mean", "renormalize", "none"] = "mean"
    min_keys: int = 256
    skip_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks every field."""
        requirements = {
            "threshold": (
                self.threshold in ("uniform", "quantile"),
                '"uniform" or "quantile"',
            ),
            "c": (0.0 <= self.c < math.inf, "finite and not negative"),
            "quantile": (0.0 <= self.quantile < 1.0, "in [0, 1)"),
            "slope": (
                self.slope == "fit"
                or (not isinstance(self.slope, str) and 0.0 <= self.slope < math.inf),
                '"fit" or a finite number that is not negative',
            ),
            "prompt_rows": (self.prompt_rows >= 0, "not negative"),
            "warmup_steps": (self.warmup_steps >= 0, "not negative"),
            "residual": (
                self.residual in ("mean", "renormalize", "none"),
                '"mean", "renormalize" or "none"',
            ),
            "min_keys": (self.min_keys >= 0, "not negative"),
            "skip_layers": (
                all(layer >= 0 for layer in self.skip_layers),
                "layer indices that are not negative",
            ),
        }
        for field, (holds, requirement) in requirements.items():
            if not holds:
                raise ValueError(
                    f"SiftConfig: {field} must be {requirement}, got {getattr(self, field)!r}"
                )
