"""Which libraries an import loads, and what it says about those that it cannot."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sift_attention

# Calls each operator as PyTorch would for CUDA tensors, on tensors of the CPU.
CALL_AS_CUDA = """
import sys, torch
torch.version.cuda = sys.argv[1] or None
import sift_attention as sift
from bad_calls import GOOD_CALLS

cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
for op in GOOD_CALLS:
    operator, arguments = getattr(torch.ops.sift_attention, op).default, GOOD_CALLS[op]("paged")
    operator(**arguments)
    try:
        operator.redispatch(cuda, **arguments)
    except RuntimeError as error:
        print(error)
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the installed package, without CUDA."""
    copy = tmp_path / "sift_attention"
    ignored = shutil.ignore_patterns("__pycache__", "include", "share", "*cuda*")
    shutil.copytree(Path(sift_attention.__file__).parent, copy, ignore=ignored)
    return copy


def run(package: Path, cuda: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CALL_AS_CUDA, cuda],
        env={"PYTHONPATH": f"{package.parent}:{Path(__file__).parent}"},
        capture_output=True,
        text=True,
    )


def sentences(reason: str) -> str:
    argument = {"decode": "q", "score_quantile": "q", "fit_power_law": "lengths"}
    return "".join(
        f"{op}: {first} must be on the CPU, got cpu: {reason}\n" for op, first in argument.items()
    )


@pytest.mark.row(42)
@pytest.mark.parametrize(
    ("cuda", "built_with", "reason"),
    [
        ("", None, f"torch {torch.__version__} has no CUDA"),
        ("", "13.0.88", f"torch {torch.__version__} has no CUDA"),
        (
            "13.0",
            None,
            "the package was built for the CPU only, SIFT_WITH_CUDA=ON pip install "
            "--no-build-isolation . builds it for CUDA",
        ),
        ("12.8", "13.0.88", "the package was built with CUDA 13.0.88 and torch with 12.8"),
    ],
)
def test_the_cpu_works_without_cuda(package, cuda, built_with, reason):
    if built_with is not None:
        (package / "lib" / "libsift_attention_cuda.so").touch()
        (package / "lib" / "cuda_version").write_text(f"{built_with}\n")
    done = run(package, cuda)
    assert done.stderr == ""
    assert done.stdout == sentences(reason)


@pytest.mark.row(42)
@pytest.mark.parametrize("name", ["libsift_attention.so", "libsift_attention_cuda.so"])
def test_a_broken_library(package, name):
    (package / "lib" / "cuda_version").write_text("13.0.88\n")
    (package / "lib" / "libsift_attention_cuda.so").touch()
    (package / "lib" / name).write_text("not a library")
    done = run(package, "13.0")
    assert done.returncode != 0
    assert (
        f"ImportError: sift_attention: {package}/lib/{name} could not be loaded "
        f"(torch {torch.__version__}, CUDA 13.0, Python " in done.stderr
    )


@pytest.mark.row(42)
def test_a_missing_library(package):
    (package / "lib" / "libsift_attention.so").unlink()
    done = run(package)
    assert done.returncode != 0
    assert f"{package}/lib/libsift_attention.so must exist, got none (torch " in done.stderr
