"""Teacher-forced decoding: how far sifted attention moves a model's predictions of known text.

The tokens are given, so both models see the same context at every step and the distance is that of
the attention alone, yet errors travel through the layers and stay in the cache as in generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import SiftConfig
from .measure import compare
from .simulate import exact_logits
from .stepwise import stepwise


@dataclass(frozen=True)
class TeacherForced:
    """Measurements of `teacher_forced` over B windows and T steps, on the CPU.

    Step t attends prefill + t + 1 keys and predicts token prefill + t + 1. A NaN in the logits of
    either model is a NaN in `kl` and `delta_nll`, and no agreement.

    Attributes:
        kl (Tensor[B, T], float64): KL(exact || sifted) of the next token, in nats.
        delta_nll (Tensor[B, T], float64): the known token's negative log-likelihood, sifted minus
            exact, in nats.
        exact_top1 (Tensor[B, T], int64): the exact model's most likely token; -1 where its
            logits hold a NaN.
        sifted_top1 (Tensor[B, T], int64): likewise of the sifted model.
        num_keys (range): attended keys of each step, the same in every window.
        loaded_fraction (Tensor[T], float64): V rows loaded over attended keys, mean over windows,
            layers and KV heads.
        dropped_mass (Tensor[T], float64): probability on rows not loaded, mean over windows, layers
            and query heads.
        sifted_calls (int): (step, layer) calls of the operator that left out at least one V row.
        decode_calls (int): all (step, layer) calls of the operator.
    """

    kl: Tensor
    delta_nll: Tensor
    exact_top1: Tensor
    sifted_top1: Tensor
    num_keys: range
    loaded_fraction: Tensor
    dropped_mass: Tensor
    sifted_calls: int
    decode_calls: int

    @property
    def agreement(self) -> float:
        """Share of the steps in which both models rank the same token first."""
        return float(
            ((self.exact_top1 == self.sifted_top1) & (self.exact_top1 >= 0)).double().mean()
        )

    def __str__(self) -> str:
        """One line of means."""
        return (
            f"KL {float(self.kl.mean()):.5f} nats, delta NLL {float(self.delta_nll.mean()):+.5f} "
            f"nats, top-1 agreement {self.agreement:.2%}, V rows loaded "
            f"{float(self.loaded_fraction.mean()):.1%}, dropped mass "
            f"{float(self.dropped_mass.mean()):.2%}, {self.num_keys[0]} to {self.num_keys[-1]} "
            f"keys, {self.sifted_calls} of {self.decode_calls} calls sifted"
        )


@torch.inference_mode()
def teacher_forced(
    model: Any,
    tokens: Tensor,
    prefill: int,
    config: SiftConfig | None = None,
    progress: bool = True,
) -> TeacherForced:
    """Decode known tokens one at a time with sifted attention and compare with the exact model.

    The first `prefill` tokens are read densely in one forward pass, which also calibrates; every
    further token is one step through the operator. The exact model reads all in one dense pass.

    Args:
        model: Hugging Face causal language model; evaluated as it stands, so put it in eval mode.
        tokens (Tensor[B, N], int64): windows of known tokens without padding.
        prefill (int): tokens read before the first step, 1 <= prefill <= N - 2.
        config: defaults to SiftConfig().
        progress: show a progress bar over the steps.

    Returns:
        TeacherForced: N - 1 - prefill steps.

    Raises:
        ValueError: tokens, prefill or the length do not fit, also when no step would reach
            `config.min_keys`.
        RuntimeError: no call left out a V row, so the comparison would say nothing about sifting.

    Example:
        >>> result = teacher_forced(model, tokens, prefill=640)  # doctest: +SKIP
        >>> print(result)  # doctest: +SKIP
    """
    config = SiftConfig() if config is None else config
    _check(tokens, prefill, config)
    known, num_steps = tokens[:, :-1], tokens.shape[1] - 1 - prefill
    exact = exact_logits(model, known, num_steps)
    decoded = stepwise(model, known, num_steps, config, progress)
    found = compare(exact, decoded.logits, tokens[:, prefill + 1 :].to(exact.device))

    layers, num_keys = decoded.layers.values(), torch.tensor(decoded.num_keys)
    sifted = [(reads.v_rows < num_keys[:, None]).any(2).any(0) for reads in layers]  # [T] of each
    sifted_calls, decode_calls = int(sum(part.sum() for part in sifted)), len(sifted) * num_steps
    if sifted_calls == 0:
        raise RuntimeError(
            f"teacher_forced: config must leave out some V row, got {config} "
            f"and {decode_calls} calls of the operator that loaded them all"
        )
    loaded = torch.stack([reads.v_rows for reads in layers]).double()  # [L, B, T, HK]
    dropped = torch.stack([reads.dropped_mass for reads in layers]).double()  # [L, B, T, HQ]
    return TeacherForced(
        kl=found.kl,
        delta_nll=found.nats - found.exact_nats,
        exact_top1=found.exact_top1,
        sifted_top1=found.top1,
        num_keys=decoded.num_keys,
        loaded_fraction=loaded.mean((0, 1, 3)) / num_keys,
        dropped_mass=dropped.mean((0, 1, 3)),
        sifted_calls=sifted_calls,
        decode_calls=decode_calls,
    )


def _check(tokens: Tensor, prefill: int, config: SiftConfig) -> None:
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise ValueError(
            "teacher_forced: tokens must be int64 with 2 dimensions, "
            f"got {tokens.dtype} of shape {tuple(tokens.shape)}"
        )
    length = tokens.shape[1]
    if not 1 <= prefill <= length - 2:
        raise ValueError(
            f"teacher_forced: prefill must be between 1 and {length - 2}, got {prefill}"
        )
    if length - 1 < config.min_keys:
        raise ValueError(
            "teacher_forced: tokens must be longer than config.min_keys "
            f"({config.min_keys}), got {length}"
        )
