"""Time generate(): tokens per second of a Llama's shape, on the CPU or on a GPU.

    python benchmarks/bench_generate.py            # an empty context, 4k and 32k keys
    python benchmarks/bench_generate.py --full     # 8k and 16k keys too, more tokens
    python benchmarks/bench_generate.py --device cuda    # 32k keys; --full: 4k and 64k too

Batch 1, bfloat16, random weights, the shape of Llama-3.2-1B on the CPU and of Llama-3.1-8B on a
GPU; random keys and values stand in for the prompt, scaled so that the default configuration loads
about a tenth of the value rows. Writes results/generate_cpu.json (or _cuda) and the plot beside it.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM
from transformers.utils import logging

import machine
from decoder import LLAMA_1B, LLAMA_8B, build_model, register_grouped_matmul
from formulations import COPIED_BYTES, copy_call
from plot_generate import plot
from reports import write_json
from timing import CudaClock, measure, summary
from writers import KEY_SCALE_1B, MODES, Writer

RESULTS = Path(__file__).resolve().parent / "results"
LENGTHS = {
    "cpu": {"quick": (0, 4096, 32768), "full": (0, 4096, 8192, 16384, 32768)},
    # Every length compiles every mode anew.
    "cuda": {"quick": (32768,), "full": (32768, 65536, 4096)},
}
ROUNDS = {"quick": 3, "full": 7}
SHAPES = {"cpu": LLAMA_1B, "cuda": LLAMA_8B}

Row = dict[str, Any]


def bench_length(
    model: LlamaForCausalLM,
    num_keys: int,
    num_rounds: int,
    progress: tqdm[None],
    seconds_left: Callable[[], float],
) -> Iterator[Row]:
    """Every mode at one length, a few tokens each in turn, so that noise hits all alike."""
    writers: list[Writer] = []
    logits: list[Tensor] = []
    for mode in MODES[model.device.type]:
        if seconds_left() < 0:
            print(f"\ntime is up, left out: {mode.name}, {num_keys:,} keys")
            continue
        progress.set_description(f"{num_keys:,} keys, {mode.name}, warm-up")
        writers.append(Writer(mode, model, num_keys, num_rounds))
        logits.append(writers[-1].warm_up())
    for _ in range(num_rounds):
        for writer in writers:
            progress.set_description(f"{num_keys:,} keys, {writer.mode.name}")
            writer.write()
            progress.update()
    for writer, own in zip(writers, logits, strict=True):
        timing = summary([seconds * 1e3 for seconds in writer.seconds_per_token])
        yield {
            "mode": writer.mode.name,
            "keys": num_keys,
            "median_ms": timing.median_ms,
            "min_ms": timing.min_ms,
            "spread": timing.spread,
            "tokens": timing.repeats,
            "tokens_per_s": 1e3 / timing.median_ms,
            "loaded_fraction": writer.loaded_fraction,
            "logits_error": float((own - logits[0]).norm() / logits[0].norm()),
            "graph_skips": writer.graph_skips,
            "graph_breaks": writer.graph_breaks,
            "bytes": num_bytes(model, num_keys, writer.loaded_fraction),
        }


def memory_bandwidth(model: LlamaForCausalLM) -> float:
    """The limit in GB/s (10^9 bytes per second): reading every weight once, on a GPU a copy."""
    if model.device.type == "cuda":
        timing = measure({"copy": copy_call()}, clock=CudaClock(), min_sample_ms=0.0)["copy"]
        return 2 * COPIED_BYTES / timing.median_ms / 1e6
    words = [parameter.view(torch.int32) for parameter in model.parameters()]
    timing = measure({"read": lambda: [word.amax() for word in words]}, budget_s=3.0)["read"]
    return sum(word.nbytes for word in words) / timing.median_ms / 1e6


def weight_bytes(model: LlamaForCausalLM) -> int:
    """What every token reads of the weights: all but an input embedding of its own."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    is_tied = model.config.tie_word_embeddings
    return total - (0 if is_tied else model.get_input_embeddings().weight.nbytes)


