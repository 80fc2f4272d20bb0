"""symbols.py complains of libraries that were made to deserve it."""

import subprocess

import pytest

from symbols import complaints

# What a good library takes: one function of Torch 2.9 and one of 2.10.
GOOD = ("aoti_torch_get_dim", "torch_get_num_threads")


def build(folder, name, functions, *options):
    """A shared library that calls functions which nobody defines."""
    source = folder / f"{name}.c"
    calls = "".join(f"void {function}(void);\n" for function in functions)
    calls += f"void planted(void) {{ {' '.join(f'{f}();' for f in functions)} }}\n"
    source.write_text(calls)
    library = folder / f"lib{name}.so"
    command = ("cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, source)
    subprocess.run([*command, *options], check=True)
    return library


def test_a_good_library(tmp_path):
    options = ("-Wl,-rpath,$ORIGIN/../../torch/lib",)
    assert complaints(build(tmp_path, "planted", GOOD, *options)) == []


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("_ZN2at5emptyEv", "uses _ZN2at5emptyEv"),  # at::empty()
        ("_ZNK3c1010TensorImpl3dimEv", "uses _ZNK3c1010TensorImpl3dimEv"),  # ... const
        ("_ZN5torch7LibraryC1Ev", "uses _ZN5torch7LibraryC1Ev"),
        # Of the stable ABI, but from 2.13 on.
        ("torch_stream_native_handle", "uses torch_stream_native_handle, which Torch 2.11 may"),
        ("aoti_torch_of_the_future", "uses aoti_torch_of_the_future, which Torch 2.11 may lack"),
    ],
)
def test_symbols_that_some_torch_lacks(tmp_path, function, complaint):
    (found,) = complaints(build(tmp_path, "planted", [*GOOD, function]))
    assert found.startswith(f"libplanted.so {complaint}")


def test_nothing_of_torch(tmp_path):
    assert complaints(build(tmp_path, "planted", ["puts"])) == [
        "libplanted.so uses nothing of Torch"
    ]


@pytest.mark.parametrize("name", ["torch_python", "python3.11", "cuda"])
def test_libraries_that_some_machine_lacks(tmp_path, name):
    other = build(tmp_path, name, [])
    planted = build(tmp_path, "planted", GOOD, "-Wl,--no-as-needed", other)
    assert complaints(planted) == [f"libplanted.so needs {other.name}"]


def test_cuda_without_its_libraries(tmp_path):
    assert complaints(build(tmp_path, "planted_cuda", GOOD)) == [
        "libplanted_cuda.so does not need libtorch_cuda.so",
        "libplanted_cuda.so does not need libcudart.so.",
    ]


@pytest.mark.parametrize(
    ("folders", "found"),
    [("/home/builder/torch/lib", "/home/builder/torch/lib"), ("$ORIGIN/..:", "the current folder")],
)
def test_libraries_from_elsewhere(tmp_path, folders, found):
    planted = build(tmp_path, "planted", GOOD, f"-Wl,-rpath,{folders}")
    assert complaints(planted) == [f"libplanted.so looks for libraries in {found}"]
