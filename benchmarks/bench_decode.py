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
from tqdm import tqdm

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
EXACT = "sift, exact"

Row = dict[str, Any]


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out.float() - reference).norm() / reference.norm())


def bench_length(
    shape: Shape, num_keys: int, thread_counts: list[int], *, flex: bool, budget_s: float
) -> list[Row]:
    """Every formulation at one length, timed against each other; a row for each and each count."""
    torch.set_num_threads(max(thread_counts))
    problem = make_problem(shape, num_keys)
    calls = baseline_calls(problem, DENSE_SHARPNESS, flex=flex)
    calls[EXACT] = sift_call(problem, DENSE_SHARPNESS, None)
    measured = dict.fromkeys(calls, (1.0, DENSE_SHARPNESS))
    # Below this many keys a few rows are a large fraction, and the integrations decode exactly.
    if num_keys >= sift.SiftConfig().min_keys:
        for fraction in LOADED_FRACTIONS:
            name = f"sift, {fraction:.0%} loaded"
            sharpness = problem.sharpness_for(fraction)
            calls[name] = sift_call(problem, sharpness, LAW)
            measured[name] = (measured_loaded(problem, sharpness), sharpness)

    rows = []
    sharpnesses = {sharpness for _, sharpness in measured.values()}
    exact_outputs = {sharpness: exact_output(problem, sharpness) for sharpness in sharpnesses}
    for threads in thread_counts:
        torch.set_num_threads(threads)
        for name, timing in measure(calls, budget_s=budget_s).items():
            loaded, sharpness = measured[name]
            rows.append(
                {
                    "shape": shape.name,
                    "threads": threads,
                    "keys": num_keys,
                    "name": name,
                    "loaded_fraction": loaded,
                    "error": relative_error(calls[name](), exact_outputs[sharpness]),
                    **cost(shape, num_keys, name, loaded, timing),
                }
            )
    return rows


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


def print_tables(rows: list[Row], bandwidth: dict[int, float]) -> None:
    """Per shape and thread count: times at all lengths, and the details of the longest."""
    lengths = sorted({row["keys"] for row in rows})
    for panel in dict.fromkeys((row["shape"], row["threads"]) for row in rows):
        chosen = [row for row in rows if (row["shape"], row["threads"]) == panel]
        longest = [row for row in chosen if row["keys"] == lengths[-1]]
        print(f"\n{panel[0]} layer, {panel[1]} thread(s): ms by number of keys")
        print(f"{'':30}" + "".join(f"{num_keys:>9}" for num_keys in lengths))
        for name in (row["name"] for row in longest):
            times = {row["keys"]: row["median_ms"] for row in chosen if row["name"] == name}
            cells = (f"{times[n]:9.3f}" if n in times else f"{'':9}" for n in lengths)
            print(f"{name:30}" + "".join(cells))
        print(f"\n{f'at {lengths[-1]:,} keys':30}{'vs SDPA':>9}{'loaded':>9}{'GB/s':>9}"
              f"{'of read':>9}{'error':>10}{'spread':>9}")  # fmt: skip
        for row in longest:
            print(f"{row['name']:30}{longest[0]['median_ms'] / row['median_ms']:8.1f}x"
                  f"{row['loaded_fraction']:9.1%}{row['gb_per_s']:9.1f}"
                  f"{row['gb_per_s'] / bandwidth[panel[1]]:9.1%}{row['error']:10.1e}"
                  f"{row['spread']:9.1%}")  # fmt: skip


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

    rows: list[Row] = []
    progress = tqdm([(shape, n) for shape in SHAPES for n in lengths], unit="length")
    for shape, num_keys in progress:
        progress.set_description(f"{shape.name} layer, {num_keys:,} keys")
        budget_s = 10.0 if arguments.full else 2.0
        rows += bench_length(shape, num_keys, thread_counts, flex=arguments.flex, budget_s=budget_s)
    names = [shape.name for shape in SHAPES]
    rows.sort(key=lambda row: (names.index(row["shape"]), row["threads"], row["keys"]))

    print_tables(rows, bandwidth)
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
