"""Every input between pages that must not be touched, so that reading past either end is a fault.

AddressSanitizer does not see the memory of torch's own tensors from within; these pages stop the
release build as well. tests/cpp/test_guard_pages.cpp does the same to outputs and workspace.
"""

import ctypes
import dataclasses
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sift_attention as sift
from cases import DTYPES, HEAD_DIMS, Case, make_call, make_score_quantile_args
from levels import at_level, supported_levels

LIBC = ctypes.CDLL(None, use_errno=True)
PROT_NONE = 0
PAGE = mmap.PAGESIZE


@pytest.fixture(params=supported_levels(), autouse=True)
def level(request):
    with at_level(request.param):
        yield


@pytest.fixture(params=["front", "back"])
def edge(request):
    """Where the tensors touch a page: with their first byte or with their last."""
    return request.param


def guarded(tensor, edge):
    """A contiguous copy that begins right behind, or ends right before, what nobody may touch."""
    num_bytes = tensor.numel() * tensor.element_size()
    readable = max(PAGE, -(-num_bytes // PAGE) * PAGE)
    region = mmap.mmap(-1, readable + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for page in (address, address + PAGE + readable):
        assert LIBC.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), PROT_NONE) == 0
    offset = PAGE + (0 if edge == "front" else readable - num_bytes)
    flat = torch.frombuffer(region, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return flat.view(tensor.shape).copy_(tensor)


def all_guarded(arguments, edge):
    return {
        name: guarded(value, edge) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


def guarded_call(call, edge):
    law = sift.PowerLaw(guarded(call.law.log_alpha, edge), guarded(call.law.beta, edge))
    tensors = all_guarded({"q": call.q, "k": call.k, "v": call.v}, edge)
    return dataclasses.replace(call, **tensors, law=law, options=all_guarded(call.options, edge))


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode(dtype, head_dim, layout, edge):
    for capacity in (1, 2, 15, 33, 130):
        case = Case(
            dtype=dtype,
            head_dim=head_dim,
            layout=layout,
            capacity=capacity,
            block_size=5,
            num_q_heads=6,
            seq_lens=(capacity, (capacity + 1) // 2),
            masked=True,
            sinks=True,
            law="per_head",
        )
        call = make_call(case)
        assert torch.equal(guarded_call(call, edge).run()[0], call.run()[0])


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_score_quantile(dtype, head_dim, layout, edge):
    arguments = make_score_quantile_args(layout, dtype, sinks=True, head_dim=head_dim)
    expected = sift.score_quantile(**arguments)
    got = sift.score_quantile(**all_guarded(arguments, edge))
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_fit_power_law(dtype, edge):
    lengths, quantiles = torch.tensor([[1, 2, 4, 8]] * 3).to(dtype), torch.rand(3, 5, 4)
    expected, _ = sift.fit_power_law(lengths, quantiles)
    got, _ = sift.fit_power_law(guarded(lengths, edge), guarded(quantiles, edge))
    assert torch.equal(got.log_alpha, expected.log_alpha)


def read_past(edge):
    """A call as above, but K has one row more than memory."""
    q, k = torch.ones(1, 1, 64), torch.ones(1, 1, 100, 64)
    rows = guarded(k[:, :, :99], edge)
    first = rows.data_ptr() - (k[0, 0, 0].nbytes if edge == "front" else 0)
    too_long = (ctypes.c_char * k.nbytes).from_address(first)
    sift.decode(q, torch.frombuffer(too_long, dtype=k.dtype).view(k.shape), k)


@pytest.mark.parametrize("level", supported_levels()[:1], indirect=True)
def test_reading_past_an_edge_is_a_fault(edge):
    program = f"import test_guard_pages; test_guard_pages.read_past({edge!r})"
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=Path(__file__).parent
    )
    assert done.returncode == -signal.SIGSEGV
