"""Part 2 of the demo: a decoder with the layer shape of Llama-3.2-1B decodes at long contexts."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.masking_utils import sdpa_mask

import sift_attention as sift
from demo_screen import WIDTH, heading, say, table
from sift_attention.hf.cache import GrowingLayer

NUM_LAYERS = 4  # of the 16: what fits the demo's time
NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM = 32, 8, 64
LENGTHS = (8192, 16384, 32768)
# The standard deviation of the synthetic keys, chosen so that about as many value rows are loaded
# as by the trained model of part 1; scores then have a standard deviation of about 3.
KEY_SCALE = 3.3
SDPA, GROUPED, EXACT, SIFTED = (
    "SDPA, stock cache",
    "grouped matmul, our cache",
    "sift, exact",
    "sift, default",
)


@dataclass
class Decoding:
    """One way to decode at one length."""

    mode: str
    num_keys: int
    seconds_per_token: float
    loaded_fraction: float = 1.0


def run(quick: bool) -> list[Decoding]:
    """Time every mode at every length; the time with an empty cache has 0 keys."""
    heading("2  Decoding with the layer shape of Llama-3.2-1B")
    model = _build_model()
    say(
        f"{NUM_LAYERS} of its 16 layers: hidden size 2048, {NUM_Q_HEADS} query and {NUM_KV_HEADS} "
        f"key/value heads of {HEAD_DIM}; random bfloat16 weights, a vocabulary of "
        f"{model.config.vocab_size}, {torch.get_num_threads()} threads. Tokens go through "
        "transformers one at a time. The cache is filled with random keys and values instead of a "
        "prefill. Random weights cannot tell how many rows a real model would load: the keys are "
        "scaled for about as many as in part 1, and the time follows from that."
    )
    dtype = _register_grouped_matmul()
    print(f"  The grouped matmul computes in {dtype}, which is faster on this machine.\n")
    lengths = LENGTHS[:1] if quick else LENGTHS
    budget_s = 1.0 if quick else 3.0
    results = [Decoding(EXACT, 0, _seconds_per_token(model, DynamicCache(), budget_s)[0])]
    modes = [(num_keys, mode) for num_keys in lengths for mode in (SDPA, GROUPED, EXACT, SIFTED)]
    progress = tqdm(modes, unit="mode", leave=False, disable=None, ncols=WIDTH)
    for num_keys, mode in progress:
        progress.set_description(f"  {mode}, {num_keys:,} keys")
        with _decoding(model, mode) as loaded_fraction:
            seconds, _ = _seconds_per_token(model, _filled_cache(model, num_keys, mode), budget_s)
            results.append(Decoding(mode, num_keys, seconds, loaded_fraction()))
    _print_results(results)
    return results


def _build_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_Q_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=131072,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).bfloat16().eval()


def _filled_cache(model: LlamaForCausalLM, num_keys: int, mode: str) -> DynamicCache:
    """A cache that holds num_keys random keys and values in every layer."""
    cache = DynamicCache(config=model.config)
    if mode == GROUPED:
        for layer in cache.layers:
            layer.__class__ = GrowingLayer
    generator = torch.Generator().manual_seed(num_keys)
    size = (1, NUM_KV_HEADS, num_keys, HEAD_DIM)
    keys = torch.randn(size, generator=generator).mul_(KEY_SCALE).bfloat16()
    values = torch.randn(size, generator=generator).bfloat16()
    for layer_idx in range(NUM_LAYERS):
        cache.update(keys.roll(layer_idx, 2), values.roll(layer_idx, 2), layer_idx)
    return cache


@contextlib.contextmanager
def _decoding(model: LlamaForCausalLM, mode: str) -> Iterator[Callable[[], float]]:
    """The model with one mode's attention; yields how to ask for the fraction of rows loaded."""
    if mode in (SDPA, GROUPED):
        model.set_attn_implementation("sdpa" if mode == SDPA else "grouped_matmul")
        yield lambda: 1.0
    else:
        config = sift.SiftConfig(c=0.0) if mode == EXACT else sift.SiftConfig()
        with sift.hf.enabled(model, config) as handle:
            yield lambda: handle.stats().total.loaded_fraction


