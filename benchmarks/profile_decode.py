"""Where the time of one decode call goes, into results/profile_cpu.json and docs/cpu_kernel.md.

make profile                                       # builds the program, then runs this
python benchmarks/profile_decode.py PROGRAM        # PROGRAM: profile_decode as CMake built it
python benchmarks/profile_decode.py --check        # fail if the table is not the JSON's
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine
from reports import update_page, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "profile_cpu.json"
PAGE = ROOT / "docs" / "cpu_kernel.md"
COLUMNS = ("call", "score", "softmax", "select", "load", "rest", "read K", "read V")


def table(result: dict[str, Any]) -> str:
    """Markdown: milliseconds of every phase, with K and V in memory and in L1."""
    lines = ["| K and V in | V rows loaded | " + " | ".join(COLUMNS) + " |"]
    lines.append("| --- |" + " ---: |" * (1 + len(COLUMNS)))
    for profile in sorted(result["rows"], key=lambda p: p["kv"] != "memory"):
        cells = [profile["kv"], f"{profile['loaded_fraction']:.0%}"]
        cells += [f"{profile['ms'][name]:.2f}" for name in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    on = result["machine"]
    lines.append(
        f"\nMilliseconds (medians) of one thread: {result['keys']:,} keys, "
        f"{result['kv_heads']} key/value heads, {result['group']} query heads each, "
        f"D = {result['dim']}, bfloat16, level {result['level']}. {on['cpu']}, "
        f"{', '.join(on['isa'])}; commit {on['commit']}, {on['date']}."
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", help="profile_decode, built; else only the table")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if outdated")
    arguments = parser.parse_args()
    if arguments.program:
        run = subprocess.run([arguments.program], capture_output=True, text=True, check=True)
        result = {
            "benchmark": "profile_cpu",
            "machine": machine.describe(),
            **json.loads(run.stdout),
        }
        write_json(result, RESULT)
        print(table(result))

    text = table(json.loads(RESULT.read_text()))
    return update_page(PAGE, "profile", text, "make profile", check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
