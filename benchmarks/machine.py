"""What a result was measured on: processor, GPU, versions, commit, date.

python benchmarks/machine.py    # prints it, and which tools and packages this Python finds
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("cmake", "ninja", "g++", "git", "ncu", "compute-sanitizer", "cuobjdump", "nvidia-smi")
PACKAGES = ("triton", "transformers", "pybind11", "pytest", "pytest-xdist", "pytest-timeout")
PACKAGES += ("hypothesis", "matplotlib", "tqdm")


def describe(device: str = "cpu") -> dict[str, Any]:
    """The machine and the software, as they go into a result's JSON; with "cuda" the GPU too."""
    flags = _cpuinfo("flags").split()
    return {
        "cpu": " ".join(_cpuinfo("model name").split()) or platform.processor(),
        "cpu_family_model": f"{_cpuinfo('cpu family')}/{_cpuinfo('model')}",
        "isa": [f for f in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "sift_isa": os.environ.get("SIFT_CPU_ISA", "best"),
        "cores": os.cpu_count(),
        "last_level_cache_mib": last_level_cache_bytes() >> 20,
        "load_average": round(os.getloadavg()[0], 2),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        **(_gpu() if device == "cuda" else {}),
    }


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": l2_bytes() >> 20,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": _output(nvcc(), "--version").rpartition("release ")[2].partition(",")[0],
    }


def l2_bytes() -> int:
    """Of the first GPU."""
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def nvcc() -> str:
    """The compiler that CMake finds as well: $CUDACXX, else on the PATH, else the usual place."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"


def last_level_cache_bytes() -> int:
    """The largest cache that Linux reports for the first core; 32 MiB where it reports none."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(s.read_text().strip().rstrip("K")) << 10 for s in sizes), default=32 << 20)


def _cpuinfo(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _commit() -> str:
    """The checkout's commit, with "+" where tracked files differ from it.

    SIFT_COMMIT names it where the sources came without their history.
    """
    if named := os.environ.get("SIFT_COMMIT"):
        return named
    git = ("git", "-C", str(ROOT))
    commit = _output(*git, "rev-parse", "--short=12", "HEAD")
    return commit + ("+" if _output(*git, "status", "-suno") else "")


def _output(*command: str) -> str:
    """What a program prints; nothing where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> int:
    has_gpu = torch.cuda.is_available()
    found = {
        **describe("cuda" if has_gpu else "cpu"),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "tools": {name: shutil.which(name) for name in TOOLS},
        "packages": {name: _version(name) for name in PACKAGES},
    }
    print(json.dumps(found, indent=1))
    if not has_gpu:
        print("torch must see a GPU, got none.")
        return 1
    print(_output("nvidia-smi"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
