"""What must not change a single bit of what decode returns."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import sift_attention as sift
from cases import DTYPES, LAYOUTS, Call, Case, make_call, on_cuda, strided_copy, tolerance

pytestmark = pytest.mark.usefixtures("device")

ISA_LEVELS = ("portable", "avx2", "avx512", "avx512_bf16")

# Long enough to be split among threads, with odd lengths, a mask and every extra.
BUSY = [
    Case(dtype=dtype, layout=layout, capacity=3000, seq_lens=(2999, 1234), masked=True, sinks=True)
    for dtype in DTYPES
    for layout in LAYOUTS
]


def assert_same_bits(got, expected, rows=slice(None)):
    """Compares (out, stats) with the given batch rows of another."""
    for a, b in zip((got[0], *got[1]), (expected[0], *expected[1]), strict=True):
        assert torch.equal(a.view(torch.uint8), b[rows].contiguous().view(torch.uint8))


@pytest.mark.parametrize("case", BUSY, ids=str)
def test_what_is_not_attended(case):
    call = make_call(case)
    expected = call.run()
    for garbage in (math.inf, -1e4, 0.0):
        call.k = torch.where(call.k.isnan(), garbage, call.k)
        call.v = torch.where(call.v.isnan(), -garbage, call.v)
        if case.layout == "strided":  # torch.where returned packed tensors
            call.k, call.v = strided_copy(call.k), strided_copy(call.v)
        assert_same_bits(call.run(), expected)
        call = make_call(case)


@pytest.mark.cpu_only
@pytest.mark.parametrize("case", BUSY, ids=str)
def test_threads(case):
    call = make_call(case)
    torch.set_num_threads(1)
    expected = call.run()
    for num_threads in (2, 3):
        torch.set_num_threads(num_threads)
        assert_same_bits(call.run(), expected)


@pytest.mark.cpu_only
def test_threads_on_one_long_head():
    call = make_call(Case(batch=1, num_q_heads=1, num_kv_heads=1, capacity=20_000))
    torch.set_num_threads(1)
    expected = call.run()
    torch.set_num_threads(2)
    assert_same_bits(call.run(), expected)


def test_concurrent_calls():
    calls = [make_call(case) for case in BUSY]
    expected = [call.run() for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(Call.run, calls * 4), expected * 4, strict=True):
            assert_same_bits(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_mates(dtype):
    call = make_call(Case(batch=4, seq_lens=(130, 0, 77, 1), dtype=dtype, law="per_head"))
    together = call.run()
    for b in range(4):
        one = slice(b, b + 1)
        options = {
            name: value[one] if isinstance(value, torch.Tensor) else value
            for name, value in call.options.items()
        }
        law = sift.PowerLaw(call.law.log_alpha[one], call.law.beta[one])
        alone = Call(call.q[one], call.k[one], call.v[one], law, options)
        assert_same_bits(alone.run(), together, one)


@pytest.mark.parametrize("num_padded", [1, 7, 8, 64, 1001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_left_padding(num_padded, dtype):
    call = make_call(Case(capacity=1500, dtype=dtype))
    expected = call.run()
    for name in ("k", "v"):
        rows = getattr(call, name)
        padding = rows.new_full((2, 2, num_padded, 64), math.nan)
        setattr(call, name, torch.cat([padding, rows], dim=2))
    call.options["key_mask"] = (torch.arange(num_padded + 1500) >= num_padded).expand(2, -1)
    if not on_cuda():
        assert_same_bits(call.run(), expected)
        return
    out, stats = call.run()  # other keys share a tile
    torch.testing.assert_close(out, expected[0], **tolerance(dtype))
    torch.testing.assert_close(stats.lse, expected[1].lse)


@pytest.mark.parametrize("num_added", [1, 64, 777])
@pytest.mark.parametrize("dtype", DTYPES)
def test_capacity(num_added, dtype):
    call = make_call(Case(capacity=700, dtype=dtype))
    expected = call.run()
    for name in ("k", "v"):
        rows = getattr(call, name)
        tail = rows.new_full((2, 2, num_added, 64), math.nan)
        setattr(call, name, torch.cat([rows, tail], dim=2))
    call.options["seq_lens"] = torch.tensor([700, 700], dtype=torch.int32)
    assert_same_bits(call.run(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["strided", "paged"])
def test_layout(layout, dtype):
    case = {"capacity": 800, "seq_lens": (777, 790), "dtype": dtype}
    expected = make_call(Case(**case)).run()
    assert_same_bits(make_call(Case(layout=layout, **case)).run(), expected)


def test_expanded_heads_and_batch():
    call = make_call(Case(batch=2, num_kv_heads=8))
    call.k, call.v = call.k[:1, :1].expand_as(call.k), call.v[:1, :1].expand_as(call.v)
    call.options["v_sum"] = call.v.sum(2, dtype=torch.float32)
    expanded = call.run()
    call.k, call.v = call.k.contiguous(), call.v.contiguous()
    assert_same_bits(expanded, call.run())


def test_misaligned_rows():
    call = make_call(Case(capacity=300))
    expected = call.run()
    for name in ("q", "k", "v"):
        rows = getattr(call, name)
        storage = rows.new_empty(rows.numel() + 1)
        setattr(call, name, storage[1:].view(rows.shape).copy_(rows))
    assert_same_bits(call.run(), expected)


@pytest.mark.parametrize("case", BUSY, ids=str)
def test_inputs_are_only_read(case):
    call = make_call(case)
    tensors = [call.q, call.k, call.v]
    tensors += [value for value in call.options.values() if isinstance(value, torch.Tensor)]
    copies = [tensor.clone() for tensor in tensors]
    call.run()
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor.nan_to_num(7.0), copy.nan_to_num(7.0))


@pytest.mark.cpu_only
@pytest.mark.parametrize("level", ISA_LEVELS)
def test_every_instruction_set(level):
    """The comparison with the reference, in a process that is held to one level."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", here / "test_decode.py"],
        env={**os.environ, "SIFT_CPU_ISA": level},
        capture_output=True,
        text=True,
    )
    if "SIFT_CPU_ISA must be one of" in done.stdout and level != "portable":
        pytest.skip(f"this processor lacks {level}")
    assert done.returncode == 0, done.stdout


@pytest.mark.cpu_only
def test_unknown_instruction_set():
    program = (
        "import torch, sift_attention as sift\n"
        "x = torch.zeros(1, 1, 1, 32)\n"
        "sift.decode(x[0], x, x)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "SIFT_CPU_ISA": "mmx"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "SIFT_CPU_ISA must be one of" in done.stderr
