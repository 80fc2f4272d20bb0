"""Part 2 of the demo: a decoder with the layer shape of Llama-3.2-1B decodes at long contexts."""

from __future__ import annotations

import copy
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import sift_attention as sift
from demo_screen import WIDTH, heading, say, table
from sift_attention.hf.growing_layer import GrowingLayer

# The decoder is the one that the benchmarks time, with fewer layers.
sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import decoder

NUM_LAYERS, VOCAB_SIZE = 4, 4096  # of 16 and 128256: what fits the demo's time
LENGTHS = (8192, 16384, 32768)
# The standard deviation of the synthetic keys, chosen so that about as many value rows are loaded
# as by the trained model of part 1; scores then have a standard deviation of about 3.
KEY_SCALE = 3.3
EMPTY, SDPA, GROUPED, EXACT, SIFTED = MODES = (
    "empty cache: weights alone",
    "SDPA, stock cache",
    "grouped matmul, our cache",
    "sift, exact",
    "sift, default",
)
WARM_UP_TOKENS = 2  # caches move into their buffers, threads start


@dataclass
class Decoding:
    """One way to decode at one length; the median over its tokens."""

    mode: str
    num_keys: int
    seconds_per_token: float
    loaded_fraction: float


def run(quick: bool) -> list[Decoding]:
    """Time every mode at every length, token by token in turn, so that noise hits all alike."""
    heading("2  Decoding with the layer shape of Llama-3.2-1B")
    model = decoder.build_model(NUM_LAYERS, VOCAB_SIZE)
    say(
        f"{NUM_LAYERS} of its 16 layers: hidden size 2048, {decoder.NUM_Q_HEADS} query and "
        f"{decoder.NUM_KV_HEADS} key/value heads of {decoder.HEAD_DIM}; random bfloat16 weights, "
        f"a vocabulary of {VOCAB_SIZE}, {torch.get_num_threads()} threads. Tokens go through "
        "transformers one at a time. The cache is filled with random keys and values instead of a "
        "prefill. Random weights cannot tell how many rows a real model would load: the keys are "
        "scaled for about as many as in part 1, and the time follows from that."
    )
    formulation = decoder.register_grouped_matmul(LENGTHS[-1])
    say(
        "SDPA with transformers' DynamicCache is the stock way. The grouped matmul is the "
        f"strongest plain PyTorch: {formulation}, which is the faster way on this machine, and on "
        "our cache, which does not copy itself at every token."
    )
    print()
    lengths, num_tokens = (LENGTHS[:1], 4) if quick else (LENGTHS, 8)
    # Every mode has a model of its own; they share their weights.
    weights = {id(parameter): parameter for parameter in model.parameters()}
    models = {mode: copy.deepcopy(model, dict(weights)) for mode in MODES}
    models[GROUPED].set_attn_implementation(decoder.GROUPED)
    handles = {
        EXACT: sift.hf.enable(models[EXACT], sift.SiftConfig(c=0.0)),
        SIFTED: sift.hf.enable(models[SIFTED], sift.SiftConfig()),
    }
    results = []
    steps = len(lengths) * (WARM_UP_TOKENS + num_tokens)
    with tqdm(total=steps, unit="round", leave=False, disable=None, ncols=WIDTH) as progress:
        for num_keys in lengths:
            progress.set_description(f"  {num_keys:,} keys")
            for handle in handles.values():
                handle.reset_stats()
            seconds = _seconds_per_token(models, num_keys, num_tokens, progress)
            for mode in MODES:
                stats = handles[mode].stats().total if mode in handles else None
                loaded = 1.0 if stats is None else stats.loaded_fraction
                results.append(Decoding(mode, num_keys, seconds[mode], loaded))
    _print_results(results)
    return results


def _filled_cache(config: LlamaConfig, num_keys: int, mode: str) -> DynamicCache:
    cache = DynamicCache(config=config)
    if mode == GROUPED:
        for layer in cache.layers:
            layer.__class__ = GrowingLayer
    if mode != EMPTY:
        decoder.fill_cache(cache, config, num_keys, KEY_SCALE)
    return cache


def _seconds_per_token(
    models: dict[str, LlamaForCausalLM], num_keys: int, num_tokens: int, progress: tqdm[None]
) -> dict[str, float]:
    """Greedy decoding of num_tokens tokens by every mode: the median time of one."""
    caches = {mode: _filled_cache(models[mode].config, num_keys, mode) for mode in models}
    tokens = {mode: torch.tensor([[1]]) for mode in models}
    times: dict[str, list[float]] = {mode: [] for mode in models}
    for step in range(WARM_UP_TOKENS + num_tokens):
        for mode, model in models.items():
            start_s = time.perf_counter()
            output = model(input_ids=tokens[mode], past_key_values=caches[mode])
            tokens[mode] = output.logits[:, -1:].argmax(-1)
            if step >= WARM_UP_TOKENS:
                times[mode].append(time.perf_counter() - start_s)
        progress.update()
    return {mode: statistics.median(seconds) for mode, seconds in times.items()}


def _print_results(results: list[Decoding]) -> None:
    rows = []
    for num_keys in dict.fromkeys(r.num_keys for r in results):
        seconds = {r.mode: r.seconds_per_token for r in results if r.num_keys == num_keys}
        for r in results:
            if r.num_keys == num_keys:
                beyond_ms = (r.seconds_per_token - seconds[EMPTY]) * 1e3
                rows.append(
                    [
                        r.mode,
                        f"{0 if r.mode == EMPTY else num_keys:,}",
                        f"{1 / r.seconds_per_token:.2f}",
                        f"{seconds[SDPA] / r.seconds_per_token:.1f}x",
                        "" if r.mode == EMPTY else f"{beyond_ms:.1f} ms",
                        "" if r.mode == EMPTY else f"{r.loaded_fraction:.1%}",
                    ]
                )
    table(["mode", "keys", "tokens/s", "vs SDPA", "beyond weights", "V rows loaded"], rows)


def plot(results: list[Decoding], path: Path) -> None:
    """Tokens per second against keys, one line per mode; the file appears whole or not at all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for mode in MODES:
        points = [(r.num_keys, 1 / r.seconds_per_token) for r in results if r.mode == mode]
        style = "k:" if mode == EMPTY else "o-"
        axis.plot(*zip(*points, strict=True), style, label=mode)
    lengths = sorted({r.num_keys for r in results})
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
