"""Ways to decode with generate(), each at work on a text of its own."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import DynamicCache, LlamaForCausalLM, StaticCache
from transformers.generation.streamers import BaseStreamer

import sift_attention as sift
from decoder import GROUPED, LLAMA_1B, fill_cache
from sift_attention.hf.growing_layer import GrowingLayer

# Scores then have a standard deviation of about 3.6: at 32k keys a head gives 2.6 % of them more
# than twice uniform attention, and the union over a group's four heads is a tenth of the rows.
# A query channel of a random model grows with the root of its hidden size.
KEY_SCALE_1B = 4.0


@dataclass(frozen=True)
class Mode:
    """One way to decode: what attends (a SiftConfig: ours) over which cache."""

    name: str
    attention: str | sift.SiftConfig
    cache: str  # "dynamic", "static" or "ours"; sifting makes of the dynamic one ours
    num_tokens: int = 4  # per round; one where a token takes seconds


EXACT, SIFTED = sift.SiftConfig(c=0.0), sift.SiftConfig()
MODES = {
    "cpu": (
        Mode("SDPA, DynamicCache", "sdpa", "dynamic", 1),
        Mode("SDPA, StaticCache", "sdpa", "static", 1),
        Mode("grouped matmul, our cache", GROUPED, "ours"),
        Mode("sift exact, StaticCache", EXACT, "static"),
        Mode("sift exact, our cache", EXACT, "ours"),
        Mode("sift, StaticCache", SIFTED, "static"),
        Mode("sift, our cache", SIFTED, "ours"),
    ),
    # On a GPU generate() compiles the steps over a static cache with mode="reduce-overhead".
    "cuda": (
        Mode("SDPA, StaticCache", "sdpa", "static", 32),
        Mode("sift exact, StaticCache", EXACT, "static", 32),
        Mode("sift, StaticCache", SIFTED, "static", 32),
        Mode("SDPA, DynamicCache", "sdpa", "dynamic", 8),
        Mode("sift exact, our cache", EXACT, "ours", 8),
        Mode("sift, our cache", SIFTED, "ours", 8),
    ),
}
# Caches move into their buffers and threads start; on a GPU steps are compiled and recorded.
WARM_UP_TOKENS = {"cpu": 2, "cuda": 8}
# The first token of every call of generate() comes from a forward that is not compiled.
UNCOMPILED_TOKENS = {"cpu": 0, "cuda": 1}


class Clock(BaseStreamer):
    """Notes when generate() takes the prompt, and when it hands out each token."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        pass

    @property
    def seconds_per_token(self) -> list[float]:
        return [after - before for before, after in pairwise(self.times_s)]


class Writer:
    """A mode at work on its own text: a model that shares its weights, a cache, what it wrote.

    Attributes:
        seconds_per_token: of the tokens written since the warm-up.
        graph_skips: compiled graphs, warm-up included, that torch did not record as CUDA graphs.
        graph_breaks: places where compiling a step began anew.
    """

    def __init__(self, mode: Mode, model: LlamaForCausalLM, num_keys: int, num_rounds: int) -> None:
        self.mode, self.num_keys, self.device = mode, num_keys, model.device.type
        self.model = copy.deepcopy(model, {id(weights): weights for weights in model.parameters()})
        self.handle: sift.hf.Handle | None = None
        if isinstance(mode.attention, sift.SiftConfig):
            self.handle = sift.hf.enable(self.model, mode.attention)
        else:
            self.model.set_attn_implementation(mode.attention)
        config = self.model.config
        self.num_tokens = mode.num_tokens + UNCOMPILED_TOKENS[self.device]
        capacity = num_keys + WARM_UP_TOKENS[self.device] + num_rounds * self.num_tokens + 1
        if mode.cache == "static":
            self.cache = StaticCache(config=config, max_cache_len=capacity)
        else:
            self.cache = DynamicCache(config=config)
        if mode.attention == GROUPED:
            for layer in self.cache.layers:
                layer.__class__ = GrowingLayer
        key_scale = KEY_SCALE_1B * math.sqrt(LLAMA_1B.hidden_size / config.hidden_size)
        fill_cache(self.cache, config, num_keys, key_scale, self.device)
        generator = torch.Generator().manual_seed(0)
        text = torch.randint(config.vocab_size, (1, num_keys + 1), generator=generator)
        self.text = text.to(self.device)
        self.seconds_per_token: list[float] = []
        self.graph_skips = self.graph_breaks = 0

    def warm_up(self) -> Tensor:
        """The logits of the first tokens, Tensor[tokens, vocabulary]; all modes write the same."""
        vocab_size = self.model.config.vocab_size
        result = self._generate(
            WARM_UP_TOKENS[self.device],
            prefix_allowed_tokens_fn=lambda _, text: [len(text) % vocab_size],
            return_dict_in_generate=True,
            output_logits=True,
        )
        self.text = result.sequences
        if self.handle is not None:
            self.handle.reset_stats()
        return torch.cat(result.logits).float()

    def write(self) -> None:
        clock = Clock()
        self.text = self._generate(self.num_tokens, streamer=clock)
        self.seconds_per_token += clock.seconds_per_token[UNCOMPILED_TOKENS[self.device] :]

    def _generate(self, num_tokens: int, **kwargs: Any) -> Any:
        skips, breaks = graph_skips(), graph_breaks()
        result = self.model.generate(
            self.text,
            attention_mask=torch.ones_like(self.text),
            past_key_values=self.cache,
            max_new_tokens=num_tokens,
            do_sample=False,
            **kwargs,
        )
        self.graph_skips += graph_skips() - skips
        self.graph_breaks += graph_breaks() - breaks
        return result

    @property
    def loaded_fraction(self) -> float:
        return 1.0 if self.handle is None else self.handle.stats().total.loaded_fraction


def graph_skips() -> int:
    """How often torch.compile gave up recording a CUDA graph, so far in this process."""
    return int(counters["inductor"]["cudagraph_skips"])


def graph_breaks() -> int:
    return sum(counters["graph_break"].values())
