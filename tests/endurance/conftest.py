"""Loads on tiny models: shortened in the test suite, in full under SIFT_ENDURANCE=1."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sift_attention import counters

sys.path.append(str(Path(__file__).parent.parent / "hf"))  # its tiny models


@pytest.fixture(autouse=True)
def one_thread(same_start):
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def free_lock():
    """No test leaves the lock of the counters taken: the next thread would wait for ever."""
    yield
    with ThreadPoolExecutor(1) as other:
        is_free = other.submit(counters._LOCK.acquire, timeout=10).result()
        if is_free:
            other.submit(counters._LOCK.release).result()
    assert is_free
