"""Time one decode step of one layer against PyTorch's dense attention, on the CPU or on a GPU.

    python benchmarks/bench_decode.py            # quick: about 3 minutes, into build/
    python benchmarks/bench_decode.py --full     # more shapes and lengths, into results/
    python benchmarks/bench_decode.py --device cuda    # all of them, into results/

Writes a JSON and plots beside it, and prints the figures that the product promises.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import machine
import sift_attention as sift
from cells import COPY, EXACT, GRAPH, READ, STREAM
from figures import print_figures
from formulations import (
    COPIED_BYTES,
    Call,
    copy_call,
    cuda_calls,
    pytorch_calls,
    read_call,
    sift_call,
)
from peak_memory import peak_extra_bytes
from plot_decode import plot
from reports import write_json
from suites import FULL, GPU, QUICK, Suite
from timing import CudaClock, Timing, captured, measure
from workload import LAW, Case, Problem, make_problem

LOADED_FRACTIONS = (0.25, 0.10, 0.04, 0.01)
# The dense calls all compute this step; their time does not depend on the scores.
DENSE_SHARPNESS = 2.0

Row = dict[str, Any]


class Bench:
    """Measures cases on a device; `refused` lists what could not run, and why."""

    def __init__(self, suite: Suite, device: str) -> None:
        self.suite, self.device = suite, device
        self.refused: list[Row] = []

    def rows(self, case: Case) -> list[Row]:
        """Every formulation of one case, timed against each other; a row for each and each run."""
        num_threads = os.cpu_count() or 1
        torch.set_num_threads(num_threads)
        problem = make_problem(case, self.device)
        calls = self._usable(case, self._dense_calls(problem))
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
        if self.device == "cuda":
            calls[COPY], facts[COPY] = copy_call(), {"bytes": 2 * COPIED_BYTES}
        else:
            calls[READ], facts[READ] = read_call(problem), traffic(case, READ, 1.0)

        rows = []
        for run, timings in self._timings(problem, calls, sorted({1, num_threads})):
            for name, timing in timings.items():
                row = {
                    "shape": case.shape.name,
                    "dtype": case.dtype_name,
                    "batch": case.batch,
                    "keys": case.num_keys,
                    **run,
                    "name": name,
                    "median_ms": float(f"{timing.median_ms:.5g}"),
                    "min_ms": float(f"{timing.min_ms:.5g}"),
                    "spread": round(timing.spread, 3),
                    "repeats": timing.repeats,
                    **facts[name],
                }
                if name.startswith("sift") and run != {"launch": GRAPH}:
                    row["peak_extra_bytes"] = peak_extra_bytes(calls[name], self.device)
                rows.append(row)
        return rows

    def _dense_calls(self, problem: Problem) -> dict[str, Call]:
        if problem.case.num_keys > self.suite.longest_dense:
            return {}
        calls_of = cuda_calls if self.device == "cuda" else pytorch_calls
        return calls_of(problem, DENSE_SHARPNESS, flex=self.suite.has_flex(problem.case))

    def _usable(self, case: Case, calls: dict[str, Call]) -> dict[str, Call]:
        """Those that run: a backend of PyTorch may lack a shape, a dtype or its compiler."""
        usable = {}
        for name, call in calls.items():
            try:
                call()
                usable[name] = call
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                self.refused.append({"case": str(case), "name": name, "reason": reason})
        return usable

    def _timings(
        self, problem: Problem, calls: dict[str, Call], thread_counts: list[int]
    ) -> Iterator[tuple[Row, dict[str, Timing]]]:
        """What tells the runs apart, and their timings."""
        budget_s = self.suite.budget_s
        if self.device == "cpu":
            for threads in thread_counts:
                torch.set_num_threads(threads)
                yield {"threads": threads}, measure(calls, budget_s=budget_s)
            return
        each = {"budget_s": budget_s, "min_sample_ms": 0.0}
        yield {"launch": STREAM}, measure(calls, clock=CudaClock(), **each)
        # One walk through the layers: none is met twice.
        num_calls = problem.num_layers
        graphs = {name: captured(call, num_calls) for name, call in calls.items()}
        yield {"launch": GRAPH}, measure(graphs, clock=CudaClock(num_calls), **each)


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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no case after that")
    parser.add_argument("--out", type=Path, help="the JSON to write")
    arguments = parser.parse_args()

    start_s = time.monotonic()
    torch.set_grad_enabled(False)
    on_gpu = arguments.device == "cuda"
    kind = "full" if arguments.full or on_gpu else "quick"
    folder = "benchmarks/results" if kind == "full" else "build"
    path = arguments.out or machine.ROOT / folder / f"decode_{arguments.device}.json"
    suite = GPU if on_gpu else FULL if arguments.full else QUICK
    bench = Bench(suite, arguments.device)
    result: dict[str, Any] = {
        "benchmark": f"decode_{arguments.device}",
        "suite": kind,
        "machine": machine.describe(arguments.device),
        "law": "uniform(1.0), mean residual",
        "shapes": {case.shape.name: dataclasses.asdict(case.shape) for case in suite.cases},
        "refused": bench.refused,
        "rows": [],
    }
    progress = tqdm(suite.cases, unit="case", mininterval=1.0 if on_gpu else 0.1)
    for i, case in enumerate(progress):
        if time.monotonic() - start_s > arguments.seconds:
            print(f"\ntime is up, left out: {'; '.join(map(str, suite.cases[i:]))}")
            break
        progress.set_description(str(case))
        result["rows"] += bench.rows(case)
        write_json(result, path)  # whatever happens next, this much is kept
        if on_gpu:
            torch.cuda.empty_cache()

    if result["rows"]:
        print_figures(result)
    for refusal in bench.refused:
        print("refused:", *refusal.values(), sep="  ")
    write_json(result, path)
    print("\nwrote", *[os.path.relpath(written) for written in (path, *plot(result, path))])


if __name__ == "__main__":
    main()
