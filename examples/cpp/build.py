"""Build the C++ examples against the installed package and its torch, one build at a time.

python examples/cpp/build.py build/example-cpp
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import sift_attention as sift

SOURCE = Path(__file__).resolve().parent


def build(folder: Path) -> None:
    """Bring the programs in `folder` up to date; exit with CMake's own words where it fails."""
    beside = Path(sys.executable).parent
    cmake = shutil.which("cmake", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if cmake is None:
        raise SystemExit("build: CMake must be 3.25 or newer, got none (pip install cmake).")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for arguments in (
            [
                *("-S", SOURCE, "-B", folder),
                f"-DSiftAttention_DIR={sift.cmake_prefix_path}/SiftAttention",
                f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
            ],
            ["--build", folder, "--parallel", str(os.cpu_count())],
        ):
            done = subprocess.run([cmake, *arguments], capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(done.stdout + done.stderr)


if __name__ == "__main__":
    print("building the C++ example; the first time takes about a minute", flush=True)
    build(Path(sys.argv[1]).resolve())
