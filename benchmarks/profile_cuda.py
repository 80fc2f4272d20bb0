"""Count the launches of a decode call and the bytes it moves, by a GPU's own counters.

    python benchmarks/profile_cuda.py    # needs Nsight Compute's ncu and leave to read counters

Writes results/profile_cuda.json: bytes read from device memory against the model's, which are
every K row and the loaded V rows, each once. The caches are emptied before each kernel.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import machine
from bench_decode import DENSE_SHARPNESS, measured_loaded, traffic
from cells import EXACT, SIFTED
from formulations import cuda_calls, sift_call
from reports import write_json
from workload import GEMMA3_4B, LAW, LLAMA_8B, QWEN3_30B, Case, make_problem

RESULT = machine.ROOT / "benchmarks" / "results" / "profile_cuda.json"
CASES = (
    Case(LLAMA_8B, 32768),
    Case(LLAMA_8B, 131072),
    Case(LLAMA_8B, 32768, batch=8),
    Case(QWEN3_30B, 32768),
    Case(GEMMA3_4B, 32768),
)
READ, WRITTEN, TIME = "dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum"

Row = dict[str, Any]


def work(path: Path) -> None:
    """What ncu watches: before each call a marker. Writes a description of each call."""
    torch.set_grad_enabled(False)
    facts: list[Row] = []
    for case in CASES:
        problem = make_problem(case, "cuda")
        sharpness = problem.sharpness_for(0.10)
        loaded = {SIFTED: measured_loaded(problem, sharpness)}
        dense = cuda_calls(problem, DENSE_SHARPNESS, flex=False)
        calls = {
            EXACT: sift_call(problem, DENSE_SHARPNESS, None),
            SIFTED: sift_call(problem, sharpness, LAW),
            **{name: call for name, call in dense.items() if "flash" in name},
        }
        for call in calls.values():  # once unwatched, to set up what is set up once
            call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        for name, call in calls.items():
            torch.cuda._sleep(1)
            call()
            where = {"shape": case.shape.name, "batch": case.batch, "keys": case.num_keys}
            facts.append({**where, "name": name, **traffic(case, name, loaded.get(name, 1.0))})
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    path.write_text(json.dumps(facts))


def ncu_command(ncu: str, log: Path, facts: Path) -> list[str]:
    options = ["--profile-from-start", "off", "--clock-control", "none", "--csv"]
    options += ["--print-units", "base", "--log-file", str(log)]
    options += ["--metrics", f"{READ},{WRITTEN},{TIME}"]
    return [ncu, *options, sys.executable, __file__, "--worker", str(facts)]


def kernels(log: str) -> list[Row]:
    """The kernels in ncu's log, in order: a name, and each metric."""
    lines = log.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        raise SystemExit(f"profile_cuda: ncu must give a table, got: {' '.join(lines)[-500:]}")
    found: dict[int, Row] = {}
    for entry in csv.DictReader(lines[first:]):
        kernel = found.setdefault(int(entry["ID"]), {"kernel": entry["Kernel Name"]})
        kernel[entry["Metric Name"]] = float(entry["Metric Value"].replace(",", ""))
    return [found[i] for i in sorted(found)]


def merge(facts: list[Row], every: list[Row]) -> list[Row]:
    """A row for each call: the kernels between its marker, which came first of all, and the next.

    Raises:
        SystemExit: there are not as many markers as calls.
    """
    marker = every[0]["kernel"]
    starts = [i for i, kernel in enumerate(every) if kernel["kernel"] == marker]
    if len(starts) != len(facts):
        raise SystemExit(
            f"profile_cuda: ncu must see {len(facts)} calls, got {len(starts)} of {marker}"
        )
    rows = []
    for fact, start, end in zip(facts, starts, [*starts[1:], len(every)], strict=True):
        launched = every[start + 1 : end]
        read = sum(kernel[READ] for kernel in launched)
        rows.append({
            **fact,
            "launches": len(launched),
            "kernels": [kernel["kernel"] for kernel in launched],
            "read_bytes": round(read),
            "written_bytes": round(sum(kernel[WRITTEN] for kernel in launched)),
            "gpu_us": round(sum(kernel[TIME] for kernel in launched) / 1e3, 2),
            "read_over_model": round(read / fact["bytes"], 4),
        })  # fmt: skip
    return rows


def table(rows: list[Row]) -> str:
    lines = [f"{'layer':14}{'B':>4}{'keys':>8}  {'call':20}{'launches':>9}{'loaded':>8}"
             f"{'MB read':>10}{'of model':>10}{'MB written':>12}{'us':>10}"]  # fmt: skip
    for row in rows:
        lines.append(
            f"{row['shape']:14}{row['batch']:4}{row['keys']:8}  {row['name']:20}"
            f"{row['launches']:9}{row['loaded_fraction']:8.1%}{row['read_bytes'] / 1e6:10.1f}"
            f"{row['read_over_model']:10.1%}{row['written_bytes'] / 1e6:12.2f}{row['gpu_us']:10.1f}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ncu", default="ncu", help="default: on the PATH")
    parser.add_argument("--out", type=Path, default=RESULT, help="default: %(default)s")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return 0

    with tempfile.TemporaryDirectory() as folder:
        log, facts = Path(folder) / "ncu.csv", Path(folder) / "facts.json"
        status = subprocess.run(ncu_command(arguments.ncu, log, facts)).returncode
        if status != 0:
            print(log.read_text()[-2000:] if log.exists() else "ncu left no log")
            return status
        rows = merge(json.loads(facts.read_text()), kernels(log.read_text()))
    result = {"benchmark": "profile_cuda", "machine": machine.describe("cuda"), "rows": rows}
    write_json(result, arguments.out)
    print(table(rows))
    print("\nwrote", os.path.relpath(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
