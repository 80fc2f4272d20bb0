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
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from command import Command, Log, Outcome, run_command

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "gpu"
PUBLISHED = "*_cuda.json"  # of WORK
PLUGINS = ("xdist", "pytest_timeout")  # of pytest, used where they are


@dataclass(frozen=True)
class Stage:
    """Commands that run one after the other, also where one of them fails.

    Attributes:
        name: on the command line.
        purpose: for --list.
        share_s: seconds that the earlier stages leave it.
        commands: made when the stage begins, from the seconds that it has.
        tool: a program without which the stage is left out.
    """

    name: str
    purpose: str
    share_s: float
    commands: Callable[[float], list[Command]]
    tool: str = ""


@dataclass
class Result:
    """What became of a stage."""

    name: str
    status: str = "not run"  # "passed", "failed", "time up", "missing"
    seconds: float = 0.0
    note: str = ""


def find_tool(name: str) -> str | None:
    """A program beside this Python, on the PATH, or where CUDA is usually installed."""
    folders = [
        Path(sys.executable).parent,
        *map(Path, os.environ.get("PATH", "").split(os.pathsep)),
    ]
    folders += [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    return shutil.which(name, path=os.pathsep.join(map(str, folders)))


def compute_capability() -> str:
    """Of the first GPU; without one, that of an H100 or H200."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "9.0"
    return output.splitlines()[0].strip()


def python(script: str, *arguments: object, **environment: str) -> Command:
    """This Python on a script of the repository."""
    return Command([sys.executable, str(ROOT / script), *map(str, arguments)], environment)


def build_commands(architecture: str) -> list[Command]:
    """CMake, in a folder of its own, into python/sift_attention."""
    cmake, folder = find_tool("cmake") or "cmake", str(WORK / "cmake")
    options = [f"-DPython_EXECUTABLE={sys.executable}", "-DSIFT_WITH_CUDA=ON"]
    options += [f"-DTORCH_CUDA_ARCH_LIST={architecture}"]
    if ninja := find_tool("ninja"):
        options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    return [
        Command([cmake, "-S", str(ROOT), "-B", folder, *options]),
        Command([cmake, "--build", folder, "--parallel", str(os.cpu_count() or 1)]),
        Command([cmake, "--install", folder, "--prefix", str(ROOT / "python" / "sift_attention")]),
    ]


def test_commands(plugins: set[str]) -> list[Command]:
    """On CUDA first, then the operators on a side stream, then the CPU's."""
    options = ["-q", "-rf", "--tb=short", "-p", "no:cacheprovider"]
    if "xdist" in plugins:
        options += ["-n", str(max(1, min(8, (os.cpu_count() or 1) // 2)))]
    if "pytest_timeout" in plugins:  # by a thread: a kernel that hangs does not heed a signal
        options += ["--timeout=90", "--timeout-method=thread"]
    pytest = [sys.executable, "-m", "pytest", *options, str(ROOT / "tests")]
    environment = {"SIFT_REQUIRE_CUDA": "1", "OMP_NUM_THREADS": "2"}
    return [
        Command([*pytest, "-k", "cuda"], environment),
        Command([*pytest, "-k", "cuda", f"--ignore={ROOT / 'tests' / 'hf'}"],
                {**environment, "SIFT_SIDE_STREAM": "1"}),
        Command([*pytest, "-k", "not cuda"], environment),
    ]  # fmt: skip


def sanitizer_commands() -> list[Command]:
    """Small calls under each checker, every allocation by itself."""
    sanitizer = find_tool("compute-sanitizer") or "compute-sanitizer"
    small = python("tools/gpu_smoke.py", "--small", PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return [
        Command([sanitizer, "--tool", tool, "--error-exitcode", "9", *small.words], small.extra)
        for tool in ("memcheck", "racecheck")
    ]


def stages(architecture: str, plugins: set[str]) -> list[Stage]:
    """All of them, in order."""

    def benchmark(script: str, result: str, reserve_s: float) -> Callable[[float], list[Command]]:
        arguments = ("--device", "cuda", "--out", WORK / result, "--seconds")
        return lambda left_s: [
            python(f"benchmarks/{script}", *arguments, round(max(0.0, left_s - reserve_s)))
        ]

    nvcc_architecture = f"sm_{architecture.replace('.', '')}"
    return [
        Stage(
            "probe",
            "the machine, copy bandwidth, gathers of scattered rows",
            45,
            lambda _: [
                python("benchmarks/machine.py"),
                python("benchmarks/bench_gather.py", "--arch", nvcc_architecture,
                       "--out", WORK / "gather_cuda.json"),
            ],
        ),
        Stage("build", "the operators for this GPU", 110, lambda _: build_commands(architecture)),
        Stage("smoke", "a dozen calls", 30, lambda _: [python("tools/gpu_smoke.py")]),
        Stage("tests", "the test suite, CUDA required", 120, lambda _: test_commands(plugins)),
        Stage("sanitizer", "small calls under memcheck and racecheck", 60,
              lambda _: sanitizer_commands(), "compute-sanitizer"),
        Stage("bench", "decode against PyTorch", 90,
              benchmark("bench_decode.py", "decode_cuda.json", 20)),
        Stage("generate", "tokens per second, sifted against SDPA", 90,
              benchmark("bench_generate.py", "generate_cuda.json", 45)),
        Stage("profile", "launches and bytes by the hardware's counters", 25,
              lambda _: [python("benchmarks/profile_cuda.py", "--ncu", find_tool("ncu") or "ncu",
                                "--out", WORK / "profile_cuda.json")], "ncu"),
    ]  # fmt: skip


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
        "commit": os.environ.get("SIFT_COMMIT", ""),
        "stages": [asdict(result) for result in results],
    }
    (out / "gpu.json").write_text(json.dumps(summary, indent=1) + "\n")
    for path in WORK.glob(PUBLISHED):
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
    for path in WORK.glob(PUBLISHED):  # of an earlier run
        path.unlink()
    end_s = time.monotonic() + 60 * arguments.minutes
    begin = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    results = [Result(stage.name) for stage in selected]
    with Log(arguments.out / "gpu.log") as log:
        for i, stage in enumerate(selected):
            log.write(f"\n== {stage.name}: {stage.purpose}\n")
            spared_s = sum(later.share_s for later in selected[i + 1 :])
            results[i] = run_stage(stage, end_s - spared_s, log)
            log.write(f"-- {table([results[i]])}\n")
            publish(arguments.out, results, begin)
        log.write(f"\n{table(results)}\n")
    return int(any(result.status in ("failed", "time up") for result in results))


if __name__ == "__main__":
    sys.exit(main())
