"""The build's own sentences, and the installed package as a C++ project sees it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sift_attention
from cmake_project import CMAKE, PACKAGE, ROOT, TORCH, build_and_test, configure
from sift_attention._library import HAS_CUDA
from symbols import complaints


def fake_torch(folder: Path, version: str, cuda: str | None = None) -> dict[str, str]:
    """An environment in which Python finds a torch that has nothing but its version."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").touch()
    (folder / "torch" / "version.py").write_text(f"cuda = {cuda!r}\n")
    (folder / f"torch-{version}.dist-info").mkdir()
    metadata = folder / f"torch-{version}.dist-info" / "METADATA"
    metadata.write_text(f"Name: torch\nVersion: {version}\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("as_option", [True, False])
def test_with_cuda_is_checked(tmp_path, as_option):
    options = ["-DSIFT_WITH_CUDA=maybe"] if as_option else []
    environment = {} if as_option else {"SIFT_WITH_CUDA": "maybe"}
    ok, output = configure(ROOT, tmp_path, *options, **environment)
    assert not ok
    assert "SIFT_WITH_CUDA must be AUTO, ON or OFF, got maybe." in output


@pytest.mark.parametrize(
    ("cuda", "options", "sentence"),
    [
        (None, {}, "SIFT_WITH_CUDA=AUTO: building for the CPU only, torch has no CUDA"),
        (
            "13.0",
            {"SIFT_NVCC": ""},
            "SIFT_WITH_CUDA=AUTO: building for the CPU only, nvcc was not found",
        ),
        (
            None,
            {"SIFT_NVCC": "", "SIFT_WITH_CUDA": "ON"},
            "SIFT_WITH_CUDA must be AUTO or OFF, got ON: nvcc was not found.",
        ),
        (
            None,
            {"SIFT_WITH_TORCH": "OFF", "SIFT_WITH_CUDA": "ON"},
            "SIFT_WITH_CUDA must be AUTO or OFF without Torch, got ON.",
        ),
    ],
)
def test_without_nvcc(tmp_path, cuda, options, sentence):
    environment = fake_torch(tmp_path, "2.11.0", cuda)
    flags = [f"-D{name}={value}" for name, value in options.items()]
    ok, output = configure(ROOT, tmp_path / "build", *flags, **environment)
    assert sentence in output
    assert ok == (options.get("SIFT_WITH_CUDA") != "ON")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
@pytest.mark.parametrize(
    ("cuda", "choice", "architectures", "sentence"),
    [
        (None, "ON", "9.0a 12.0+PTX", "for 9.0a 12.0+PTX"),
        ("1.1", "AUTO", "9.0", "nvcc must be of torch's CUDA, 1.1, got "),
        (None, "ON", "Hopper", "TORCH_CUDA_ARCH_LIST must be numbers like 9.0 or 12.0+PTX, "),
    ],
)
def test_with_nvcc(tmp_path, cuda, choice, architectures, sentence):
    environment = fake_torch(tmp_path, "2.11.0", cuda) | {"TORCH_CUDA_ARCH_LIST": architectures}
    ok, output = configure(ROOT, tmp_path / "build", f"-DSIFT_WITH_CUDA={choice}", **environment)
    assert ok == sentence.startswith("for ")
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
    ok, output = configure(ROOT, tmp_path / "build", **fake_torch(tmp_path, "2.9.1"))
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


LIBRARIES = sorted((Path(sift_attention.__file__).parent / "lib").glob("*.so"))


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_libraries_load_wherever_they_should(library):
    assert complaints(library) == []


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    """Where `cmake --install` puts the package."""
    build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
    if CMAKE is None or not (build / "cmake_install.cmake").exists():
        pytest.skip("the build folder is gone")
    folder = tmp_path_factory.mktemp("prefix")
    subprocess.run([CMAKE, "--install", build, "--prefix", folder], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("tree", ["wheel", "prefix"])
def test_core_consumer(tree, request, tmp_path):
    package = PACKAGE if tree == "wheel" else request.getfixturevalue("prefix")
    output = build_and_test(ROOT / "tests" / "consumer", tmp_path, f"-DCMAKE_PREFIX_PATH={package}")
    assert "torch" not in output.lower()


@pytest.fixture
def libtorch(tmp_path) -> Path:
    """The folders that LibTorch comes with when it is not Python's."""
    folder = tmp_path / "libtorch"
    folder.mkdir()
    for name in ("include", "lib", "share"):
        (folder / name).symlink_to(Path(TORCH).parents[1] / name)
    return folder


# The example's tests use the wheel's operators with Python's torch.
def test_operators_consumer(prefix, libtorch, tmp_path, monkeypatch):
    path = f"-DCMAKE_PREFIX_PATH={prefix};{libtorch}"
    components = "sift_attention;cuda" if HAS_CUDA else "sift_attention"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")  # else a Torch with CUDA looks for a GPU
    source, build = ROOT / "tests" / "consumer", tmp_path / "build"
    build_and_test(source, build, path, f"-DCONSUMER_COMPONENTS={components}")


def find_package(folder: Path, arguments: str, *prefixes: str | Path) -> tuple[bool, str]:
    """Whether find_package(SiftAttention ...) succeeds; what it says, or which targets it gives."""
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(asks LANGUAGES NONE)\n"
        f"find_package(SiftAttention {arguments})\n"
        "get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)\n"
        'message(STATUS "found ${SiftAttention_FOUND}, targets ${targets}")\n'
    )
    path = ";".join(map(str, prefixes))
    return configure(folder, folder / "build", f"-DCMAKE_PREFIX_PATH={path}")


def fake_libtorch(folder: Path, version: str) -> Path:
    """A LibTorch that has nothing but a version and its target."""
    package = folder / "libtorch" / "share" / "cmake" / "Torch"
    package.mkdir(parents=True)
    (package / "TorchConfig.cmake").write_text("add_library(torch INTERFACE IMPORTED)\n")
    (package / "TorchConfigVersion.cmake").write_text(
        f"set(PACKAGE_VERSION {version})\n"
        "if(NOT PACKAGE_VERSION VERSION_LESS PACKAGE_FIND_VERSION)\n"
        "  set(PACKAGE_VERSION_COMPATIBLE ON)\nendif()\n"
    )
    return package.parents[2]


def test_default_components(tmp_path):
    ok, output = find_package(tmp_path, "REQUIRED", PACKAGE, fake_libtorch(tmp_path, "2.11.0"))
    assert ok, output
    assert "targets torch;SiftAttention::core;SiftAttention::sift_attention" in output
    assert "SiftAttention::cuda" not in output


@pytest.mark.parametrize(
    ("arguments", "torch_version", "sentence"),
    [
        ("REQUIRED", None, "SiftAttention: Torch must be 2.11 or newer, got none (in CMAKE_PREF"),
        ("REQUIRED", "2.9.1", "SiftAttention: Torch must be 2.11 or newer, got 2.9.1."),
        (
            "REQUIRED COMPONENTS core metal",
            None,
            "SiftAttention: component must be among those that were built, core, sift_attention",
        ),
        ("9.0 REQUIRED", "2.11.0", 'compatible with requested version "9.0"'),
    ],
)
def test_what_cannot_be_found(tmp_path, arguments, torch_version, sentence):
    torches = [] if torch_version is None else [fake_libtorch(tmp_path, torch_version)]
    ok, output = find_package(tmp_path, arguments, PACKAGE, *torches)
    assert not ok
    assert sentence in output


@pytest.mark.parametrize(
    "arguments", ["COMPONENTS core sift_attention", "COMPONENTS core OPTIONAL_COMPONENTS cuda"]
)
def test_what_need_not_be_found(tmp_path, arguments):
    ok, output = find_package(tmp_path, arguments, PACKAGE)
    assert ok
    is_found = "OPTIONAL" in arguments
    assert f"found {int(is_found)}, targets SiftAttention::core" in output
    assert ("Torch must be 2.11 or newer, got none" in output) == (not is_found)


@pytest.mark.skipif(len(LIBRARIES) < 2, reason="no CUDA")
def test_cuda_component_needs_torch_with_cuda(tmp_path):
    libtorch = fake_libtorch(tmp_path, "2.11.0")
    ok, output = find_package(tmp_path, "REQUIRED COMPONENTS cuda", PACKAGE, libtorch)
    assert not ok
    assert "SiftAttention: Torch must be built with CUDA for the component cuda, got " in output
