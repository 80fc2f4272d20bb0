"""Decoders of Llamas' shapes with random weights, and caches as a long prompt leaves them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache
from transformers.masking_utils import sdpa_mask

GROUPED = "grouped_matmul"


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a Llama."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    is_tied: bool  # input and output embedding are one


LLAMA_1B = DecoderShape("Llama-3.2-1B", 2048, 8192, 16, 32, 8, 64, True)
LLAMA_8B = DecoderShape("Llama-3.1-8B", 4096, 14336, 32, 32, 8, 128, False)
NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM = LLAMA_1B.num_q_heads, LLAMA_1B.num_kv_heads, LLAMA_1B.head_dim


def build_model(
    num_layers: int | None = None,
    vocab_size: int = 128256,
    shape: DecoderShape = LLAMA_1B,
    device: str = "cpu",
) -> LlamaForCausalLM:
    """A bfloat16 model of a shape, with all its layers or some; it never ends a text by itself."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers if num_layers is None else num_layers,
        num_attention_heads=shape.num_q_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=131072,
        tie_word_embeddings=shape.is_tied,
        bos_token_id=None,
        eos_token_id=None,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)


def fill_cache(
    cache: Cache, config: LlamaConfig, num_keys: int, key_scale: float, device: str = "cpu"
) -> None:
    """Put num_keys normal keys and values into every layer, instead of a prefill.

    The standard deviation of the scores is that of a query channel times key_scale.
    """
    if num_keys == 0:
        return
    generator = torch.Generator(device).manual_seed(num_keys)
    size = (1, config.num_key_value_heads, num_keys, config.head_dim)
    keys = torch.randn(size, generator=generator, device=device).mul_(key_scale).bfloat16()
    values = torch.randn(size, generator=generator, device=device).bfloat16()
    for layer_idx in range(config.num_hidden_layers):
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
