"""Large buffers of the growing cache: on huge pages where there are any, freed when they die."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import pytest
import torch

from sift_attention.hf import huge_pages
from sift_attention.hf.growing_layer import GrowingLayer

SMAPS = Path("/proc/self/smaps")
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LARGE = (2, 4, 5000, 64)  # 4.9 MiB in bfloat16: no whole number of huge pages
CPU = torch.device("cpu")

on_linux = pytest.mark.skipif(not SMAPS.exists(), reason="reads /proc/self")


def resident_bytes() -> int:
    num_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return num_pages * os.sysconf("SC_PAGE_SIZE")


def huge_bytes() -> int:
    return 1024 * sum(int(kb) for kb in re.findall(r"AnonHugePages: *(\d+)", SMAPS.read_text()))


@pytest.mark.parametrize("size", [(0,), (1, 2, 0, 64), (3, 5), LARGE], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tensor_as_torch_makes_it(size, dtype):
    ours, stock = huge_pages.empty(size, dtype, CPU), torch.empty(size, dtype=dtype)
    assert (ours.shape, ours.stride(), ours.dtype) == (stock.shape, stock.stride(), dtype)
    assert ours.storage_offset() == 0
    assert ours.untyped_storage().nbytes() == stock.untyped_storage().nbytes()
    assert torch.equal(ours.fill_(3), stock.fill_(3))


def test_other_devices_are_left_to_torch():
    assert huge_pages.empty(LARGE, torch.bfloat16, torch.device("meta")).is_meta


@on_linux
@pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="needs huge pages"
)
def test_the_kernel_gives_huge_pages():
    before = huge_bytes()
    keys = huge_pages.empty((8, 1 << 20), torch.float32, CPU).zero_()
    if huge_bytes() == before:
        pytest.skip("the machine had no huge page to give")
    assert huge_bytes() - before >= keys.nbytes - 2 * huge_pages.HUGE_PAGE_BYTES


@on_linux
def test_memory_goes_with_the_last_view():
    before = resident_bytes()
    view = huge_pages.empty((16, 1 << 20), torch.float32, CPU).zero_()[3:5, 7:]
    assert resident_bytes() - before > 60 << 20
    gc.collect()
    assert view.sum() == 0
    del view
    assert resident_bytes() - before < 8 << 20


@on_linux
def test_a_forked_child_writes_to_its_own_copy():
    keys = huge_pages.empty(LARGE, torch.bfloat16, CPU).zero_()
    child = os.fork()
    if child == 0:
        keys[0, 0, 0, 0] = 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert keys[0, 0, 0, 0] == 0


def test_tensors_can_be_shared_between_processes():
    keys = huge_pages.empty(LARGE, torch.bfloat16, CPU).fill_(2)
    assert torch.equal(keys.clone().share_memory_(), keys)
    keys.share_memory_()
    assert keys.is_shared()
    assert (keys == 2).all()


def test_a_kernel_without_huge_pages(monkeypatch):
    monkeypatch.setattr(huge_pages.mmap, "MADV_HUGEPAGE", -1)
    assert huge_pages.empty(LARGE, torch.bfloat16, CPU).zero_().sum() == 0


def test_a_system_that_does_not_know_them(monkeypatch):
    monkeypatch.delattr(huge_pages.mmap, "MADV_HUGEPAGE")
    assert huge_pages.empty(LARGE, torch.bfloat16, CPU).zero_().sum() == 0


def test_a_large_layer_grows():
    layer, rows = GrowingLayer(), torch.randn(1, 8, 3000, 128, dtype=torch.bfloat16)
    for count in range(1, 5):
        keys, values = layer.update(rows, -rows)
        assert torch.equal(keys, rows.repeat(1, 1, count, 1))
        assert torch.equal(values, -keys)