def _seconds_per_token(
    model: LlamaForCausalLM, cache: DynamicCache, budget_s: float
) -> tuple[float, int]:
    """Greedy decoding for about `budget_s`: the median time of a token, and how many there were."""
    token = torch.tensor([[1]])
    times: list[float] = []
    start_s = time.perf_counter()
    # The first two tokens warm up: caches move into their buffers, threads start.
    while len(times) < 5 or (time.perf_counter() - start_s < budget_s and len(times) < 40):
        token_start_s = time.perf_counter()
        token = model(input_ids=token, past_key_values=cache).logits.argmax(-1)
        times.append(time.perf_counter() - token_start_s)
    times = sorted(times[2:])
    return times[len(times) // 2], len(times)


def _print_results(results: list[Decoding]) -> None:
    empty_s = results[0].seconds_per_token
    rows = [["empty cache: weights alone", "0", f"{1 / empty_s:.2f}", "", "", ""]]
    for num_keys in dict.fromkeys(r.num_keys for r in results[1:]):
        group = [r for r in results if r.num_keys == num_keys]
        for r in group:
            rows.append(
                [
                    r.mode,
                    f"{num_keys:,}",
                    f"{1 / r.seconds_per_token:.2f}",
                    f"{group[0].seconds_per_token / r.seconds_per_token:.1f}x",
                    f"{max(r.seconds_per_token - empty_s, 0) * 1e3:.0f} ms",
                    f"{r.loaded_fraction:.1%}",
                ]
            )
    table(["mode", "keys", "tokens/s", "vs SDPA", "beyond weights", "V rows loaded"], rows)


def _register_grouped_matmul() -> str:
    """Register softmax(q k^T) v with the heads of a group as rows, in the faster arithmetic.

    It is what an expert would write in two lines: no repeated heads, and no dense mask.
    """
    dtypes = (torch.bfloat16, torch.float32)
    q = torch.randn(1, NUM_Q_HEADS, 1, HEAD_DIM).bfloat16()
    k = torch.randn(1, NUM_KV_HEADS, 8192, HEAD_DIM).bfloat16()
    seconds = {}
    for dtype in dtypes:
        times = []
        for _ in range(4):
            start_s = time.perf_counter()
            _grouped_matmul(q, k, k, 1.0, dtype)
            times.append(time.perf_counter() - start_s)
        seconds[dtype] = min(times)
    faster = min(dtypes, key=lambda dtype: seconds[dtype])

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
        return _grouped_matmul(query, key, value, scale, faster).transpose(1, 2), None

    AttentionInterface.register("grouped_matmul", attention)
    AttentionMaskInterface.register("grouped_matmul", sdpa_mask)
    return str(faster).removeprefix("torch.")


def _grouped_matmul(q: Tensor, k: Tensor, v: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    grouped = q.to(dtype).view(q.shape[0], k.shape[1], -1, q.shape[-1])
    p = (grouped @ k.to(dtype).mT * scale).softmax(-1)
    return (p @ v.to(dtype)).view(q.shape).to(q.dtype)


def plot(results: list[Decoding], path: Path) -> None:
    """Tokens per second against keys, one line per mode; the file appears whole or not at all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for mode in (SDPA, GROUPED, EXACT, SIFTED):
        points = [(r.num_keys, 1 / r.seconds_per_token) for r in results[1:] if r.mode == mode]
        axis.plot(*zip(*points, strict=True), marker="o", label=mode)
    axis.axhline(1 / results[0].seconds_per_token, color="k", ls=":", label="empty cache")
    lengths = sorted({r.num_keys for r in results[1:]})
    axis.set(
        xlabel="keys in the cache",
        ylabel="tokens per second",
        title=f"{NUM_LAYERS} layers of Llama-3.2-1B's shape, bfloat16, CPU",
        xticks=lengths,
        xticklabels=[f"{n:,}" for n in lengths],
        ylim=(0, None),
    )
    axis.grid(alpha=0.3)
    axis.legend()
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial.png")
    try:
        figure.savefig(partial, dpi=120)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        plt.close(figure)
