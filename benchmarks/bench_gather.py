"""Measure how fast a GPU gathers scattered 256-byte rows, against the fraction of rows kept.

    python benchmarks/bench_gather.py            # compiles gather/gather_rows.cu, about 15 seconds

Writes results/gather_cuda.json and prints, for each way to load and each number of rows in flight
per multiprocessor, the bytes per second of the rows as a share of the copy bandwidth.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine
from reports import write_json

SOURCE = machine.ROOT / "benchmarks" / "gather" / "gather_rows.cu"
PROGRAM = machine.ROOT / "build" / "gpu" / "gather_rows"
RESULT = machine.ROOT / "benchmarks" / "results" / "gather_cuda.json"

Row = dict[str, Any]


def compile_command(architecture: str) -> list[str]:
    """nvcc's, for an architecture such as sm_90 or native."""
    options = ["-O3", "-std=c++20", f"-arch={architecture}", "-Werror=all-warnings"]
    return [machine.nvcc(), *options, "-o", str(PROGRAM), str(SOURCE)]


def parse(output: str) -> dict[str, Any]:
    """What the program printed: a line about the GPU, then a line for each measurement."""
    first, *rows = [json.loads(line) for line in output.splitlines()]
    return {**first, "rows": rows}


def tables(result: dict[str, Any]) -> str:
    """For each load, ways to load and rows in flight down, kept fractions across."""
    copy = result["copy_gb_per_s"]
    lines = [
        f"{result['gpu']}: copy {copy:,.0f} GB/s (bytes read and written), read "
        f"{result['read_gb_per_s']:,.0f} GB/s; below, of 256-byte rows, in % of the copy"
    ]
    kept = sorted({row["kept"] for row in result["rows"]}, reverse=True)
    for load in dict.fromkeys(row["load"] for row in result["rows"]):
        lines.append(
            f"\n{load + ', rows kept:':34}" + "".join(f"{fraction:>7.0%}" for fraction in kept)
        )
        best: dict[tuple[str, int], dict[float, float]] = {}
        for row in result["rows"]:
            if row["load"] == load:
                at = best.setdefault((row["instruction"], row["rows_in_flight"]), {})
                at[row["kept"]] = max(at.get(row["kept"], 0.0), row["gb_per_s"] / copy)
        for (instruction, rows_in_flight), shares in best.items():
            title = f"{instruction:18}{rows_in_flight:5} in flight "
            lines.append(f"{title:34}" + "".join(f"{shares[fraction]:>7.0%}" for fraction in kept))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="native", help="of nvcc; default: this machine's GPU")
    parser.add_argument("--out", type=Path, default=RESULT, help="default: %(default)s")
    arguments = parser.parse_args()

    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    if subprocess.run(compile_command(arguments.arch)).returncode != 0:
        return 1
    run = subprocess.run([str(PROGRAM)], stdout=subprocess.PIPE, text=True)
    if not run.stdout:
        return 1
    result = {
        "benchmark": "gather_cuda",
        "machine": machine.describe("cuda"),
        **parse(run.stdout),
    }
    write_json(result, arguments.out)
    print(tables(result))
    print("\nwrote", os.path.relpath(arguments.out))
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
