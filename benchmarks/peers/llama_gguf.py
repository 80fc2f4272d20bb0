"""Write a Hugging Face Llama as the GGUF file that llama.cpp loads, without a vocabulary."""

from __future__ import annotations

from pathlib import Path

import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor
from transformers import LlamaForCausalLM

_OF_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OF_MODEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}


def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    """The bfloat16 model, its embeddings tied; norms become float32, as llama.cpp wants them."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name, parameter in model.named_parameters():
        module, _, _ = name.rpartition(".")
        weights = parameter.detach()
        if module.endswith(("q_proj", "k_proj")):
            weights = _interleave(weights, config.head_dim)
        if weights.dim() == 1:
            writer.add_tensor(_gguf_name(module), weights.float().numpy())
        else:
            writer.add_tensor(
                _gguf_name(module),
                weights.contiguous().view(torch.uint8).numpy(),
                raw_dtype=GGMLQuantizationType.BF16,
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(module: str) -> str:
    if module in _OF_MODEL:
        return f"{_OF_MODEL[module]}.weight"
    _, _, layer_idx, part = module.split(".", 3)
    return f"blk.{layer_idx}.{_OF_LAYER[part]}.weight"


def _interleave(weights: Tensor, head_dim: int) -> Tensor:
    """Rows in the order of llama.cpp's rotation, which pairs neighbours and not halves."""
    return weights.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
