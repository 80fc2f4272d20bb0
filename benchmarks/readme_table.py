"""Write README's benchmark table from the committed JSON.

python benchmarks/readme_table.py            # rewrite README.md between the markers
python benchmarks/readme_table.py --check    # fail if that would change it
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULT = ROOT / "benchmarks" / "results" / "decode_cpu.json"
BEGIN, END = "<!-- benchmark table: begin -->", "<!-- benchmark table: end -->"
BASELINE = "SDPA, bf16"


def table(result: dict[str, Any], num_keys: int = 32768) -> str:
    """Markdown: one row per formulation, for the first shape at `num_keys` keys."""
    shape = result["rows"][0]["shape"]
    rows = [r for r in result["rows"] if r["shape"] == shape and r["keys"] == num_keys]
    thread_counts = sorted({row["threads"] for row in rows})
    at = {(row["name"], row["threads"]): row for row in rows}
    header = ["", "V rows loaded"]
    for threads in thread_counts:
        header += [_threads(threads), "speed-up", "of read bandwidth"]
    lines = [_line(header), _line(["---"] + ["---:"] * (len(header) - 1))]
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = [name.split(" loaded")[0], f"{at[name, thread_counts[0]]['loaded_fraction']:.0%}"]
        for threads in thread_counts:
            row = at[name, threads]
            share = row["gb_per_s"] / result["read_gb_per_s"][str(threads)]
            ratio = at[BASELINE, threads]["median_ms"] / row["median_ms"]
            cells += [f"{row['median_ms']:.2f} ms", f"{ratio:.1f}x", f"{share:.0%}"]
        lines.append(_line(cells))
    return "\n".join(lines) + "\n\n" + _caption(result, num_keys)


def _threads(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _caption(result: dict[str, Any], num_keys: int) -> str:
    machine = result["machine"]
    bandwidth = ", ".join(
        f"{speed:.1f} GB/s with {_threads(int(threads))}"
        for threads, speed in result["read_gb_per_s"].items()
    )
    return (
        f"One decode step of one layer: 32 query heads, 8 key/value heads, D = 128, batch 1, "
        f"{num_keys:,} keys outside the caches. {machine['cpu']} with {machine['cores']} cores and "
        f"{', '.join(machine['isa'])}; measured read bandwidth {bandwidth}; "
        f"torch {machine['torch']}, commit {machine['commit']}, {machine['date']}. "
        f"Medians; speed-up against SDPA in bfloat16. fp32 keeps the cache in float32; widened "
        f"reads bfloat16 and computes in float32, one key/value head at a time."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if outdated")
    arguments = parser.parse_args()

    old = README.read_text()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        print(f"readme_table: README.md must contain {BEGIN} and {END}, got neither or one.")
        return 1
    new = f"{before}{begin}\n{table(json.loads(RESULT.read_text()))}\n{end}{after}"
    if arguments.check:
        if new != old:
            print("readme_table: README.md is outdated, run `python benchmarks/readme_table.py`.")
        return int(new != old)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
