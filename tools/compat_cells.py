"""The environments of compat.py: which versions meet, and how they come into one Python.

A cell is a virtual environment with everything but torch, which is large and therefore kept once
per version and Python, and the libraries that its builds for CUDA load, once per version.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "compat"

TORCH, TRANSFORMERS, PYTHON = "2.13.0", "5.17.0", "3.11"  # what everything else is developed with
TORCH_OF_ALL_PYTHONS = "2.14.1"  # has wheels from 3.10 to 3.14
OTHER_TORCH = ("2.11.0", "2.12.1", TORCH_OF_ALL_PYTHONS, "2.15.0")
OTHER_TRANSFORMERS = ("4.57.6", "5.13.1", "5.18.0", "5.23.0")
OTHER_PYTHONS = ("3.12", "3.13", "3.14")

BUILD_TOOLS = ("cmake", "ninja", "pybind11", "setuptools", "wheel")
TEST_TOOLS = ("hypothesis", "packaging", "pytest", "pytest-timeout")


class MissingError(Exception):
    """Why something cannot be had on this machine, in one sentence."""


@dataclass(frozen=True)
class Cell:
    """Versions that are tested together."""

    python: str
    torch: str
    transformers: str

    def __str__(self) -> str:
        return f"{self.python}-{self.torch}-{self.transformers}"


# Every version of each with the usual ones of the others; besides, the oldest with the oldest and
# the newest with the newest. The other Pythons get the newest torch that all of them have.
CELLS = (
    Cell(PYTHON, TORCH, TRANSFORMERS),
    *(Cell(PYTHON, torch, TRANSFORMERS) for torch in OTHER_TORCH),
    *(Cell(PYTHON, TORCH, transformers) for transformers in OTHER_TRANSFORMERS),
    Cell(PYTHON, OTHER_TORCH[0], OTHER_TRANSFORMERS[0]),
    Cell(PYTHON, OTHER_TORCH[-1], OTHER_TRANSFORMERS[-1]),
    Cell("3.10", TORCH_OF_ALL_PYTHONS, "5.18.0"),  # newer transformers do not take Python 3.10
    *(Cell(python, TORCH_OF_ALL_PYTHONS, OTHER_TRANSFORMERS[-1]) for python in OTHER_PYTHONS),
)


def run(*words: str | Path, log: Path, **environment: str) -> None:
    """Runs a program from the repository's root, what it says goes into the log."""
    own = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    with log.open("a") as file:
        file.write(f"$ {' '.join(map(str, words))}\n")
        file.flush()
        done = subprocess.run(
            words, cwd=ROOT, env={**own, **environment}, stdout=file, stderr=subprocess.STDOUT
        )
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, words)


def find_python(version: str) -> Path:
    """An interpreter that runs: of the PATH, else of pyenv."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(name), *sorted(pyenv.glob(f"{version}.*/bin/{name}"), reverse=True)]
    for path in filter(None, found):
        # A shim of pyenv exists even where it has nothing to start.
        if subprocess.run([path, "-c", "import venv"], capture_output=True).returncode == 0:
            return Path(path)
    raise MissingError(f"Python {version} is not installed here")


def environment(folder: Path, python: Path, layers: list[Path], log: Path) -> Path:
    """The Python of a new virtual environment that also imports from the layers."""
    interpreter = folder / "bin" / "python"
    if not interpreter.exists():
        run(python, "-m", "venv", "--without-pip", folder, log=log)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "layers.pth").write_text("".join(f"{layer}\n" for layer in layers))
    return interpreter


def install(interpreter: Path, *arguments: str | Path, log: Path) -> None:
    """Installs with the pip that runs this program, which is new enough for every Python here."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "--python", interpreter, "install", "-q", "--no-compile", *arguments, log=log)


def torch_layers(cell: Cell, python: Path, log: Path) -> list[Path]:
    """Folders with torch itself and, where it is a build for CUDA, the libraries that it loads."""
    torch = WORK / f"torch-{cell.torch}-python{cell.python}"
    bare = environment(WORK / f"python{cell.python}", python, [], log)
    try:
        layer(torch, bare, "--no-deps", f"torch=={cell.torch}", log=log)
    except subprocess.CalledProcessError as error:
        reason = f"torch {cell.torch} could not be installed for Python {cell.python}"
        raise MissingError(reason) from error
    libraries = [name for name in requirements(torch) if re.match("nvidia-|cuda-toolkit", name)]
    if not libraries:
        return [torch]
    return [torch, layer(WORK / f"cuda-for-torch-{cell.torch}", bare, *libraries, log=log)]


def layer(folder: Path, interpreter: Path, *wanted: str, log: Path) -> Path:
    """A folder with installed packages, the one of an earlier run where there is one."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        install(interpreter, "--target", partial, *wanted, log=log)
        partial.rename(folder)
    return folder


def requirements(layer: Path) -> list[str]:
    """What the torch in a layer requires."""
    (torch,) = importlib.metadata.distributions(name="torch", path=[str(layer)])
    return [line.partition(";")[0] for line in torch.requires or [] if "extra ==" not in line]


def is_cuda(requirement: str) -> bool:
    """Whether only CUDA needs it."""
    return re.match("nvidia-|cuda-|triton", requirement) is not None


def build_wheel(cell: Cell, python: Path, layers: list[Path], log: Path) -> Path:
    """The wheel for a Python, which the first cell that needs it builds with its own torch."""
    folder = WORK / f"wheel-python{cell.python}"
    if not folder.exists():
        builder = environment(WORK / f"build-python{cell.python}", python, layers, log)
        needed = [name for name in requirements(layers[0]) if not is_cuda(name)]
        install(builder, "pip", *BUILD_TOOLS, *needed, log=log)
        for stale in chain(*map((ROOT / "build").glob, ("lib*", "bdist*"))):
            shutil.rmtree(stale)  # setuptools would pack files that are gone from the sources
        options = ("--no-build-isolation", "--no-deps", "--wheel-dir", folder)
        run(builder, "-m", "pip", "wheel", "-q", *options, ".", log=log, SIFT_WITH_CUDA="OFF")
    (wheel,) = folder.glob("*.whl")
    return wheel


def prepare(cell: Cell, log: Path) -> Path:
    """The interpreter of a cell in which the wheel is installed."""
    python = find_python(cell.python)
    layers = torch_layers(cell, python, log)
    wheel = build_wheel(cell, python, layers, log)
    interpreter = environment(WORK / str(cell), python, layers, log)
    needed = [name for name in requirements(layers[0]) if not is_cuda(name)]
    install(interpreter, f"transformers=={cell.transformers}", *TEST_TOOLS, *needed, log=log)
    install(interpreter, "--no-deps", "--no-index", "--force-reinstall", wheel, log=log)
    return interpreter
