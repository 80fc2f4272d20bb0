"""Test one built wheel under every supported torch, transformers and Python that can be had.

    make compat                                 # all; an hour on 2 cores, 25 GB in build/compat
    make compat ARGS="3.11-2.11.0-4.57.6"       # some: Python, torch, transformers; the others
                                                # keep the result that they have
    make compat ARGS=--quick                    # with a tenth of the tests
    make compat ARGS=--list

The wheel is built once for each Python; what was installed before is used again. Leaves
benchmarks/results/compat.json and README's table.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from compat_cells import (
    CELLS,
    PYTHON,
    ROOT,
    TORCH,
    TRANSFORMERS,
    WORK,
    Cell,
    MissingError,
    prepare,
    run,
)

sys.path.append(str(ROOT / "benchmarks"))
import compat_table
from machine import describe
from reports import write_json

RESULT = compat_table.RESULT
# Not the evaluation, the benchmarks, the build and the C++ interface, nor tests of numbers alone
# that take long.
OPERATORS = ("calibration", "contract", "decode", "errors", "estimator", "fit_power_law", "law")
OPERATORS += ("loading", "schema", "score_quantile", "sdpa", "state", "value_sum")
MODELS = ("architectures", "cache_operations", "compile", "enable", "growing_layer", "matrix")
MODELS += ("refusals", "sifting", "statistics")
QUICK = ("decode", "errors", "schema", "sdpa", "state")
QUICK += ("cache_operations", "matrix", "refusals", "sifting")
QUICK_WORDS = "not test_matrix or qwen3 or gpt_oss"  # for pytest -k: of all families, two
ASK_VERSIONS = """
import json, platform, sys, sift_attention, torch, transformers
assert sift_attention.__file__.startswith(sys.prefix), sift_attention.__file__
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__,
                  "transformers": transformers.__version__}))
"""


def test(cell: Cell, log: Path, *, quick: bool) -> dict[str, Any]:
    """A row of the result: the versions that met, and how many tests passed."""
    row = {**asked_for(cell), "quick": quick}
    try:
        interpreter = prepare(cell, log)
        asked = subprocess.run([interpreter, "-c", ASK_VERSIONS], capture_output=True, text=True)
        if asked.returncode != 0:
            return {**row, "failed": 1, "missing": reason(asked.stderr)}
        row |= json.loads(asked.stdout)
    except MissingError as error:
        return {**row, "missing": str(error)}
    except subprocess.CalledProcessError as error:
        return {**row, "failed": 1, "missing": f"{Path(error.cmd[0]).name} failed"}
    report = WORK / f"{cell}.xml"
    report.unlink(missing_ok=True)
    options = ["-q", "-p", "no:cacheprovider", "--timeout=600", f"--junitxml={report}"]
    options += ["-k", QUICK_WORDS] if quick else []
    try:
        run(interpreter, "-m", "pytest", *options, *files(cell, quick=quick), log=log,
            OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")  # fmt: skip
    except subprocess.CalledProcessError:
        if not report.exists():
            return {**row, "failed": 1, "missing": "pytest failed before the tests"}
    return {**row, **count(report)}


def reason(stderr: str) -> str:
    """The last line of a traceback, without the folders of this machine."""
    return re.sub(r"/\S*/", "", stderr.strip().splitlines()[-1])


def asked_for(cell: Cell) -> dict[str, Any]:
    """The versions of a cell as a row has them."""
    versions = {"python": cell.python, "torch": cell.torch, "transformers": cell.transformers}
    return {"cell": str(cell), **versions}


def files(cell: Cell, *, quick: bool) -> list[Path]:
    """The tests for a cell: those of models alone where only transformers is not the usual one."""
    is_usual = (cell.python, cell.torch) == (PYTHON, TORCH)
    operators = () if is_usual and cell.transformers != TRANSFORMERS else OPERATORS
    return [
        *(ROOT / "tests" / f"test_{name}.py" for name in operators if not quick or name in QUICK),
        *(ROOT / "tests/hf" / f"test_{name}.py" for name in MODELS if not quick or name in QUICK),
    ]


def count(report: Path) -> dict[str, Any]:
    """What pytest's JUnit report says: numbers, and the names of tests that failed."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None
              or case.find("error") is not None]  # fmt: skip
    skipped = [case for case in cases if case.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": len(failed),
        "skipped": len(skipped),
        "failures": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
    }


def publish(rows: dict[str, dict[str, Any]]) -> None:
    """Everything that is known so far; the machine is that of the last run."""
    unknown = {str(cell): {**asked_for(cell), "missing": "not run yet"} for cell in CELLS}
    ordered = [rows.get(name, row) for name, row in unknown.items()]
    machine = {name: value for name, value in describe().items() if name in compat_table.MACHINE}
    write_json({"machine": machine, "rows": ordered}, RESULT)
    compat_table.main([])


def parse(argv: list[str] | None) -> tuple[list[Cell], bool]:
    """The cells that the command line names, and whether to be quick."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="*", metavar="CELL", help="default: all of --list")
    parser.add_argument("--quick", action="store_true", help="a tenth of the tests")
    parser.add_argument("--list", action="store_true", help="list the cells")
    arguments = parser.parse_args(argv)
    known = {str(cell): cell for cell in CELLS}
    if arguments.list:
        parser.exit(message="\n".join([*known, ""]))
    for name in arguments.cells:
        if name not in known:
            parser.error(f"CELL must be one of --list, got {name}")
    chosen = [cell for name, cell in known.items() if name in (arguments.cells or known)]
    return chosen, arguments.quick


def main(argv: list[str] | None = None) -> int:
    """Exit status: 1 if a test failed."""
    chosen, quick = parse(argv)
    WORK.mkdir(parents=True, exist_ok=True)
    for folder in WORK.glob("wheel-*"):  # of older sources
        shutil.rmtree(folder)
    known = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    rows = {row["cell"]: row for row in known}
    commit = describe()["commit"]
    status = 0
    for number, cell in enumerate(chosen, 1):
        log = WORK / f"{cell}.log"
        log.unlink(missing_ok=True)
        print(f"[{number}/{len(chosen)}] {cell}:", end=" ", flush=True)
        row = rows[str(cell)] = {**test(cell, log, quick=quick), "commit": commit}
        print(compat_table.outcome(row), flush=True)
        status |= int(row.get("failed", 0) > 0)
        publish(rows)
    return status


if __name__ == "__main__":
    sys.exit(main())
