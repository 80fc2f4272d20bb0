"""What is done on a GPU machine: the stages of gpu.py and their commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from command import Command

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "gpu"
RESULTS = "*_cuda.json"  # of WORK


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
        """The reserve is for imports, and for what was begun just before its seconds were over."""
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
        Stage("build", "the operators for this GPU", 50, lambda _: build_commands(architecture)),
        Stage("smoke", "a dozen calls", 25, lambda _: [python("tools/gpu_smoke.py")]),
        Stage("tests", "the test suite, CUDA required", 100, lambda _: test_commands(plugins)),
        Stage("sanitizer", "small calls under memcheck and racecheck", 60,
              lambda _: sanitizer_commands(), "compute-sanitizer"),
        Stage("bench", "decode against PyTorch", 105,
              benchmark("bench_decode.py", "decode_cuda.json", 25)),
        Stage("generate", "tokens per second, sifted against SDPA", 150,
              benchmark("bench_generate.py", "generate_cuda.json", 65)),
        Stage("profile", "launches and bytes by the hardware's counters", 30,
              lambda _: [python("benchmarks/profile_cuda.py", "--ncu", find_tool("ncu") or "ncu",
                                "--out", WORK / "profile_cuda.json")], "ncu"),
    ]  # fmt: skip
