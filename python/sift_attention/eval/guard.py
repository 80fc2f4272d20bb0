"""Which results say nothing, because the exact model itself fails: they are refused."""

import math

import numpy as np
from numpy.typing import NDArray


def order0_entropy(tokens: NDArray[np.int64]) -> float:
    """Bits per token of the best code that ignores all context: -sum_t f_t log2 f_t.

    Args:
        tokens (int64 [...]): at least one token; f_t is the share of token t among them.
    """
    _, counts = np.unique(tokens, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # never -0.0


def refusal(
    accuracy: float, bits_per_token: float, order0_bits: float, min_accuracy: float = 0.9
) -> str | None:
    """Why a task must not be reported, or None if the exact model masters it.

    Where the exact model is at a loss, what another attention changes is noise.

    Args:
        accuracy (float): share of the answers that the exact model ranks first; NaN for a task
            without answers, which is then judged by its bits.
        bits_per_token (float): mean negative log2-likelihood of the exact model on the scored
            tokens; a NaN is refused.
        order0_bits (float): `order0_entropy` of the same tokens.
        min_accuracy (float): the least that is accepted, between 0 and 1.
    """
    if not math.isnan(accuracy):
        if accuracy >= min_accuracy:
            return None
        # Rounded down, so that 89.96 % does not read as the 90.0 % that would be accepted.
        return f"exact accuracy {math.floor(accuracy * 1000) / 10:.1f} %"
    if bits_per_token < order0_bits:
        return None
    return f"exact {bits_per_token:.2f} bits per token, order-0 entropy {order0_bits:.2f}"
