"""What decode steps read and predicted, whichever way they were run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Reads:
    """What the decode steps of one layer read.

    Sizes: B sequences, R steps, HK key/value heads, HQ query heads.

    Attributes:
        v_rows (Tensor[B, R, HK], float32): value rows read, each once for the heads that share it.
        k_rows (Tensor[B, R, HK], float32): everything else that was read, in key rows.
        dropped_mass (Tensor[B, R, HQ], float32): exact probability of the keys whose value rows
            were not read.
    """

    v_rows: Tensor
    k_rows: Tensor
    dropped_mass: Tensor


@dataclass(frozen=True)
class Decoded:
    """R decode steps after a prompt; step r attends the keys of tokens 0 ... N - R + r.

    Attributes:
        logits (Tensor[B, R, V]): row r predicts token N - R + r + 1; the last row's token is
            beyond the sequence.
        num_keys (range): attended keys of every step, N - R + 1 ... N.
        layers (Mapping[int, Reads]): by index, those that a policy may decide; layers with sliding
            windows, which stay exact, are not among them.
    """

    logits: Tensor
    num_keys: range
    layers: Mapping[int, Reads]
