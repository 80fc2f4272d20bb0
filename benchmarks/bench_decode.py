"""Time one decode step of one layer on the CPU against PyTorch's dense attention.

    python benchmarks/bench_decode.py            # up to 32,768 keys, under 3 minutes
    python benchmarks/bench_decode.py --full     # up to 131,072 keys, more repeats

Batch 1, bfloat16 K and V that are not in the cache, as in a model whose other layers ran in
between. Writes results/decode_cpu.json and the plots beside it; readme_table.py makes README's
table from it.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

import machine
import sift_attention as sift
from plot_decode import plot
from timing import Timing, measure, read_bandwidth
from workload import LAW, SHAPES, Problem, Shape, baseline_calls, make_problem, sift_call

RESULTS = Path(__file__).resolve().parent / "results"
QUICK_LENGTHS = (16, 64, 256, 1024, 4096, 8192, 16384, 32768)
FULL_LENGTHS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
LOADED_FRACTIONS = (0.25, 0.10, 0.04)
# The dense calls all compute this step; their time does not depend on the scores.
DENSE_SHARPNESS = 2.0

Row = dict[str, Any]


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out.float() - reference).norm() / reference.norm())


def bench_length(
    shape: Shape, num_keys: int, *, threads: int, flex: bool, budget_s: float
) -> list[Row]:
    """Every formulation at one length, timed against each other; one row each."""
    torch.set_num_threads(os.cpu_count() or 1)
    problem = make_problem(shape, num_keys)
    exact = "sift, exact"
    calls = baseline_calls(problem, DENSE_SHARPNESS, flex=flex)
    calls[exact] = sift_call(problem, DENSE_SHARPNESS, None)
    sharpness = dict.fromkeys(calls, DENSE_SHARPNESS)
    loaded = dict.fromkeys(calls, 1.0)
    # Below this many keys a few rows are a large fraction, and the integrations decode exactly.
    if num_keys >= sift.SiftConfig().min_keys:
        for fraction in LOADED_FRACTIONS:
            name = f"sift, {fraction:.0%} loaded"
            sharpness[name] = problem.sharpness_for(fraction)
            calls[name] = sift_call(problem, sharpness[name], LAW)
            loaded[name] = measured_loaded(problem, sharpness[name])

    torch.set_num_threads(threads)
    timings = measure(calls, budget_s=budget_s)
    return [
        {
            "shape": shape.name,
            "threads": threads,
            "keys": num_keys,
            "name": name,
            "loaded_fraction": loaded[name],
            "error": relative_error(call(), exact_output(problem, sharpness[name])),
            **cost(shape, num_keys, name, loaded[name], timings[name]),
        }
        for name, call in calls.items()
    ]


def measured_loaded(problem: Problem, sharpness: float) -> float:
    """Loaded rows as the operator itself counts them."""
    k, v = problem.caches[0]
    q = problem.query(sharpness)
    _, stats = sift.decode(q, k, v, LAW, v_sum=problem.v_sum, return_stats=True)
    return stats.num_loaded.sum().item() / (problem.num_keys * problem.shape.num_kv_heads)


def exact_output(problem: Problem, sharpness: float) -> torch.Tensor:
    k, v = (tensor.float() for tensor in problem.caches[0])
    return cast(torch.Tensor, sift.reference.decode(problem.query(sharpness).float(), k, v))


def cost(shape: Shape, num_keys: int, name: str, loaded: float, timing: Timing) -> Row:
    """Time and, by the byte model, traffic: every K row, the loaded V rows, each once."""
    row_bytes = shape.row_bytes(4 if name.endswith("fp32") else 2)
    num_bytes = round(num_keys * row_bytes * (1 + loaded))
    return {
        "median_ms": timing.median_ms,
        "min_ms": timing.min_ms,
        "spread": timing.spread,
        "repeats": timing.repeats,
        "bytes": num_bytes,
        "gb_per_s": num_bytes / timing.median_ms / 1e6,
    }


def print_table(rows: list[Row], bandwidth: dict[int, float]) -> None:
    """One block per shape, thread count and length."""
    previous = None
    for row in rows:
        block = (row["shape"], row["threads"], row["keys"])
        if block != previous:
            print(f"\n{row['shape']}, {row['keys']:,} keys, {row['threads']} thread(s)")
            print(f"{'':24}{'ms':>10} {'spread':>7} {'vs SDPA':>9} {'loaded':>8} "
                  f"{'GB/s':>7} {'of read':>8} {'error':>9}")  # fmt: skip
            sdpa_ms = row["median_ms"]
            previous = block
        share = row["gb_per_s"] / bandwidth[row["threads"]]
        print(f"{row['name']:24}{row['median_ms']:10.4f} {row['spread']:7.1%} "
              f"{sdpa_ms / row['median_ms']:8.1f}x {row['loaded_fraction']:8.1%} "
              f"{row['gb_per_s']:7.1f} {share:8.1%} {row['error']:9.1e}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more lengths and repeats")
    parser.add_argument("--flex", action="store_true", help="flex_attention too (it compiles)")
    parser.add_argument("--out", type=Path, default=RESULTS / "decode_cpu.json")
    arguments = parser.parse_args()

    torch.set_grad_enabled(False)
    lengths = FULL_LENGTHS if arguments.full else QUICK_LENGTHS
    thread_counts = sorted({1, os.cpu_count() or 1})
    description = machine.describe()
    bandwidth, method = {}, {}
    for threads in thread_counts:
        torch.set_num_threads(threads)
        bandwidth[threads], method[threads] = read_bandwidth()
        print(f"read bandwidth, {threads} thread(s): {bandwidth[threads]:.1f} GB/s "
              f"({method[threads]})")  # fmt: skip

    cases = [(s, t, n) for s in SHAPES for t in thread_counts for n in lengths]
    rows: list[Row] = []
    progress = tqdm(cases, unit="case")
    for shape, threads, num_keys in progress:
        progress.set_description(f"{shape.name}, {threads} thread(s), {num_keys} keys")
        budget_s = 10.0 if arguments.full else 2.5
        rows += bench_length(
            shape, num_keys, threads=threads, flex=arguments.flex, budget_s=budget_s
        )

    print_table(rows, bandwidth)
    result = {
        "benchmark": "decode_cpu",
        "machine": description,
        "read_gb_per_s": {str(t): bandwidth[t] for t in thread_counts},
        "read_method": {str(t): method[t] for t in thread_counts},
        "law": "uniform(2.0), mean residual",
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    plots = plot(result, arguments.out)
    print("\nwrote", *[os.path.relpath(path) for path in (arguments.out, *plots)])


if __name__ == "__main__":
    main()
