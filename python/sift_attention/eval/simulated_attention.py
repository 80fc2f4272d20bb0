"""Attention of a simulated layer: dense over the prompt, as a policy decides over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from ..hf.attention import dense, why_dense
from ..hf.cache import CacheState
from .decoded import Reads
from .policies.base import Policy, Rows

NAME = "sift_simulation"
_MOST_SHARED_BYTES = 1 << 28  # of probabilities that policies share

# Attention of one layer, with the arguments of `dense`.
Attend = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass
class Reading:
    """The forward of the prompt, and what of it every policy sees.

    Attributes:
        num_steps: R.
        cache: states of a cache of the model, which know the layers with sliding windows.
        queries: of the prompt, by layer.
        first: rows of the first layer that policies decide, which all of them see alike.
    """

    num_steps: int
    cache: CacheState
    queries: dict[int, Tensor] = field(default_factory=dict)
    first: list[Rows] = field(default_factory=list)

    def __call__(
        self, module: nn.Module, query: Tensor, *arguments: Any
    ) -> tuple[Tensor, Tensor | None]:
        """See Attend."""
        self.queries[module.layer_idx] = query  # type: ignore[index]
        return dense(module, query, *arguments)


@dataclass
class Decoding:
    """The forward of the steps by a policy.

    Attributes:
        reading: of the prompt.
        policy: decides.
        layers: what the steps of the layers so far read.
    """

    reading: Reading
    policy: Policy
    layers: dict[int, Reads] = field(default_factory=dict)

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float | None,
        dropout: float,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """See Attend."""
        layer_idx: int = module.layer_idx  # type: ignore[assignment]
        if why_dense(module, layer_idx, self.reading.cache, kwargs) is not None:
            return dense(module, query, key, value, mask, scaling, dropout, kwargs)
        rows: Iterable[Rows]
        if self.layers or not self.reading.first:
            query = torch.cat([self.reading.queries[layer_idx], query], 2)
            scale = 1.0 / math.sqrt(query.shape[3]) if scaling is None else scaling
            softcap, sinks = kwargs.get("softcap") or 0.0, kwargs.get("s_aux")
            rows = self._rows(layer_idx, query, key, value, scale, softcap, sinks)
            num_bytes = 4 * query[..., 0].numel() * self.reading.num_steps
            if not self.layers and num_bytes <= _MOST_SHARED_BYTES:
                self.reading.first = rows = list(rows)
        else:
            rows = self.reading.first
        return self._decide(layer_idx, rows, len(key)).to(query.dtype), None

    def _rows(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        softcap: float,
        sinks: Tensor | None,
    ) -> Iterator[Rows]:
        """Rows of every sequence and key/value head of a layer.

        Args:
            layer_idx: index of the layer.
            query (Tensor[B, HQ, N, D]): queries of all tokens.
            key (Tensor[B, HK, N, D]): keys.
            value (Tensor[B, HK, N, DV]): values.
            scale: factor of the scores.
            softcap: 0, or the cap of the scores.
            sinks (Tensor[HQ] or None): sink logits.
        """
        batch, num_kv_heads = key.shape[:2]
        queries = query.unflatten(1, (num_kv_heads, -1))
        head_sinks = None if sinks is None else sinks.float().view(num_kv_heads, -1)
        return (
            Rows(
                q=queries[sequence, head].float(),
                k=key[sequence, head].float(),
                v=value[sequence, head].float(),
                num_steps=self.reading.num_steps,
                scale=scale,
                softcap=softcap,
                sinks=None if head_sinks is None else head_sinks[head],
                layer=layer_idx,
                head=head,
            )
            for sequence in range(batch)
            for head in range(num_kv_heads)
        )

    def _decide(self, layer_idx: int, several: Iterable[Rows], batch: int) -> Tensor:
        """Outputs [B, R, HQ, DV] of a layer by the policy."""
        outputs, v_rows, k_rows, dropped_mass = [], [], [], []
        for rows in several:
            read = self.policy.read(rows)
            outputs.append(read.weights @ rows.v)
            v_rows.append(read.v_rows)
            k_rows.append(read.k_rows)
            dropped_mass.append((rows.mass - read.kept_mass).clamp(min=0.0))

        def by_sequence(parts: list[Tensor]) -> Tensor:
            stacked: Tensor = torch.stack(parts).unflatten(0, (batch, -1))
            return stacked

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
    """Attention of one layer, as transformers calls it: [B, HQ, M, D] to [B, M, HQ, DV]."""
    attend: Attend = kwargs.pop("sift_simulation")
    return attend(module, query, key, value, attention_mask, scaling, dropout, kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
