"""What a result was measured on: processor, versions, commit, date."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, object]:
    """The machine and the software, as they go into a result's JSON."""
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
    }


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
    """The checkout's commit, with "+" where tracked files differ from it."""

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return result.stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "-suno") else "")