def num_bytes(model: LlamaForCausalLM, num_keys: int, loaded_fraction: float) -> int:
    """What one token must read: the weights, every K row and the loaded V rows, each once."""
    config = model.config
    row_bytes = config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    rows = config.num_hidden_layers * num_keys * (1 + loaded_fraction)
    return weight_bytes(model) + round(rows * row_bytes)


def print_tables(rows: list[Row], bandwidth: float) -> None:
    """Per length: time and its share beyond the empty context, ratios, distance to the limit."""
    empty_ms = {row["mode"]: row["median_ms"] for row in rows if row["keys"] == 0}
    for num_keys in dict.fromkeys(row["keys"] for row in rows):
        chosen = [row for row in rows if row["keys"] == num_keys]
        at = {row["mode"]: row["median_ms"] for row in chosen}
        print(f"\n{f'{num_keys:,} keys':27}{'tokens/s':>9}{'ms':>9}{'spread':>8}"
              f"{'beyond empty':>14}{'vs dynamic':>12}{'vs static':>11}{'loaded':>8}"
              f"{'of limit':>10}{'error':>9}{'skips':>7}{'breaks':>8}")  # fmt: skip
        for row in chosen:
            ms, name = row["median_ms"], row["mode"]
            limit_ms = row["bytes"] / bandwidth / 1e6
            beyond = f"{ms - empty_ms[name]:11.1f} ms" if name in empty_ms else f"{'':14}"
            dynamic, static = (
                f"{at[other] / ms:.2f}x" if other in at else ""
                for other in ("SDPA, DynamicCache", "SDPA, StaticCache")
            )
            print(f"{name:27}{row['tokens_per_s']:9.2f}{ms:9.2f}{row['spread']:8.1%}"
                  f"{beyond}{dynamic:>12}{static:>11}{row['loaded_fraction']:8.1%}"
                  f"{limit_ms / ms:10.1%}{row['logits_error']:9.1e}"
                  f"{row['graph_skips']:7}{row['graph_breaks']:8}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    extent = parser.add_mutually_exclusive_group()
    for name, text in (
        ("quick", "few lengths (default)"),
        ("full", "more lengths, more tokens"),
    ):
        extent.add_argument(f"--{name}", dest="extent", action="store_const", const=name, help=text)
    parser.set_defaults(extent="quick")
    parser.add_argument("--device", choices=tuple(MODES), default="cpu")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no mode after that")
    parser.add_argument("--out", type=Path, help="the JSON to write")
    arguments = parser.parse_args()

    end_s = time.monotonic() + arguments.seconds

    def seconds_left() -> float:
        return end_s - time.monotonic()

    torch.set_grad_enabled(False)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device, shape = arguments.device, SHAPES[arguments.device]
    path = arguments.out or RESULTS / f"generate_{device}.json"
    result: dict[str, Any] = {
        "benchmark": f"generate_{device}",
        "model": shape.name,
        "machine": machine.describe(device),
        "key_scale": KEY_SCALE_1B * math.sqrt(LLAMA_1B.hidden_size / shape.hidden_size),
    }
    lengths, num_rounds = LENGTHS[device][arguments.extent], ROUNDS[arguments.extent]
    if device == "cpu":
        result["threads"] = torch.get_num_threads()
        result["grouped_matmul"] = register_grouped_matmul(max(lengths))
    model = build_model(shape=shape, device=device)
    bandwidth = memory_bandwidth(model)
    result |= {"read_gb_per_s": bandwidth, "weight_bytes": weight_bytes(model), "rows": []}
    print(
        f"{model.num_parameters() / 1e9:.2f} billion random weights; memory at "
        f"{bandwidth:.1f} GB/s; grouped matmul: {result.get('grouped_matmul', 'none')}"
    )

    num_steps = len(lengths) * num_rounds * len(MODES[device])
    with tqdm(total=num_steps, unit="round", leave=False, disable=None) as progress:
        for num_keys in lengths:
            # Compiled steps keep what they were compiled for, caches included.
            torch._dynamo.reset()
            gc.collect()
            result["rows"] += bench_length(model, num_keys, num_rounds, progress, seconds_left)
            write_json(result, path)
    print_tables(result["rows"], bandwidth)
    print("\nwrote", os.path.relpath(path), os.path.relpath(plot(result, path)))


if __name__ == "__main__":
    main()
