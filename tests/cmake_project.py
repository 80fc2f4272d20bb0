"""Configures, builds and runs CMake projects, as users of the package do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import sift_attention

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sift_attention.cmake_prefix_path  # in the installed wheel
TORCH = torch.utils.cmake_prefix_path
TOOLS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
CMAKE, CTEST = (shutil.which(name, path=TOOLS) for name in ("cmake", "ctest"))


def configure(source: Path, build: Path, *options: str, **environment: str) -> tuple[bool, str]:
    """Whether CMake configures `source`, and what it says, on one line."""
    assert CMAKE is not None
    done = subprocess.run(
        [CMAKE, "-S", source, "-B", build, f"-DPython_EXECUTABLE={sys.executable}", *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode == 0, " ".join((done.stdout + done.stderr).split())


def build_and_test(source: Path, build: Path, *options: str) -> str:
    """Configures, builds and runs a project's tests; what configuring said."""
    ok, output = configure(source, build, *options)
    assert ok, output
    subprocess.run([CMAKE, "--build", build], check=True)
    subprocess.run([CTEST, "--test-dir", build, "--output-on-failure"], check=True)
    return output
