"""Decoders of Llama-3.2-1B's shape with random weights, and caches as a long prompt leaves them."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache
from transformers.masking_utils import sdpa_mask

NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM = 32, 8, 64
GROUPED = "grouped_matmul"


def build_model(num_layers: int = 16, vocab_size: int = 128256) -> LlamaForCausalLM:
    """The bfloat16 model, its input and output embedding one; it never ends a text by itself."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=num_layers,
        num_attention_heads=NUM_Q_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)


def fill_cache(cache: Cache, num_layers: int, num_keys: int, key_scale: float) -> None:
    """Put num_keys normal keys and values into every layer, instead of a prefill.

    The standard deviation of the scores is about 0.9 key_scale: that of a query channel times it.
    """
    if num_keys == 0:
        return
    generator = torch.Generator().manual_seed(num_keys)
    size = (1, NUM_KV_HEADS, num_keys, HEAD_DIM)
    keys = torch.randn(size, generator=generator).mul_(key_scale).bfloat16()
    values = torch.randn(size, generator=generator).bfloat16()
    for layer_idx in range(num_layers):
        cache.update(keys.roll(layer_idx, 2), values.roll(layer_idx, 2), layer_idx)


def register_grouped_matmul(num_keys: int) -> str:
    """Register softmax(q k^T) v with a group's heads as rows; the formulation that is faster here.

    It is what an expert would write in two lines: no repeated heads, and no dense mask.
    """
    q = torch.randn(1, NUM_Q_HEADS, 1, HEAD_DIM).bfloat16()
    k = torch.randn(1, NUM_KV_HEADS, num_keys, HEAD_DIM).bfloat16()
    seconds = {}
    for formulation in (_grouped_matmul, _grouped_matmul_float32):
        times = []
        for _ in range(4):
            start_s = time.perf_counter()
            formulation(q, k, k, 1.0)
            times.append(time.perf_counter() - start_s)
        seconds[formulation] = min(times)
    faster = min(seconds, key=seconds.__getitem__)

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
        return faster(query, key, value, scale).transpose(1, 2), None

    AttentionInterface.register(GROUPED, attention)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    if faster is _grouped_matmul:
        return "all heads at once in bfloat16"
    return "one key/value head at a time in float32"


def _grouped_matmul(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    p = (q.view(1, NUM_KV_HEADS, -1, HEAD_DIM) @ k.mT * scale).softmax(-1)
    return (p @ v).view(q.shape)


def _grouped_matmul_float32(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Head by head, so that the float32 copy of K or V stays in the cache."""
    heads = zip(q.float().view(NUM_KV_HEADS, -1, HEAD_DIM), k[0], v[0], strict=True)
    out = [(q @ k.float().mT * scale).softmax(-1) @ v.float() for q, k, v in heads]
    return torch.cat(out).view(q.shape).to(q.dtype)
