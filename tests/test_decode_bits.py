"""What must not change a single bit of what decode returns."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cases import (
    DTYPES,
    LAYOUTS,
    Call,
    Case,
    assert_same_bits,
    make_call,
    on_cuda,
    strided_copy,
    tolerance,
)
from levels import LEVELS

pytestmark = pytest.mark.usefixtures("device")

# Long enough to be split among threads, with odd lengths, a mask and every extra.
BUSY = [
    Case(dtype=dtype, layout=layout, capacity=3000, seq_lens=(2999, 1234), masked=True, sinks=True)
    for dtype in DTYPES
    for layout in LAYOUTS
]


@pytest.mark.row(8)
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


@pytest.mark.row(28, 29)
@pytest.mark.cpu_only
@pytest.mark.parametrize("case", BUSY, ids=str)
def test_threads(case):
    call = make_call(case)
    torch.set_num_threads(1)
    expected = call.run()
    for num_threads in (2, 3):
        torch.set_num_threads(num_threads)
        assert_same_bits(call.run(), expected)


@pytest.mark.row(28, 29)
@pytest.mark.cpu_only
def test_threads_on_one_long_head():
    call = make_call(Case(batch=1, num_q_heads=1, num_kv_heads=1, capacity=20_000))
    torch.set_num_threads(1)
    expected = call.run()
    torch.set_num_threads(2)
    assert_same_bits(call.run(), expected)


@pytest.mark.row(29)
def test_concurrent_calls():
    calls = [make_call(case) for case in BUSY]
    expected = [call.run() for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(Call.run, calls * 4), expected * 4, strict=True):
            assert_same_bits(got, want)


@pytest.mark.row(27)
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


@pytest.mark.row(41)
@pytest.mark.cpu_only
@pytest.mark.parametrize("level", LEVELS)
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


@pytest.mark.row(41)
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
