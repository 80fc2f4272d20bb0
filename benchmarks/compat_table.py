"""Write README's table of versions that were tested together, from the committed JSON.

python benchmarks/compat_table.py            # rewrite README.md between the markers
python benchmarks/compat_table.py --check    # fail if that would change it
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from reports import update_page

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULT = ROOT / "benchmarks" / "results" / "compat.json"
MACHINE = ("cpu", "cores", "isa", "os", "date")  # what the result says of it


def outcome(row: dict[str, Any]) -> str:
    """What became of one combination, in words."""
    if "missing" in row:
        return f"not tested: {row['missing']}"
    failed = f"{row['failed']} failed, " if row["failed"] else ""
    quick = " (quick)" if row["quick"] else ""
    return f"{failed}{row['passed']} passed, {row['skipped']} skipped{quick}"


def table(result: dict[str, Any]) -> str:
    """Markdown: a line for each combination."""
    lines = ["| Python | torch | transformers | tests |", "| --- | --- | --- | --- |"]
    for row in result["rows"]:
        versions = (row["python"], row["torch"], row["transformers"])
        lines.append(f"| {' | '.join(versions)} | {outcome(row)} |")
    machine = result["machine"]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in result["rows"] if "passed" in row))
    return "\n".join(lines) + (
        f"\n\nOne wheel per Python, installed away from the sources, on the CPU ({machine['cpu']}, "
        f"{machine['date']}, commit {commits}): tests of the operators and of models and caches, "
        "of the latter alone where only transformers differs from the first line, of both fewer "
        "where it says quick; `make compat`. Skipped is what stock transformers of that version "
        "cannot do either, or what needs more than the CPU."
    )


def main(argv: list[str] | None = None) -> int:
    """Exit status: 1 if the table is outdated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if outdated")
    arguments = parser.parse_args(argv)
    text = table(json.loads(RESULT.read_text()))
    command = "python benchmarks/compat_table.py"
    return update_page(README, "compatibility table", text, command, check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
