"""Drives CMake, which owns every target; all metadata stands in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD_DIR = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
OPTIONS = ("SIFT_WITH_CUDA", "SIFT_DEBUG", "SIFT_BUILD_TESTS")


def find_tool(name: str) -> str | None:
    """The tool beside this Python, as pip installs it, else on the PATH."""
    beside = Path(sys.executable).parent
    return shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")


def run_cmake(*arguments: str | Path) -> None:
    """Runs CMake, whose own message comes last but one when it fails."""
    cmake = find_tool("cmake")
    if cmake is None:
        raise SystemExit(
            "sift-attention: CMake must be 3.25 or newer, got none (pip install cmake)."
        )
    if subprocess.run([cmake, *arguments]).returncode != 0:
        raise SystemExit("sift-attention: the build stopped for the reason that CMake gives above.")


class CMakeBuild(build_ext):
    """Configures, builds and installs CMake's targets into the package."""

    def run(self) -> None:
        """Installs into python/sift_attention if editable, else into the wheel's copy of it."""
        # Asked here as well as by CMake: an isolated build has neither torch nor pip's CMake.
        if find_spec("torch") is None:
            raise SystemExit(
                "sift-attention: torch must be 2.11 or newer, got none: "
                "install it first, then pip install --no-build-isolation."
            )
        options = [f"-D{name}={os.environ[name]}" for name in OPTIONS if name in os.environ]
        if ninja := find_tool("ninja"):
            options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        run_cmake("-S", ROOT, "-B", BUILD_DIR, f"-DPython_EXECUTABLE={sys.executable}", *options)
        run_cmake("--build", BUILD_DIR, "--parallel", str(os.cpu_count() or 1))
        in_place = self.editable_mode or self.inplace
        library = ROOT / "python" if in_place else Path(self.build_lib).resolve()
        run_cmake("--install", BUILD_DIR, "--prefix", library / "sift_attention")


setup(
    ext_modules=[Extension("sift_attention._estimator", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
