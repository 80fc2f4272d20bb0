"""Tiny random decoders with sharp attention, and samples, for tests."""

import numpy as np
import torch
import transformers

from sift_attention.eval.tokens import Sample, stacked

VOCABULARY = 64
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
OPTIONS = {
    "LlamaConfig": {},
    "Gemma2Config": {
        **SLIDING,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0,
        "attn_implementation": "eager",
    },
    "GptOssConfig": {
        **SLIDING,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "attn_implementation": "eager",
    },
}


def build(config="LlamaConfig"):
    torch.manual_seed(3)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        **OPTIONS[config],
    }
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config)(**settings)
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.mul_(3.0)
            if "sinks" in name:
                parameter.normal_()
    return model


def text_samples(num_samples, length, seed=0):
    """Random tokens that are scored as text is: all but the first."""
    rng = np.random.default_rng(seed)
    weights = (np.arange(length) > 0).astype(np.float32)
    nothing = np.zeros(length, np.bool_), np.full(length, -1)
    return [
        Sample(rng.integers(0, VOCABULARY, length), weights, *nothing) for _ in range(num_samples)
    ]


def tokens_of(samples):
    return stacked(samples, "tokens")[0]
