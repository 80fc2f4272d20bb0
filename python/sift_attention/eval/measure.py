"""The numbers of one cell: what a policy changed, and what it read, on a few sequences of a task.

Only predictions that mean something are scored, see `Sample.scored`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .decoded import Decoded, Reads
from .tokens import Sample, stacked

_NUM_STRETCHES = 8  # of steps
_NUM_FIFTHS = 5  # of the context
_ROWS_AT_ONCE = 64  # whose logits are held in float64


@dataclass(frozen=True)
class Comparison:
    """Predictions of an exact model and of another, with a NaN wherever the logits hold one.

    Attributes:
        kl (Tensor[B, T], float64): KL(exact || other) in nats.
        exact_nats (Tensor[B, T], float64): negative log-likelihood of the target, exact model.
        nats (Tensor[B, T], float64): likewise, other model.
        exact_top1 (Tensor[B, T], int64): most likely token of the exact model; -1: a NaN.
        top1 (Tensor[B, T], int64): likewise of the other model.
    """

    kl: Tensor
    exact_nats: Tensor
    nats: Tensor
    exact_top1: Tensor
    top1: Tensor

    @property
    def agrees(self) -> Tensor:
        """Where both models rank the same token first: bool [B, T]."""
        return (self.exact_top1 == self.top1) & (self.exact_top1 >= 0)


def compare(exact: Tensor, logits: Tensor, targets: Tensor) -> Comparison:
    """Compare predictions.

    Args:
        exact (Tensor[B, T, V]): logits of the exact model.
        logits (Tensor[B, T, V]): of the other.
        targets (Tensor[B, T], int64): the tokens that follow.

    Returns:
        Comparison: on the CPU.
    """
    parts = zip(
        *(tensor.split(_ROWS_AT_ONCE, 1) for tensor in (exact, logits, targets)), strict=True
    )
    columns = zip(*(_compare_rows(*part) for part in parts), strict=True)
    return Comparison(*(torch.cat(column, 1).cpu() for column in columns))


def _compare_rows(exact: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    log_p, log_q = (rows.double().log_softmax(-1) for rows in (exact, logits))
    # A token that the exact model excludes adds nothing: 0 * log 0 = 0.
    kl = (log_p.exp() * (log_p - log_q)).masked_fill(log_p == -math.inf, 0.0).sum(-1)
    nats = (-log.gather(-1, targets[..., None])[..., 0] for log in (log_p, log_q))
    top1 = (rows.argmax(-1).masked_fill(rows.isnan().any(-1), -1) for rows in (exact, logits))
    return kl, *nats, *top1


def measure(samples: Sequence[Sample], exact: Tensor, decoded: Decoded) -> dict[str, Any]:
    """Compare decode steps with the exact model.

    Args:
        samples: B of one task, of N tokens each.
        exact (Tensor[B, R, V]): logits of the exact model at the R decode steps.
        decoded: the same steps by a policy, or through the operator.

    Returns:
        dict: numbers; NaN where there was nothing to measure.

        - num_tokens, num_answers: scored predictions, and how many of them are answers.
        - exact: accuracy and bits_per_token of the exact model.
        - accuracy: share of the answers ranked first. bits_per_token: mean negative
          log2-likelihood. kl: mean KL(exact || decoded) in nats. agreement: share of the
          predictions in which both rank the same token first.
        - v_fraction, kv_fraction, dropped_mass, sifted_calls, sifted_share, layers: see `traffic`.
        - by_step: step (the first), kl, v_fraction and dropped_mass of eight stretches of steps.
        - by_depth: depth, accuracy, exact_accuracy and num_answers of answers that stand at one
          place of the context, by the fifth of the context it lies in, with the fifth's middle.
    """
    num_steps = exact.shape[1]
    (tokens,) = stacked(samples, "tokens")
    targets = tokens[:, -num_steps + 1 :].to(exact.device)
    found = compare(exact[:, :-1], decoded.logits[:, :-1], targets)
    return summary(samples, found, decoded.num_keys, decoded.layers)


def summary(
    samples: Sequence[Sample],
    found: Comparison,
    num_keys: range,
    layers: Mapping[int, Reads],
) -> dict[str, Any]:
    """What `measure` returns.

    Args:
        samples: as for `measure`.
        found: of the first R - 1 steps; the last one's token is beyond the sequence.
        num_keys: as of Decoded.
        layers: as of Decoded.
    """
    num_steps = len(num_keys)
    first = len(samples[0].tokens) - num_steps + 1  # token that the first step predicts
    targets, answers, sources, scored = (
        whole[:, first:] for whole in stacked(samples, "tokens", "answers", "sources", "scored")
    )
    position = torch.arange(first, first + targets.shape[1])

    right, exact_right = found.top1 == targets, found.exact_top1 == targets
    v, _, dropped = _fractions(num_keys, layers)
    bounds = np.linspace(0, num_steps, _NUM_STRETCHES + 1).astype(int).tolist()
    stretches = [slice(*pair) for pair in pairwise(bounds) if pair[0] < pair[1]]
    fifth = (_NUM_FIFTHS * sources).div(position, rounding_mode="floor")
    depths = [answers & (sources >= 0) & (fifth == number) for number in range(_NUM_FIFTHS)]
    return {
        "num_tokens": int(scored.sum()),
        "num_answers": int(answers.sum()),
        "exact": {
            "accuracy": mean(exact_right[answers]),
            "bits_per_token": mean(found.exact_nats[scored]) / math.log(2),
        },
        "accuracy": mean(right[answers]),
        "bits_per_token": mean(found.nats[scored]) / math.log(2),
        "kl": mean(found.kl[scored]),
        "agreement": mean(found.agrees[scored]),
        **traffic(num_keys, layers),
        "by_step": [
            {
                "step": stretch.start,
                "kl": mean(found.kl[:, stretch][scored[:, stretch]]),
                "v_fraction": mean(v[:, :, stretch]),
                "dropped_mass": mean(dropped[:, :, stretch]),
            }
            for stretch in stretches
        ],
        "by_depth": [
            {
                "depth": (number + 0.5) / _NUM_FIFTHS,
                "accuracy": mean(right[chosen]),
                "exact_accuracy": mean(exact_right[chosen]),
                "num_answers": int(chosen.sum()),
            }
            for number, chosen in enumerate(depths)
        ],
    }


def traffic(num_keys: range, layers: Mapping[int, Reads]) -> dict[str, Any]:
    """What decode steps read; means over sequences, steps, layers and heads.

    Args:
        num_keys: as of Decoded.
        layers: as of Decoded.

    Returns:
        dict: without layers that sift, NaN.

        - v_fraction: value rows read over attended keys.
        - kv_fraction: all rows read over twice the attended keys.
        - dropped_mass: probability of the keys whose value rows were not read.
        - sifted_calls: how many (sequence, step, layer, key/value head) left a value row out;
          sifted_share: their share.
        - layers: layer (index), v_fraction and dropped_mass of each that is not exact by nature.
    """
    v, kv, dropped = _fractions(num_keys, layers)
    return {
        "v_fraction": mean(v),
        "kv_fraction": mean(kv),
        "dropped_mass": mean(dropped),
        "sifted_calls": int((v < 1.0).sum()),
        "sifted_share": mean(v < 1.0),
        "layers": [
            {"layer": layer, "v_fraction": mean(v[i]), "dropped_mass": mean(dropped[i])}
            for i, layer in enumerate(layers)
        ],
    }


def _fractions(num_keys: range, layers: Mapping[int, Reads]) -> tuple[Tensor, Tensor, Tensor]:
    """V fraction and K + V fraction [L, B, R, HK] and dropped mass [L, B, R, HQ], float64."""
    attended = torch.tensor(num_keys)[:, None]
    if not layers:
        nothing = torch.zeros(0, 1, len(num_keys), 1, dtype=torch.float64)
        return nothing, nothing, nothing
    v_rows, k_rows, dropped = (
        torch.stack([getattr(reads, name).double().cpu() for reads in layers.values()])
        for name in ("v_rows", "k_rows", "dropped_mass")
    )
    return v_rows / attended, (k_rows + v_rows) / (2 * attended), dropped


def mean(values: Tensor) -> float:
    """Mean of numbers or truths in float64; NaN of none."""
    return float(values.double().mean())
