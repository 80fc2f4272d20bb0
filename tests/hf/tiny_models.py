"""Tiny random models of every family, with attention sharp enough to sift."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, PreTrainedModel

VERSION = Version(transformers.__version__)
VOCABULARY = 128
LAYERS = 2


@dataclass(frozen=True)
class Family:
    """A model family: how to build a tiny member, and what to expect of it."""

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    full_layers: int = LAYERS  # self-attention layers without a sliding window
    stock: str = "sdpa"  # attention that computes what the family means


ALTERNATING = ["sliding_attention", "full_attention"]

FAMILIES = {
    "llama": Family("LlamaConfig"),
    "qwen3": Family("Qwen3Config"),
    "mistral": Family("MistralConfig", {"sliding_window": None}),
    "mistral_sliding": Family("MistralConfig", {"sliding_window": 8}, full_layers=0),
    "gemma2": Family(
        "Gemma2Config",
        {
            "sliding_window": 8,
            "layer_types": ALTERNATING,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 2.0,
        },
        full_layers=1,
        stock="eager",
    ),
    "gemma3": Family(
        "Gemma3TextConfig",
        {"sliding_window": 8, "layer_types": ALTERNATING, "query_pre_attn_scalar": 16},
        full_layers=1,
    ),
    "gpt_oss": Family(
        "GptOssConfig",
        {
            "sliding_window": 8,
            "layer_types": ALTERNATING,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        full_layers=1,
        stock="eager",
    ),
    "phi3": Family("Phi3Config", {"head_dim": None}),
    "llama4": Family(  # keys in chunks, without the sliding_window argument
        "Llama4TextConfig",
        {
            "layer_types": ["chunked_attention", "full_attention"],
            "attention_chunk_size": 8,
            "no_rope_layers": [1, 0],
            "intermediate_size_mlp": 96,
            "num_local_experts": 2,
            "moe_layers": [1],
        },
        full_layers=1,
    ),
    "gemma3n": Family(
        "Gemma3nTextConfig",
        {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ALTERNATING * 2,
            "sliding_window": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
            "laurel_rank": 8,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "intermediate_size": [96] * 4,
        },
        full_layers=2,
    ),
}


def build(
    name: str, attention: str | None = None, seed: int = 0, **options: Any
) -> PreTrainedModel:
    """A tiny model of a family, in evaluation mode and never ending a sequence by itself."""
    family = FAMILIES[name]
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        **family.options,
        **options,
    }
    if settings["head_dim"] is None:
        del settings["head_dim"]
    config = getattr(transformers, family.config)(**settings)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention or family.stock
    ).eval()
    return finish(model)


def finish(model: PreTrainedModel) -> PreTrainedModel:
    """Sharpen the weights and let generation run to its length."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.mul_(3.0)
            if "sinks" in name:
                parameter.normal_()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model
