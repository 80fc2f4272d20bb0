"""Every input ends where readable memory ends, so that reading past it is a fault."""

import ctypes
import mmap

import pytest
import torch

import sift_attention as sift
from cases import DTYPES, Case, make_call, make_score_quantile_args

LIBC = ctypes.CDLL(None, use_errno=True)
PROT_NONE = 0


def before_a_guard_page(tensor):
    """A contiguous copy whose last byte is followed by memory that must not be touched."""
    num_bytes = tensor.numel() * tensor.element_size()
    readable = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    region = mmap.mmap(-1, readable + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    guard = ctypes.c_void_p(address + readable)
    assert LIBC.mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), PROT_NONE) == 0
    flat = torch.frombuffer(
        region, dtype=tensor.dtype, count=tensor.numel(), offset=readable - num_bytes
    )
    return flat.view(tensor.shape).copy_(tensor)


def guarded(arguments):
    return {
        name: before_a_guard_page(value) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
@pytest.mark.parametrize("head_dim", [32, 80, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode(dtype, head_dim, layout):
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
        expected, _ = call.run()
        tensors = guarded({"q": call.q, "k": call.k, "v": call.v})
        call.q, call.k, call.v = tensors["q"], tensors["k"], tensors["v"]
        call.law = sift.PowerLaw(
            before_a_guard_page(call.law.log_alpha), before_a_guard_page(call.law.beta)
        )
        assert torch.equal(call.with_options(**guarded(call.options)).run()[0], expected)


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_score_quantile(dtype, layout):
    arguments = make_score_quantile_args(layout, dtype, sinks=True)
    expected = sift.score_quantile(**arguments)
    got = sift.score_quantile(**guarded(arguments))
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_fit_power_law():
    lengths, quantiles = torch.tensor([[1, 2, 4, 8]] * 3).int(), torch.rand(3, 5, 4)
    expected, _ = sift.fit_power_law(lengths, quantiles)
    got, _ = sift.fit_power_law(before_a_guard_page(lengths), before_a_guard_page(quantiles))
    assert torch.equal(got.log_alpha, expected.log_alpha)
