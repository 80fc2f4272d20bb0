"""Teacher-forced decoding: how far sifted attention moves a model's predictions of known text.

The tokens are given, so both models see the same context at every step and the distance is that of
the attention alone, yet errors travel through the layers and stay in the cache as in generation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from sift_attention.config import SiftConfig
from sift_attention.hf import enabled


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
    tokens = tokens.to(model.device)
    exact = model(input_ids=tokens, use_cache=False).logits[:, prefill:-1]
    targets = tokens[:, prefill + 1 :]
    num_steps = targets.shape[1]

    kl, delta_nll, top1, loaded, dropped = [], [], [], [], []
    sifted_calls = decode_calls = 0
    with enabled(model, config) as handle:
        cache = model(input_ids=tokens[:, :prefill], use_cache=True).past_key_values
        for step in tqdm(
            range(num_steps), desc="teacher-forced", unit="step", disable=not progress
        ):
            handle.reset_stats()
            token = tokens[:, prefill + step, None]
            logits = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1]
            stats = handle.stats()
            decode_calls += stats.total.decode_calls
            sifted_calls += sum(layer.rows_loaded < layer.keys for layer in stats.layers.values())
            loaded.append(stats.total.loaded_fraction)
            dropped.append(stats.total.dropped_mass)
            kl.append(_kl(exact[:, step], logits))
            delta_nll.append(
                _nll(logits, targets[:, step]) - _nll(exact[:, step], targets[:, step])
            )
            top1.append(_top1(logits))
    if sifted_calls == 0:
        raise RuntimeError(
            f"teacher_forced: config must leave out some V row, got {config} "
            f"and {decode_calls} calls of the operator that loaded them all"
        )
    return TeacherForced(
        kl=torch.stack(kl, 1).cpu(),
        delta_nll=torch.stack(delta_nll, 1).cpu(),
        exact_top1=_top1(exact).cpu(),
        sifted_top1=torch.stack(top1, 1).cpu(),
        num_keys=range(prefill + 1, prefill + 1 + num_steps),
        loaded_fraction=torch.tensor(loaded, dtype=torch.float64),
        dropped_mass=torch.tensor(dropped, dtype=torch.float64),
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


def _kl(exact: Tensor, sifted: Tensor) -> Tensor:
    """KL(exact || sifted) in nats of logits [B, V], float64 [B]; impossible tokens add nothing."""
    log_p, log_q = (logits.double().log_softmax(-1) for logits in (exact, sifted))
    return (log_p.exp() * (log_p - log_q)).masked_fill(log_p == -math.inf, 0.0).sum(-1)


def _top1(logits: Tensor) -> Tensor:
    """Most likely token of logits [..., V], -1 where one is NaN; int64 [...]."""
    return logits.argmax(-1).masked_fill(logits.isnan().any(-1), -1)


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats of targets [B] under logits [B, V], float64 [B]."""
    return cross_entropy(logits.double(), targets, reduction="none")
