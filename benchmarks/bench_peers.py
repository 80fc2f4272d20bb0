"""Time the attention of one decode step on the CPU against engines outside PyTorch.

    python benchmarks/bench_peers.py

ONNX Runtime and llama.cpp, as far as they are installed: see peers/README.md. The engines take
turns, each in a process of its own, so that their thread pools do not disturb each other, and are
given the same K and V outside the caches. Writes results/peers_cpu.json.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm

import machine
import sift_attention as sift
from peers.sift_decode import EXACT, SIFTED
from reports import write_json
from timing import measure
from workload import LAW, LLAMA_1B, LLAMA_8B, Case, Layer, Problem, Shape, make_problem

RESULTS = Path(__file__).resolve().parent / "results"
ENGINES = ("sift_decode", "onnxruntime_gqa", "ggml_attention")
SHAPES = (LLAMA_8B, LLAMA_1B)
LENGTHS = (4096, 32768)
LOADED_FRACTION = 0.10
ROUNDS = 2

Row = dict[str, Any]


def bench_engine(engine: str, shape: Shape, num_keys: int) -> tuple[dict[str, str], list[Row]]:
    """What the engine is, and a row for each of its calls, in each dtype and number of threads."""
    torch.set_grad_enabled(False)
    peer = importlib.import_module(f"peers.{engine}")
    rows = []
    for dtype in peer.DTYPES:
        problem = make_problem(Case(shape, num_keys, dtype=dtype))
        layers = distinct_layers(problem)
        # One query for all: the time of dense attention does not depend on the scores.
        sharpness = problem.sharpness_for(LOADED_FRACTION)
        exact, loaded_fraction = reference(problem, sharpness)
        for threads in sorted({1, os.cpu_count() or 1}):
            calls = peer.make_calls(problem, layers, sharpness, threads)
            for name, timing in measure(calls).items():
                error = (calls[name]().float() - exact).norm() / exact.norm()
                rows.append(
                    {
                        "name": name,
                        "shape": shape.name,
                        "keys": num_keys,
                        "threads": threads,
                        "dtype": problem.case.dtype_name,
                        "loaded_fraction": loaded_fraction if name == SIFTED else 1.0,
                        "median_ms": timing.median_ms,
                        "min_ms": timing.min_ms,
                        "spread": timing.spread,
                        "error": error.item(),
                    }
                )
    return {"version": peer.VERSION, "settings": peer.SETTINGS}, rows


def distinct_layers(problem: Problem) -> list[Layer]:
    """The layers of the problem's endless walk."""
    layers = [next(problem.layers)]
    while (layer := next(problem.layers)) is not layers[0]:
        layers.append(layer)
    return layers


def reference(problem: Problem, sharpness: float) -> tuple[torch.Tensor, float]:
    """The exact output, [1, HQ, D] in float32, and the share of V rows that sifting loads."""
    q, (k, v, _) = problem.query(sharpness), problem.layer
    exact = cast(torch.Tensor, sift.reference.decode(q.float(), k.float(), v.float()))
    _, stats = sift.decode(q, k, v, LAW, v_sum=problem.v_sum, return_stats=True)
    return exact, stats.num_loaded.sum().item() / (k.shape[1] * k.shape[2])


def merge_rounds(rows: list[Row]) -> list[Row]:
    """One row per call: the median of the rounds' medians, and the largest spread in a round."""
    by_call: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[field] for field in ("shape", "keys", "threads", "dtype", "name"))
        by_call.setdefault(key, []).append(row)
    return [
        same[0]
        | {
            "median_ms": statistics.median(row["median_ms"] for row in same),
            "round_median_ms": [row["median_ms"] for row in same],
            "min_ms": min(row["min_ms"] for row in same),
            "spread": max(row["spread"] for row in same),
        }
        for same in by_call.values()
    ]


def print_tables(rows: list[Row]) -> None:
    """Per shape, length and threads: every time, and how many times ours are as fast."""
    for shape, num_keys, threads in dict.fromkeys(
        (row["shape"], row["keys"], row["threads"]) for row in rows
    ):
        chosen = [
            row
            for row in rows
            if (row["shape"], row["keys"], row["threads"]) == (shape, num_keys, threads)
        ]
        ms = {(row["name"], row["dtype"]): row["median_ms"] for row in chosen}
        print(f"\n{f'{shape}, {num_keys:,} keys, {threads} thread(s)':42}{'ms':>9}{'spread':>8}"
              f"{'error':>9}{'ours, exact':>13}{'10% loaded':>12}")  # fmt: skip
        for row in sorted(chosen, key=lambda row: row["median_ms"]):
            dtype, own_ms = row["dtype"], row["median_ms"]
            print(f"{row['name'] + ', ' + dtype:42}{own_ms:9.3f}{row['spread']:8.1%}"
                  f"{row['error']:9.1e}{own_ms / ms[EXACT, dtype]:12.2f}x"
                  f"{own_ms / ms[SIFTED, dtype]:11.2f}x")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "peers_cpu.json")
    arguments = parser.parse_args()

    description = machine.describe()
    engines: dict[str, dict[str, str]] = {}
    rows: list[Row] = []
    missing: set[str] = set()
    context = multiprocessing.get_context("spawn")
    steps = [
        (engine, shape, num_keys)
        for _ in range(ROUNDS)
        for shape in SHAPES
        for num_keys in LENGTHS
        for engine in ENGINES
    ]
    progress = tqdm(steps, unit="process", disable=None)
    for engine, shape, num_keys in progress:
        progress.set_description(f"{engine}, {shape.name}, {num_keys:,} keys")
        with ProcessPoolExecutor(1, context) as process:
            try:
                task = process.submit(bench_engine, engine, shape, num_keys)
                engines[engine], new_rows = task.result()
                rows += new_rows
            except ModuleNotFoundError as error:
                missing.add(f"{engine}: {error.name} must be installed to measure it, got none.")
    rows = merge_rounds(rows)
    print_tables(rows)
    print(*sorted(missing), sep="\n")
    result = {"benchmark": "peers_cpu", "machine": description, "engines": engines, "rows": rows}
    write_json(result, arguments.out)
    print("\nwrote", os.path.relpath(arguments.out))


if __name__ == "__main__":
    main()
