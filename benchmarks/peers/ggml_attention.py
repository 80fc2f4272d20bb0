"""llama.cpp's attention on the CPU as a peer: the graph that it builds for one decode step.

ggml comes with llama-cpp-python and is called through its C interface. Flash attention off is
softmax(K q) with V stored transposed; on is one node. K and V lie in memory as llama.cpp lays its
cache out: [N, HK, D], and transposed V [HK, D, N].
"""

from __future__ import annotations

import ctypes
import itertools
import math
from pathlib import Path

import llama_cpp
import torch
from torch import Tensor

from formulations import Call
from workload import Layer, Problem

SETTINGS = (
    "ggml's CPU backend, all-zero mask, intermediate results in place as llama.cpp allocates them; "
    "flash off: mul_mat, soft_max_ext, mul_mat with V transposed; flash on: flash_attn_ext"
)
DTYPES = (torch.bfloat16, torch.float16)
# The numbers of enum ggml_type.
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}

_POINTER = ctypes.c_void_p


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", _POINTER),
        ("no_alloc", ctypes.c_bool),
    )


def _load(name: str, **signatures: tuple[object, ...]) -> ctypes.CDLL:
    """A library of llama-cpp-python; a signature is the result's type, then the arguments'."""
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / f"lib{name}.so"))
    for function, (result, *arguments) in signatures.items():
        getattr(library, function).restype = result
        getattr(library, function).argtypes = arguments
    return library


_int, _int64, _float = ctypes.c_int, ctypes.c_int64, ctypes.c_float
_base = _load(
    "ggml-base",
    ggml_version=(ctypes.c_char_p,),
    ggml_init=(_POINTER, _InitParams),
    ggml_new_tensor_3d=(_POINTER, _POINTER, _int, _int64, _int64, _int64),
    ggml_permute=(_POINTER, _POINTER, _POINTER, _int, _int, _int, _int),
    ggml_mul_mat=(_POINTER, _POINTER, _POINTER, _POINTER),
    ggml_soft_max_ext_inplace=(_POINTER, _POINTER, _POINTER, _POINTER, _float, _float),
    ggml_flash_attn_ext=(_POINTER, *[_POINTER] * 5, _float, _float, _float),
    ggml_new_graph=(_POINTER, _POINTER),
    ggml_build_forward_expand=(None, _POINTER, _POINTER),
    ggml_get_data=(_POINTER, _POINTER),
    ggml_backend_alloc_ctx_tensors=(_POINTER, _POINTER, _POINTER),
    ggml_backend_graph_compute=(_int, _POINTER, _POINTER),
)
_cpu = _load(
    "ggml-cpu",
    ggml_backend_cpu_init=(_POINTER,),
    ggml_backend_cpu_set_n_threads=(None, _POINTER, _int),
)
VERSION = f"llama-cpp-python {llama_cpp.__version__}, ggml {_base.ggml_version().decode()}"


def make_calls(
    problem: Problem, layers: list[Layer], sharpness: float, threads: int
) -> dict[str, Call]:
    """Calls that walk through copies of the layers and return [1, HQ, D].

    ggml's memory is freed with the process.
    """
    backend = _cpu.ggml_backend_cpu_init()
    _cpu.ggml_backend_cpu_set_n_threads(backend, threads)
    q = problem.query(sharpness).float()
    return {
        f"llama.cpp, flash {name}": _call(
            backend, [_graph(backend, q, layer, flash=flash) for layer in layers]
        )
        for name, flash in (("off", False), ("on", True))
    }


def _call(backend: int, graphs: list[tuple[int, Tensor]]) -> Call:
    walk = itertools.cycle(graphs)

    def call() -> Tensor:
        graph, out = next(walk)
        if _base.ggml_backend_graph_compute(backend, graph) != 0:
            raise RuntimeError("ggml: the graph must be computed, got a failure.")
        return out

    return call


def _graph(backend: int, q: Tensor, layer: Layer, *, flash: bool) -> tuple[int, Tensor]:
    """The graph over its own copies of K and V, and its output [1, HQ, D]."""
    k, v, _ = layer
    _, num_q_heads, head_dim = q.shape
    _, num_kv_heads, num_keys, _ = k.shape
    mask_dtype = torch.float16 if flash else torch.float32
    scale = 1 / math.sqrt(head_dim)
    context = _base.ggml_init(_InitParams(1 << 20, None, True))

    def new(dtype: torch.dtype, *sizes: int) -> int:
        return int(_base.ggml_new_tensor_3d(context, TYPES[dtype], *sizes))

    def by_head(tensor: int) -> int:
        return int(_base.ggml_permute(context, tensor, 0, 2, 1, 3))

    # ggml names the fastest dimension first.
    query = new(torch.float32, head_dim, 1, num_q_heads)
    keys = new(k.dtype, head_dim, num_kv_heads, num_keys)
    mask = new(mask_dtype, num_keys, 1, 1)
    if flash:
        values, value_rows = new(v.dtype, head_dim, num_kv_heads, num_keys), v[0].transpose(0, 1)
        out = _base.ggml_flash_attn_ext(
            context, query, by_head(keys), by_head(values), mask, scale, 0.0, 0.0
        )
    else:
        values, value_rows = new(v.dtype, num_keys, head_dim, num_kv_heads), v[0].mT
        scores = _base.ggml_mul_mat(context, by_head(keys), query)
        scores = _base.ggml_soft_max_ext_inplace(context, scores, mask, scale, 0.0)
        out = _base.ggml_mul_mat(context, values, scores)
    graph = _base.ggml_new_graph(context)
    _base.ggml_build_forward_expand(graph, out)
    if not _base.ggml_backend_alloc_ctx_tensors(context, backend):
        raise MemoryError("ggml: the tensors must fit into memory, got a failed allocation.")

    _fill(query, q)
    _fill(keys, k[0].transpose(0, 1))
    _fill(values, value_rows)
    _fill(mask, torch.zeros(num_keys, dtype=mask_dtype))
    # One token: its heads follow each other in memory in either layout.
    return graph, _memory(out, q.dtype, q.shape)


def _fill(tensor: int, content: Tensor) -> None:
    _memory(tensor, content.dtype, content.shape).copy_(content)


def _memory(tensor: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The memory of a ggml tensor."""
    num_bytes = math.prod(shape) * dtype.itemsize
    buffer = (ctypes.c_char * num_bytes).from_address(_base.ggml_get_data(tensor))
    return torch.frombuffer(buffer, dtype=dtype).view(shape)
