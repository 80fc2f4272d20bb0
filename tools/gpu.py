"""Build, test and measure on a machine with a GPU, in stages, within ten minutes.

    make gpu                                        # all stages; results in build/gpu/results
    python tools/gpu.py --out FOLDER                # the same with any Python that has torch
    python tools/gpu.py --stages build,smoke        # some of them, in the order of --list

A failed stage does not stop the later ones. Every stage may take what the later ones can spare of
the time. Leaves in the folder: gpu.log, gpu.json and a JSON of each benchmark.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from command import Log, Outcome, run_command
from stages import RESULTS, ROOT, WORK, Stage, compute_capability, find_tool, stages

PLUGINS = ("xdist", "pytest_timeout")  # of pytest, used where they are


@dataclass
class Result:
    """What became of a stage."""

    name: str
    status: str = "not run"  # "passed", "failed", "time up", "missing"
    seconds: float = 0.0
    note: str = ""


def run_stage(stage: Stage, end_s: float, log: Log) -> Result:
    """Its result; `end_s` is the time.monotonic() at which it must be over."""
    begin_s = time.monotonic()
    result = Result(stage.name)
    if stage.tool and find_tool(stage.tool) is None:
        result.status, result.note = "missing", f"{stage.tool} was not found"
        return result
    result.status = "passed"
    for command in stage.commands(end_s - begin_s):
        outcome, last_line = run_command(command, end_s - time.monotonic(), ROOT, log)
        if outcome is not Outcome.PASSED and result.status == "passed":
            result.status, result.note = outcome.value, f"{command.name}: {last_line}"
        elif result.status == "passed":
            result.note = last_line
        if outcome is Outcome.TIME_UP:
            break
    result.seconds = round(time.monotonic() - begin_s, 1)
    return result


def publish(out: Path, results: list[Result], begin: str) -> None:
    """Everything that is known so far, should this be the last stage that ends."""
    summary = {
        "begin": begin,
        "python": sys.executable,
        "stages": [asdict(result) for result in results],
    }
    (out / "gpu.json").write_text(json.dumps(summary, indent=1) + "\n")
    for path in WORK.glob(RESULTS):
        shutil.copy(path, out / path.name)


def table(results: list[Result]) -> str:
    """One line for each stage."""
    lines = [f"{r.name:10} {r.status:8} {r.seconds:6.1f} s  {r.note}"[:150] for r in results]
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", default="", help="names, with commas between; default: all")
    parser.add_argument("--out", type=Path, default=WORK / "results", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all; default: %(default)s")
    parser.add_argument("--arch", help="compute capability, as 9.0; default: the first GPU's")
    parser.add_argument("--list", action="store_true", help="list the stages")
    parser.add_argument("--dry-run", action="store_true", help="print what each stage would run")
    return parser.parse_args(argv)


def chosen(every: list[Stage], names: str) -> list[Stage]:
    """The stages of these names; raises SystemExit where there is no such stage."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = [stage.name for stage in every]
    for name in wanted:
        if name not in known:
            raise SystemExit(f"gpu: --stages must be of {', '.join(known)}, got {name}")
    return [stage for stage in every if not wanted or stage.name in wanted]


def main(argv: list[str] | None = None) -> int:
    """Exit status: 1 if any stage failed or ran out of time."""
    arguments = parse(argv)
    plugins = {name for name in PLUGINS if importlib.util.find_spec(name) is not None}
    architecture = arguments.arch or compute_capability()
    selected = chosen(stages(architecture, plugins), arguments.stages)
    if arguments.list or arguments.dry_run:
        for stage in selected:
            print(f"{stage.name:10} {stage.share_s:4.0f} s  {stage.purpose}")
            for command in stage.commands(stage.share_s) if arguments.dry_run else []:
                print(f"    {command}")
        return 0

    arguments.out.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    for path in WORK.glob(RESULTS):  # of an earlier run
        path.unlink()
    limit_s = 60 * arguments.minutes
    end_s = time.monotonic() + limit_s
    scale = min(1.0, limit_s / sum(stage.share_s for stage in selected))
    begin = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    results = [Result(stage.name) for stage in selected]
    with Log(arguments.out / "gpu.log") as log:
        for i, stage in enumerate(selected):
            log.write(f"\n== {stage.name}: {stage.purpose}\n")
            spared_s = scale * sum(later.share_s for later in selected[i + 1 :])
            results[i] = run_stage(stage, end_s - spared_s, log)
            log.write(f"-- {table([results[i]])}\n")
            publish(arguments.out, results, begin)
        log.write(f"\n{table(results)}\n")
    return int(any(result.status in ("failed", "time up") for result in results))


if __name__ == "__main__":
    sys.exit(main())
