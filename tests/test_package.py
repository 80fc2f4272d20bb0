"""The build's own sentences, and the installed package as a C++ project sees it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sift_attention

ROOT = Path(__file__).resolve().parent.parent
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


# What the operators take from Torch, by the version that first has it. No entry may be newer than
# 2.11, the oldest Torch that the package runs on: loading would fail there.
TORCH_FUNCTIONS = {
    "2.9": """
        aoti_torch_abi_version aoti_torch_delete_library_object aoti_torch_delete_tensor_object
        aoti_torch_device_type_cpu aoti_torch_device_type_cuda aoti_torch_device_type_meta
        aoti_torch_dtype_bfloat16 aoti_torch_dtype_bool aoti_torch_dtype_complex128
        aoti_torch_dtype_complex64 aoti_torch_dtype_float16 aoti_torch_dtype_float32
        aoti_torch_dtype_float64 aoti_torch_dtype_int16 aoti_torch_dtype_int32
        aoti_torch_dtype_int64 aoti_torch_dtype_int8 aoti_torch_dtype_uint8
        aoti_torch_empty_strided aoti_torch_get_device_index aoti_torch_get_device_type
        aoti_torch_get_dim aoti_torch_get_dtype aoti_torch_get_numel aoti_torch_get_size
        aoti_torch_get_sizes aoti_torch_get_strides aoti_torch_is_contiguous
        aoti_torch_library_def aoti_torch_library_init_def aoti_torch_library_init_impl
        aoti_torch_new_tensor_handle
    """,
    "2.10": """
        torch_get_const_data_ptr torch_get_mutable_data_ptr torch_get_num_threads
        torch_library_impl torch_parallel_for
    """,
}


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


@pytest.mark.parametrize(
    ("choice", "configures", "sentence"),
    [
        ("AUTO", True, "SIFT_WITH_CUDA=AUTO: building for the CPU only"),
        (
            "ON",
            False,
            "SIFT_WITH_CUDA must be AUTO or OFF, got ON: there are no CUDA operators yet.",
        ),
        ("maybe", False, "SIFT_WITH_CUDA must be AUTO, ON or OFF, got maybe."),
    ],
)
@pytest.mark.parametrize("as_option", [True, False])
def test_with_cuda(tmp_path, choice, configures, sentence, as_option):
    options = [f"-DSIFT_WITH_CUDA={choice}"] if as_option else []
    environment = {} if as_option else {"SIFT_WITH_CUDA": choice}
    ok, output = configure(ROOT, tmp_path, *options, **environment)
    assert ok == configures
    assert sentence in output


def test_without_cuda_is_silent(tmp_path):
    ok, output = configure(ROOT, tmp_path, "-DSIFT_WITH_CUDA=OFF")
    assert ok
    assert "CUDA" not in output


def test_missing_torch(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    ok, output = configure(ROOT, tmp_path / "build", PYTHONPATH=str(tmp_path))
    assert not ok
    assert f"torch must be 2.11 or newer, got none in {sys.executable}" in output


def test_old_torch(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch-2.9.1.dist-info").mkdir()
    (tmp_path / "torch-2.9.1.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.9.1\n")
    ok, output = configure(ROOT, tmp_path / "build", PYTHONPATH=str(tmp_path))
    assert not ok
    assert f"torch must be 2.11 or newer, got 2.9.1 in {sys.executable}" in output


def test_old_compiler(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\nexec c++ "$@" -std=c++17\n')
    compiler.chmod(0o755)
    ok, output = configure(ROOT, tmp_path / "build", f"-DCMAKE_CXX_COMPILER={compiler}")
    assert not ok
    assert "The C++ compiler must support C++20 (GCC 11 and Clang 14 do), got" in output


def run_setup(prelude: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.py as pip does, after some Python that takes something away."""
    program = (
        f"import os, runpy, sys\nsys.argv = ['setup.py', 'build_ext']\n{prelude}\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)


def test_setup_without_torch():
    done = run_setup("sys.modules['torch'] = None")
    assert done.returncode != 0
    assert done.stderr.endswith(
        "sift-attention: torch must be 2.11 or newer, got none: "
        "install it first, then pip install --no-build-isolation.\n"
    )


def test_setup_without_cmake():
    done = run_setup("sys.executable, os.environ['PATH'] = '/nowhere/python', '/nowhere'")
    assert done.returncode != 0
    assert done.stderr.endswith(
        "sift-attention: CMake must be 3.25 or newer, got none (pip install cmake).\n"
    )


def test_functions_of_torch_are_old_enough():
    library = Path(sift_attention.__file__).parent / "lib" / "libsift_attention.so"
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True
    ).stdout
    taken = set(re.findall(r"\b(?:aoti_)?torch_\w+", symbols))
    assert taken
    assert taken <= set(" ".join(TORCH_FUNCTIONS.values()).split())


def test_cpp_consumer(tmp_path):
    prefixes = f"{sift_attention.cmake_prefix_path};{torch.utils.cmake_prefix_path}"
    ok, output = configure(ROOT / "tests" / "consumer", tmp_path, f"-DCMAKE_PREFIX_PATH={prefixes}")
    assert ok, output
    subprocess.run([CMAKE, "--build", tmp_path], check=True)
    subprocess.run([tmp_path / "consumer"], check=True)
