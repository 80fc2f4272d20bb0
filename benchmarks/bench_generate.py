"""Time generate() on the CPU: tokens per second of a model of Llama-3.2-1B's shape.

    python benchmarks/bench_generate.py            # an empty context, 4k and 32k keys
    python benchmarks/bench_generate.py --full     # 8k and 16k keys too, more tokens

Batch 1, bfloat16, random weights; random keys and values stand in for the prompt, scaled so that
the default configuration loads about a tenth of the value rows. Writes results/generate_cpu.json
and the plot beside it.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, LlamaForCausalLM, StaticCache
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

import machine
import sift_attention as sift
from decoder import (
    GROUPED,
    HEAD_DIM,
    NUM_KV_HEADS,
    build_model,
    fill_cache,
    register_grouped_matmul,
)
from plot_generate import plot
from reports import write_json
from sift_attention.hf.growing_layer import GrowingLayer
from timing import measure, summary

RESULTS = Path(__file__).resolve().parent / "results"
LENGTHS = {"quick": (0, 4096, 32768), "full": (0, 4096, 8192, 16384, 32768)}
ROUNDS = {"quick": 3, "full": 7}
WARM_UP_TOKENS = 2  # caches move into their buffers, threads start
# Scores then have a standard deviation of about 3.6: at 32k keys a head gives 2.6 % of them more
# than twice uniform attention, and the union over a group's four heads is a tenth of the rows.
KEY_SCALE = 4.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Mode:
    """One way to decode: what attends (a SiftConfig: ours) over which cache."""

    name: str
    attention: str | sift.SiftConfig
    cache: str  # "dynamic", "static" or "ours"; sifting makes of the dynamic one ours
    num_tokens: int = 4  # per round; one where a token takes seconds

    @property
    def is_ours(self) -> bool:
        return isinstance(self.attention, sift.SiftConfig)


EXACT, SIFTED = sift.SiftConfig(c=0.0), sift.SiftConfig()
MODES = (
    Mode("SDPA, DynamicCache", "sdpa", "dynamic", 1),
    Mode("SDPA, StaticCache", "sdpa", "static", 1),
    Mode("grouped matmul, our cache", GROUPED, "ours"),
    Mode("sift exact, StaticCache", EXACT, "static"),
    Mode("sift exact, our cache", EXACT, "ours"),
    Mode("sift, StaticCache", SIFTED, "static"),
    Mode("sift, our cache", SIFTED, "ours"),
)


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
    """A mode at work on its own text: a model that shares its weights, a cache, what it wrote."""

    def __init__(self, mode: Mode, model: LlamaForCausalLM, num_keys: int, num_tokens: int) -> None:
        self.mode, self.num_keys = mode, num_keys
        self.model = copy.deepcopy(model, {id(weights): weights for weights in model.parameters()})
        self.handle: sift.hf.Handle | None = None
        if isinstance(mode.attention, sift.SiftConfig):
            self.handle = sift.hf.enable(self.model, mode.attention)
        else:
            self.model.set_attn_implementation(mode.attention)
        config = self.model.config
        if mode.cache == "static":
            self.cache = StaticCache(config=config, max_cache_len=num_keys + num_tokens + 1)
        else:
            self.cache = DynamicCache(config=config)
        if mode.attention == GROUPED:
            for layer in self.cache.layers:
                layer.__class__ = GrowingLayer
        fill_cache(self.cache, config.num_hidden_layers, num_keys, KEY_SCALE)
        generator = torch.Generator().manual_seed(0)
        self.text = torch.randint(config.vocab_size, (1, num_keys + 1), generator=generator)
        self.seconds_per_token: list[float] = []

    def warm_up(self) -> Tensor:
        """The logits of the first token, which all modes are given alike (Tensor[vocabulary])."""
        result = self._generate(WARM_UP_TOKENS, return_dict_in_generate=True, output_logits=True)
        self.text = result.sequences
        if self.handle is not None:
            self.handle.reset_stats()
        logits: Tensor = result.logits[0][0]
        return logits.float()

    def write(self) -> None:
        clock = Clock()
        self.text = self._generate(self.mode.num_tokens, streamer=clock)
        self.seconds_per_token += clock.seconds_per_token

    def _generate(self, num_tokens: int, **kwargs: Any) -> Any:
        return self.model.generate(
            self.text,
            attention_mask=torch.ones_like(self.text),
            past_key_values=self.cache,
            max_new_tokens=num_tokens,
            do_sample=False,
            **kwargs,
        )

    @property
    def loaded_fraction(self) -> float:
        return 1.0 if self.handle is None else self.handle.stats().total.loaded_fraction


def bench_length(
    model: LlamaForCausalLM, num_keys: int, num_rounds: int, progress: tqdm[None]
) -> Iterator[Row]:
    """Every mode at one length, a few tokens each in turn, so that noise hits all alike."""
    writers = []
    for mode in MODES:
        num_tokens = WARM_UP_TOKENS + num_rounds * mode.num_tokens
        writers.append(Writer(mode, model, num_keys, num_tokens))
    logits = [writer.warm_up() for writer in writers]
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
            "bytes": num_bytes(model, num_keys, writer.loaded_fraction),
        }


def read_bandwidth(model: LlamaForCausalLM) -> float:
    """The limit in GB/s (10^9 bytes per second): a reduction that reads every weight once."""
    words = [parameter.view(torch.int32) for parameter in model.parameters()]
    timing = measure({"read": lambda: [word.amax() for word in words]}, budget_s=3.0)["read"]
    return sum(word.nbytes for word in words) / timing.median_ms / 1e6


def num_bytes(model: LlamaForCausalLM, num_keys: int, loaded_fraction: float) -> int:
    """What one token must read: the weights, every K row and the loaded V rows, each once."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    row_bytes = NUM_KV_HEADS * HEAD_DIM * model.dtype.itemsize
    rows = model.config.num_hidden_layers * num_keys * (1 + loaded_fraction)
    return weights + round(rows * row_bytes)


