"""The threshold's power law as an operator argument, and what an operator call reports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """theta(S) = exp(log_alpha) * S^-beta: keys whose probability exceeds it are loaded.

    S is the number of keys that a sequence attends; theta is clamped to at most 1.

    Args:
        log_alpha (float or Tensor, float32, broadcastable to [B, HQ]): natural log of alpha;
            -inf keeps every key, which is exact attention.
        beta (float or Tensor, float32, broadcastable to [B, HQ]): how fast the threshold falls
            as the sequence grows; 1 follows uniform attention.

    Raises:
        ValueError: a number is NaN, log_alpha is +inf, or beta is infinite. Values inside tensors
            live on the device and are not checked; a NaN there keeps every key.

    Source: arXiv 2506.05300, section 3.

    Example:
        >>> PowerLaw.uniform(2.0).theta(1000.0)
        tensor(0.0020, dtype=torch.float64)
    """

    log_alpha: Tensor | float
    beta: Tensor | float

    def __post_init__(self) -> None:
        """Checks numbers."""
        if not isinstance(self.log_alpha, Tensor) and not self.log_alpha < math.inf:
            raise ValueError(f"PowerLaw: log_alpha must be below infinity, got {self.log_alpha}")
        if not isinstance(self.beta, Tensor) and not math.isfinite(self.beta):
            raise ValueError(f"PowerLaw: beta must be finite, got {self.beta}")

    @classmethod
    def uniform(cls, c: float) -> PowerLaw:
        """Keeps keys with more than c times uniform attention: theta = c / S. c = 0 keeps all.

        Raises:
            ValueError: c is negative, infinite or NaN.
        """
        if not 0.0 <= c < math.inf:
            raise ValueError(f"PowerLaw.uniform: c must be finite and not negative, got {c}")
        return cls(math.log(c), 1.0) if c > 0.0 else cls.exact()

    @classmethod
    def exact(cls) -> PowerLaw:
        """The law that keeps every key: exact attention."""
        return cls(-math.inf, 0.0)

    def theta(self, length: Tensor | float) -> Tensor:
        """The threshold at `length` attended keys.

        Args:
            length (float or Tensor): at least 1; broadcasts against log_alpha and beta.

        Returns:
            Tensor: float64, in [0, 1].
        """
        log_length = torch.as_tensor(length, dtype=torch.float64).log()
        return (self.log_alpha - self.beta * log_length).exp().clamp(max=1.0)


class DecodeStats(NamedTuple):
    """What one `decode` call measured.

    Attributes:
        lse (Tensor[B, HQ], float32): natural log of the softmax denominator over all attended keys
            and the sink; does not depend on the threshold. -inf where no key is attended.
        kept_mass (Tensor[B, HQ], float32): sum of the probabilities of the loaded value rows.
        num_loaded (Tensor[B, HK], int32): value rows loaded, each once per group of heads.
    """

    lse: Tensor
    kept_mass: Tensor
    num_loaded: Tensor
