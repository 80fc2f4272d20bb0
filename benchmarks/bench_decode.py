"""Time one decode step of one layer on the CPU against PyTorch's dense attention.

    python benchmarks/bench_decode.py            # quick: about 3 minutes, into build/
    python benchmarks/bench_decode.py --full     # more shapes and lengths, into results/

Writes a JSON and plots beside it, and prints the figures that the product promises.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import machine
import sift_attention as sift
from cells import EXACT, READ
from figures import print_figures
from formulations import Call, pytorch_calls, read_call, sift_call
from peak_memory import peak_extra_bytes
from plot_decode import plot
from reports import write_json
from suites import FULL, QUICK, Suite
from timing import measure
from workload import LAW, Case, Problem, make_problem

LOADED_FRACTIONS = (0.25, 0.10, 0.04, 0.01)
# The dense calls all compute this step; their time does not depend on the scores.
DENSE_SHARPNESS = 2.0

Row = dict[str, Any]


def bench_case(case: Case, suite: Suite, thread_counts: list[int]) -> list[Row]:
    """Every formulation of one case, timed against each other; a row for each and each count."""
    torch.set_num_threads(max(thread_counts))
    problem = make_problem(case)
    calls: dict[str, Call] = {}
    if case.num_keys <= suite.longest_dense:
        calls |= pytorch_calls(problem, DENSE_SHARPNESS, flex=suite.has_flex(case))
    calls[EXACT] = sift_call(problem, DENSE_SHARPNESS, None)
    sharpness_of = dict.fromkeys(calls, DENSE_SHARPNESS)
    # Below this many keys a few rows are a large fraction, and the integrations decode exactly.
    if case.num_keys >= sift.SiftConfig().min_keys:
        for fraction in LOADED_FRACTIONS:
            name = f"sift, {fraction:.0%} loaded"
            sharpness_of[name] = problem.sharpness_for(fraction)
            calls[name] = sift_call(problem, sharpness_of[name], LAW)

    exact = problem.exact_outputs(sorted({*sharpness_of.values()}))
    facts: dict[str, Row] = {}
    for name, sharpness in sharpness_of.items():
        loaded = measured_loaded(problem, sharpness) if name.endswith("loaded") else 1.0
        error = relative_error(calls[name](), exact[sharpness])
        facts[name] = {"error": error, **traffic(case, name, loaded)}
    calls[READ] = read_call(problem)
    facts[READ] = traffic(case, READ, 1.0)

    rows = []
    for threads in thread_counts:
        torch.set_num_threads(threads)
        for name, timing in measure(calls, budget_s=suite.budget_s).items():
            row = {
                "shape": case.shape.name,
                "dtype": case.dtype_name,
                "batch": case.batch,
                "keys": case.num_keys,
                "threads": threads,
                "name": name,
                "median_ms": float(f"{timing.median_ms:.5g}"),
                "min_ms": float(f"{timing.min_ms:.5g}"),
                "spread": round(timing.spread, 3),
                "repeats": timing.repeats,
                **facts[name],
            }
            if name.startswith("sift"):
                row["peak_extra_bytes"] = peak_extra_bytes(calls[name])
            rows.append(row)
    return rows


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    difference = out.double().reshape(reference.shape) - reference
    return float(f"{float(difference.norm() / reference.norm()):.2g}")


def measured_loaded(problem: Problem, sharpness: float) -> float:
    """Loaded rows as the operator itself counts them."""
    k, v, _ = problem.layer
    q = problem.query(sharpness)
    _, stats = sift.decode(q, k, v, LAW, v_sum=problem.v_sum, return_stats=True)
    return float(stats.num_loaded.float().mean()) / problem.case.num_keys


def traffic(case: Case, name: str, loaded: float) -> Row:
    """Bytes by the model: every K row, the loaded V rows, each once."""
    itemsize = 4 if name.endswith("fp32") else case.dtype.itemsize
    row_bytes = case.shape.num_kv_heads * case.shape.head_dim * itemsize
    num_bytes = round(case.batch * case.num_keys * row_bytes * (1 + loaded))
    return {"loaded_fraction": round(loaded, 4), "bytes": num_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more shapes, lengths and repeats")
    parser.add_argument("--out", type=Path, help="the JSON to write")
    arguments = parser.parse_args()

    torch.set_grad_enabled(False)
    folder = "benchmarks/results" if arguments.full else "build"
    path = arguments.out or machine.ROOT / folder / "decode_cpu.json"
    suite = FULL if arguments.full else QUICK
    result: dict[str, Any] = {
        "benchmark": "decode_cpu",
        "suite": "full" if arguments.full else "quick",
        "machine": machine.describe(),
        "law": "uniform(1.0), mean residual",
        "shapes": {case.shape.name: dataclasses.asdict(case.shape) for case in suite.cases},
        "rows": [],
    }
    progress = tqdm(suite.cases, unit="case")
    for case in progress:
        progress.set_description(str(case))
        result["rows"] += bench_case(case, suite, sorted({1, os.cpu_count() or 1}))

    write_json(result, path)
    print_figures(result)
    print("\nwrote", *[os.path.relpath(written) for written in (path, *plot(result, path))])


if __name__ == "__main__":
    main()