def print_tables(rows: list[Row], bandwidth: float) -> None:
    """Per length: time and its share beyond the empty context, ratios, distance to the limit."""
    dynamic, static = MODES[0].name, MODES[1].name
    empty_ms = {row["mode"]: row["median_ms"] for row in rows if row["keys"] == 0}
    for num_keys in dict.fromkeys(row["keys"] for row in rows):
        chosen = [row for row in rows if row["keys"] == num_keys]
        at = {row["mode"]: row["median_ms"] for row in chosen}
        print(f"\n{f'{num_keys:,} keys':27}{'tokens/s':>9}{'ms':>9}{'spread':>8}"
              f"{'beyond empty':>14}{'vs dynamic':>12}{'vs static':>11}{'loaded':>8}"
              f"{'of limit':>10}{'error':>9}")  # fmt: skip
        for row in chosen:
            ms = row["median_ms"]
            limit_ms = row["bytes"] / bandwidth / 1e6
            print(f"{row['mode']:27}{row['tokens_per_s']:9.2f}{ms:9.1f}{row['spread']:8.1%}"
                  f"{ms - empty_ms[row['mode']]:11.1f} ms{at[dynamic] / ms:11.1f}x"
                  f"{at[static] / ms:10.1f}x{row['loaded_fraction']:8.1%}{limit_ms / ms:10.1%}"
                  f"{row['logits_error']:9.1e}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    extent = parser.add_mutually_exclusive_group()
    for name, text in (
        ("quick", "an empty context, 4k and 32k keys (default)"),
        ("full", "8k and 16k keys too, more tokens"),
    ):
        extent.add_argument(f"--{name}", dest="extent", action="store_const", const=name, help=text)
    parser.set_defaults(extent="quick")
    parser.add_argument("--out", type=Path, default=RESULTS / "generate_cpu.json")
    arguments = parser.parse_args()

    torch.set_grad_enabled(False)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    description = machine.describe()
    lengths, num_rounds = LENGTHS[arguments.extent], ROUNDS[arguments.extent]
    formulation = register_grouped_matmul(max(lengths))
    model = build_model()
    bandwidth = read_bandwidth(model)
    print(f"{model.num_parameters() / 1e9:.2f} billion random weights, "
          f"{torch.get_num_threads()} threads; weights read at {bandwidth:.1f} GB/s; "
          f"grouped matmul: {formulation}")  # fmt: skip

    rows: list[Row] = []
    num_steps = len(lengths) * num_rounds * len(MODES)
    with tqdm(total=num_steps, unit="round", leave=False, disable=None) as progress:
        for num_keys in lengths:
            rows += bench_length(model, num_keys, num_rounds, progress)
    print_tables(rows, bandwidth)
    result = {
        "benchmark": "generate_cpu",
        "machine": description,
        "threads": torch.get_num_threads(),
        "read_gb_per_s": bandwidth,
        "grouped_matmul": formulation,
        "key_scale": KEY_SCALE,
        "rows": rows,
    }
    write_json(result, arguments.out)
    path = plot(result, arguments.out)
    print("\nwrote", os.path.relpath(arguments.out), os.path.relpath(path))


if __name__ == "__main__":
    main()
