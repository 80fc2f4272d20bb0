"""Decode with llama.cpp, through llama-cpp-python's low-level interface, at any depth.

A prefill of 32k tokens would take a CPU half an hour. The cache is filled instead from a model of
the same cache's shape that is otherwise tiny: it reads chunks of tokens at their places, and its
state is loaded into the cache of the model under test.
"""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path

import llama_cpp
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from peers.llama_gguf import write_gguf

VERSION = f"llama-cpp-python {llama_cpp.__version__}"
SETTINGS = "one sequence, llama_decode of single random tokens without sampling, CPU only"
CHUNK = 256
# Numbers of enum ggml_type.
CACHE_TYPES = {"fp16": 1, "bf16": 30}


@llama_cpp.llama_log_callback
def _be_silent(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    pass


llama_cpp.llama_log_set(_be_silent, ctypes.c_void_p(0))


class Weights:
    """A model as llama.cpp loads it."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.config = model.config
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(model, path)
            parameters = llama_cpp.llama_model_default_params()
            # The file is gone afterwards.
            parameters.use_mmap = False
            self.handle = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.handle:
            raise RuntimeError("llama.cpp: the model must load, got a failure.")

    def filler(self) -> Weights:
        """A tiny model whose cache has the same shape."""
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=self.config.num_hidden_layers,
            num_attention_heads=self.config.num_key_value_heads,
            num_key_value_heads=self.config.num_key_value_heads,
            head_dim=self.config.head_dim,
            max_position_embeddings=self.config.max_position_embeddings,
            tie_word_embeddings=True,
            dtype="bfloat16",
        )
        return Weights(LlamaForCausalLM(config).bfloat16())


class Decoder:
    """A context of llama.cpp: the weights, a cache of one sequence, and its threads."""

    def __init__(
        self, weights: Weights, capacity: int, cache_type: str, *, flash: bool, threads: int
    ) -> None:
        self.weights = weights
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = capacity
        parameters.n_batch = parameters.n_ubatch = CHUNK
        # The second sequence receives the chunks of `fill`.
        parameters.n_seq_max = 2
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.type_k = parameters.type_v = CACHE_TYPES[cache_type]
        parameters.flash_attn_type = int(flash)
        self.context = llama_cpp.llama_init_from_model(weights.handle, parameters)
        if not self.context:
            raise RuntimeError("llama.cpp: the context must be created, got a failure.")
        self.memory = llama_cpp.llama_get_memory(self.context)

    def decode(self, tokens: list[int], first_position: int) -> None:
        """Append tokens to the sequence; only the last one gets logits."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = first_position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i == len(tokens) - 1
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_synchronize(self.context)
        llama_cpp.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama.cpp: decode must return 0, got {status}.")

    def logits(self) -> Tensor:
        """Of the last token, Tensor[vocabulary]."""
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return torch.tensor(logits[: self.weights.config.vocab_size])

    def fill(self, filler: Decoder, num_keys: int) -> None:
        """Put num_keys keys and values of the filler's into every layer of an empty cache."""
        for start in range(0, num_keys, CHUNK):
            llama_cpp.llama_memory_clear(filler.memory, False)
            filler.decode(torch.randint(256, (min(CHUNK, num_keys - start),)).tolist(), start)
            size = llama_cpp.llama_state_seq_get_size(filler.context, 0)
            state = (ctypes.c_uint8 * size)()
            llama_cpp.llama_state_seq_get_data(filler.context, state, size, 0)
            loaded = llama_cpp.llama_state_seq_set_data(self.context, state, size, 1)
            if loaded != size:
                raise RuntimeError(f"llama.cpp: {size} bytes of state must load, got {loaded}.")
            llama_cpp.llama_memory_seq_cp(self.memory, 1, 0, -1, -1)
            llama_cpp.llama_memory_seq_rm(self.memory, 1, -1, -1)

    def close(self) -> None:
        llama_cpp.llama_free(self.context)
