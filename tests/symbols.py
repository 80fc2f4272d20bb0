"""What the operator libraries may take from elsewhere.

`python tests/symbols.py LIBRARY...` says what they must not; tests run it on the installed ones.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# By the version of Torch that first has them. No entry may be newer than 2.11, the oldest Torch
# that the package runs on: loading would fail there.
TORCH_FUNCTIONS = {
    "2.9": """
        aoti_torch_abi_version aoti_torch_create_device_guard aoti_torch_delete_device_guard
        aoti_torch_delete_library_object aoti_torch_delete_tensor_object
        aoti_torch_device_type_cpu aoti_torch_device_type_cuda aoti_torch_device_type_meta
        aoti_torch_dtype_bfloat16 aoti_torch_dtype_bool aoti_torch_dtype_complex128
        aoti_torch_dtype_complex64 aoti_torch_dtype_float16 aoti_torch_dtype_float32
        aoti_torch_dtype_float64 aoti_torch_dtype_float8_e4m3fn aoti_torch_dtype_float8_e5m2
        aoti_torch_dtype_int16 aoti_torch_dtype_int32 aoti_torch_dtype_int64
        aoti_torch_dtype_int8 aoti_torch_dtype_uint8
        aoti_torch_empty_strided aoti_torch_get_current_cuda_stream aoti_torch_get_device_index
        aoti_torch_get_device_type aoti_torch_get_dim aoti_torch_get_dtype aoti_torch_get_numel
        aoti_torch_get_size aoti_torch_get_sizes aoti_torch_get_strides aoti_torch_is_contiguous
        aoti_torch_library_def aoti_torch_library_init_def aoti_torch_library_init_impl
        aoti_torch_new_tensor_handle
    """,
    "2.10": """
        torch_get_const_data_ptr torch_get_mutable_data_ptr torch_get_num_threads
        torch_library_impl torch_parallel_for
    """,
}
UNSTABLE = re.compile(r"_ZNK?(2at|3c10|5torch)")  # Torch's C++


def complaints(library: Path) -> list[str]:
    """One sentence for everything that would keep a library from loading somewhere."""
    symbols = _output("nm", "-D", "--undefined-only", library).split()
    dynamic = _output("readelf", "-d", library)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    found = [f"{library.name} uses {name}" for name in symbols if UNSTABLE.match(name)]
    taken = {name for name in symbols if re.match(r"(aoti_)?torch_", name)}
    too_new = taken - set(" ".join(TORCH_FUNCTIONS.values()).split())
    found += [f"{library.name} uses {name}, which Torch 2.11 may lack" for name in sorted(too_new)]
    if not taken:
        found.append(f"{library.name} uses nothing of Torch")
    # The driver's libcuda.so is missing on machines without a GPU, where imports must work.
    unwanted = ("libtorch_python", "libpython", "libcuda.so")
    found += [f"{library.name} needs {name}" for name in needed if name.startswith(unwanted)]
    folders = ":".join(re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic)).split(":")
    found += [
        f"{library.name} looks for libraries in {folder or 'the current folder'}"
        for folder in folders
        if folders != [""] and not folder.startswith("$ORIGIN/")
    ]
    if "cuda" in library.name:
        found += [
            f"{library.name} does not need {name}"
            for name in ("libtorch_cuda.so", "libcudart.so.")
            if not any(entry.startswith(name) for entry in needed)
        ]
    return found


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit("\n".join(line for name in sys.argv[1:] for line in complaints(Path(name))) or None)
