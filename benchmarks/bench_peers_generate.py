"""Time decoding on the CPU against llama.cpp: tokens per second of a model of Llama-3.2-1B's shape.

    python benchmarks/bench_peers_generate.py

The same random bfloat16 weights in both, batch 1, all cores; ours through generate() of
transformers, llama.cpp through its own decode without sampling. See peers/README.md for what must
be installed. Writes results/peers_generate_cpu.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM
from transformers.utils import logging

import machine
from bench_generate import MODES, WARM_UP_TOKENS, Writer
from decoder import build_model
from peers.llama_cpp_decoder import CACHE_TYPES, CHUNK, SETTINGS, VERSION, Decoder, Weights
from reports import write_json

RESULTS = Path(__file__).resolve().parent / "results"
LENGTHS = (0, 4096, 32768)
ROUNDS = 2
TOKENS_PER_ROUND = 4
OUR_MODES = [mode for mode in MODES if mode.is_ours and mode.cache == "ours"]

Row = dict[str, Any]


class LlamaCppWriter:
    """llama.cpp at work on random tokens: as bench_generate's Writer, with a cache it filled."""

    def __init__(
        self, weights: Weights, filler: Weights, num_keys: int, cache: str, *, flash: bool
    ) -> None:
        self.vocab_size, self.position = weights.config.vocab_size, num_keys
        threads = torch.get_num_threads()
        # llama.cpp pads the keys that it attends to a multiple of 256.
        self.decoder = Decoder(weights, num_keys + 256, cache, flash=flash, threads=threads)
        chunks = Decoder(filler, CHUNK, cache, flash=flash, threads=threads)
        self.decoder.fill(chunks, num_keys)
        chunks.close()
        self.seconds_per_token: list[float] = []

    def warm_up(self) -> None:
        self._write(WARM_UP_TOKENS)

    def write(self) -> None:
        self.seconds_per_token += self._write(TOKENS_PER_ROUND)

    def _write(self, num_tokens: int) -> list[float]:
        seconds = []
        for token in torch.randint(self.vocab_size, (num_tokens,)).tolist():
            start_s = time.perf_counter()
            self.decoder.decode([token], self.position)
            seconds.append(time.perf_counter() - start_s)
            self.position += 1
        return seconds


def bench_length(
    model: LlamaForCausalLM, weights: Weights, filler: Weights, num_keys: int
) -> list[Row]:
    """Every engine and setting at one length, a few tokens each in turn."""
    num_tokens = WARM_UP_TOKENS + ROUNDS * TOKENS_PER_ROUND
    writers: dict[str, Writer | LlamaCppWriter] = {
        mode.name: Writer(mode, model, num_keys, num_tokens) for mode in OUR_MODES
    }
    for cache in CACHE_TYPES:
        for name, flash in (("off", False), ("on", True)):
            writers[f"llama.cpp, {cache} cache, flash {name}"] = LlamaCppWriter(
                weights, filler, num_keys, cache, flash=flash
            )
    for writer in writers.values():
        writer.warm_up()
    for _ in range(ROUNDS):
        for writer in writers.values():
            writer.write()

    rows = []
    for name, writer in writers.items():
        times = writer.seconds_per_token
        median = statistics.median(times)
        lower, _, upper = statistics.quantiles(times, n=4, method="inclusive")
        rows.append(
            {
                "name": name,
                "keys": num_keys,
                "median_ms": median * 1e3,
                "min_ms": min(times) * 1e3,
                "spread": (upper - lower) / median,
                "tokens": len(times),
                "tokens_per_s": 1 / median,
            }
        )
        if isinstance(writer, LlamaCppWriter):
            writer.decoder.close()
    return rows


def logits_error(model: LlamaForCausalLM, weights: Weights) -> float:
    """How far llama.cpp's logits of a short text lie from the model's: the same weights in both."""
    text = torch.randint(model.config.vocab_size, (24,), generator=torch.Generator().manual_seed(0))
    decoder = Decoder(weights, 256, "fp16", flash=False, threads=torch.get_num_threads())
    decoder.decode(text.tolist(), 0)
    expected = model(text[None]).logits[0, -1].float()
    error = (decoder.logits() - expected).norm() / expected.norm()
    decoder.close()
    return error.item()


def print_tables(rows: list[Row]) -> None:
    exact, sifted = (mode.name for mode in OUR_MODES)
    for num_keys in LENGTHS:
        chosen = [row for row in rows if row["keys"] == num_keys]
        ms = {row["name"]: row["median_ms"] for row in chosen}
        print(f"\n{f'{num_keys:,} keys':36}{'tokens/s':>9}{'ms':>9}{'spread':>8}"
              f"{'ours, exact':>13}{'sifted':>8}")  # fmt: skip
        for row in chosen:
            own_ms = row["median_ms"]
            print(f"{row['name']:36}{row['tokens_per_s']:9.2f}{own_ms:9.1f}{row['spread']:8.1%}"
                  f"{own_ms / ms[exact]:12.2f}x{own_ms / ms[sifted]:7.2f}x")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "peers_generate_cpu.json")
    arguments = parser.parse_args()

    torch.set_grad_enabled(False)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    description = machine.describe()
    model = build_model()
    weights = Weights(model)
    filler = weights.filler()
    error = logits_error(model, weights)
    print(f"{model.num_parameters() / 1e9:.2f} billion weights, {torch.get_num_threads()} threads; "
          f"llama.cpp's logits differ from transformers' by {error:.1%}")  # fmt: skip
    rows: list[Row] = []
    for num_keys in tqdm(LENGTHS, unit="length", disable=None):
        rows += bench_length(model, weights, filler, num_keys)
    print_tables(rows)
    result = {
        "benchmark": "peers_generate_cpu",
        "machine": description,
        "threads": torch.get_num_threads(),
        "engines": {"llama.cpp": {"version": VERSION, "settings": SETTINGS}},
        "logits_error": error,
        "rows": rows,
    }
    write_json(result, arguments.out)
    print("\nwrote", os.path.relpath(arguments.out))


if __name__ == "__main__":
    main()
