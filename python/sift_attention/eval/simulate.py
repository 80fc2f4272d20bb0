"""Exact parallel simulation of a decode policy: one forward pass in place of many steps.

Attention is causal, so the hidden state of a token depends on earlier tokens alone. When every row
of the decode steps attends in every layer as its policy decides, errors travel through layers and
keys exactly as they do step by step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import sdpa_mask

from ..config import SiftConfig
from ..hf.attention import dense, why_dense
from ..hf.cache import CacheState, adopt
from ..hf.enable import check_attention, switch_attention
from ..hf.stats import Totals
from .decoded import Decoded, Reads
from .policies.base import Policy, Read, Rows
from .policies.exact import Exact

NAME = "sift_simulation"


@torch.inference_mode()
def simulate(model: Any, tokens: Tensor, num_steps: int, policy: Policy) -> Decoded:
    """Decode the last tokens of known sequences by a policy, in one forward pass.

    The tokens before them are a dense prompt. Layers with sliding windows stay exact.

    Args:
        model: Hugging Face decoder; evaluated as it stands, so put it in eval mode.
        tokens (Tensor[B, N], int64): known tokens without padding.
        num_steps (int): R, 1 <= R < N.
        policy: decides for each key/value head which rows the steps read.

    Returns:
        Decoded: of the R steps.

    Raises:
        ValueError: the model's attention cannot be replaced, or tokens or num_steps do not fit.

    Example:
        >>> exact = exact_logits(model, tokens, 512)  # doctest: +SKIP
        >>> decoded = simulate(model, tokens, 512, Uniform(c=2.0))  # doctest: +SKIP
        >>> measure(samples, exact, decoded)["kl"]  # doctest: +SKIP
    """
    check_tokens("simulate", tokens, num_steps)
    check_attention(model, "simulate")
    if model.config.is_encoder_decoder:
        raise ValueError(f"simulate: model must be a decoder, got {type(model).__name__}")
    cache = adopt(DynamicCache(config=model.config), SiftConfig(), Totals())
    simulation = _Simulation(num_steps, policy, cache)
    previous = switch_attention(model, NAME, "simulate")
    try:
        logits = last_logits(model, tokens, num_steps, sift_simulation=simulation)
    finally:
        switch_attention(model, previous, "simulate")
    length = tokens.shape[1]
    num_keys = range(length - num_steps + 1, length + 1)
    return Decoded(logits, num_keys, simulation.layers)


def observe(model: Any, tokens: Tensor, num_steps: int) -> dict[tuple[int, int], list[Rows]]:
    """The decode steps of exact attention, for calibration and for looking at probabilities.

    Args:
        model: as for `simulate`.
        tokens (Tensor[B, N], int64): likewise.
        num_steps (int): likewise.

    Returns:
        dict: for every (layer, key/value head) the rows of the B sequences. Together they hold the
        queries, keys and values of every token.
    """
    observer = _Observer()
    simulate(model, tokens, num_steps, observer)
    return observer.observed


@torch.inference_mode()
def exact_logits(model: Any, tokens: Tensor, num_steps: int) -> Tensor:
    """Logits [B, R, V] of the last R tokens under the model's own attention."""
    check_tokens("exact_logits", tokens, num_steps)
    return last_logits(model, tokens, num_steps)


def last_logits(model: Any, tokens: Tensor, num_rows: int, **kwargs: Any) -> Tensor:
    """Logits [B, R, V] of the last rows of a forward without a cache."""
    kwargs = {**kwargs, **keep_logits(model, num_rows)}
    logits: Tensor = model(input_ids=tokens.to(model.device), use_cache=False, **kwargs).logits
    return logits[:, -num_rows:]


def keep_logits(model: Any, num_rows: int) -> dict[str, int]:
    """Argument of a forward that computes no logits but the last ones, where it knows one."""
    return {"logits_to_keep": num_rows} if model._supports_logits_to_keep() else {}


def check_tokens(caller: str, tokens: Tensor, num_steps: int) -> None:
    """Refuse, in the name of `caller`, tokens that are no sequences or too short."""
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise ValueError(
            f"{caller}: tokens must be int64 with 2 dimensions, "
            f"got {tokens.dtype} of shape {tuple(tokens.shape)}"
        )
    if not 1 <= num_steps < tokens.shape[1]:
        raise ValueError(
            f"{caller}: num_steps must be between 1 and {tokens.shape[1] - 1}, got {num_steps}"
        )


@dataclass(frozen=True)
class _Observer(Exact):
    """Exact attention that keeps the rows it saw, without the probabilities they cached."""

    observed: dict[tuple[int, int], list[Rows]] = field(default_factory=dict)

    def read(self, rows: Rows) -> Read:
        self.observed.setdefault((rows.layer, rows.head), []).append(replace(rows))
        return super().read(rows)


@dataclass
class _Simulation:
    """What one simulated forward tells its layers, and what they tell it.

    Attributes:
        num_steps: R.
        policy: decides for the decode steps.
        cache: states of a cache of the model, which know the layers with sliding windows.
        layers: what the steps of the layers so far read.
    """

    num_steps: int
    policy: Policy
    cache: CacheState
    layers: dict[int, Reads] = field(default_factory=dict)

    def decode(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        softcap: float,
        sinks: Tensor | None,
    ) -> Tensor:
        """The decode steps of one layer.

        Args:
            layer_idx: index of the layer.
            query (Tensor[B, HQ, N, D]): queries of all tokens.
            key (Tensor[B, HK, N, D]): keys.
            value (Tensor[B, HK, N, DV]): values.
            scale: factor of the scores.
            softcap: 0, or the cap of the scores.
            sinks (Tensor[HQ] or None): sink logits.

        Returns:
            Tensor[B, R, HQ, DV]: outputs.
        """
        batch, num_kv_heads = key.shape[:2]
        queries = query.unflatten(1, (num_kv_heads, -1))
        head_sinks = None if sinks is None else sinks.float().view(num_kv_heads, -1)
        outputs, v_rows, k_rows, dropped_mass = [], [], [], []
        for sequence in range(batch):
            for head in range(num_kv_heads):
                rows = Rows(
                    q=queries[sequence, head].float(),
                    k=key[sequence, head].float(),
                    v=value[sequence, head].float(),
                    num_steps=self.num_steps,
                    scale=scale,
                    softcap=softcap,
                    sinks=None if head_sinks is None else head_sinks[head],
                    layer=layer_idx,
                    head=head,
                )
                read = self.policy.read(rows)
                outputs.append(read.weights @ rows.v)
                v_rows.append(read.v_rows)
                k_rows.append(read.k_rows)
                dropped_mass.append((rows.p.sum(-1) - read.kept_mass).clamp(min=0.0))

        def by_sequence(parts: list[Tensor]) -> Tensor:
            return torch.stack(parts).view(batch, num_kv_heads, *parts[0].shape)

        self.layers[layer_idx] = Reads(
            v_rows=by_sequence(v_rows).mT,
            k_rows=by_sequence(k_rows).mT,
            dropped_mass=by_sequence(dropped_mass).flatten(1, 2).mT,
        )
        return by_sequence(outputs).flatten(1, 2).transpose(1, 2)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one layer, as transformers calls it: [B, HQ, N, D] to [B, N, HQ, DV]."""
    simulation: _Simulation = kwargs.pop("sift_simulation")
    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    if why_dense(module, layer_idx, simulation.cache, kwargs) is not None:
        return dense(module, query, key, value, attention_mask, scaling, dropout, kwargs)
    start = query.shape[2] - simulation.num_steps
    prompt, _ = dense(
        module,
        query[:, :, :start],
        key[:, :, :start],
        value[:, :, :start],
        None if attention_mask is None else attention_mask[:, :, :start, :start],
        scaling,
        dropout,
        kwargs,
    )
    steps = simulation.decode(
        layer_idx,
        query,
        key,
        value,
        1.0 / math.sqrt(query.shape[3]) if scaling is None else scaling,
        kwargs.get("softcap") or 0.0,
        kwargs.get("s_aux"),
    )
    return torch.cat([prompt, steps.to(prompt.dtype)], 1), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
