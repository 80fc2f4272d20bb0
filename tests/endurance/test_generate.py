"""Thousands of requests, a good part of them broken off, leave nothing behind."""

from __future__ import annotations

import gc
import sys

import pytest
import torch
from memory import Samples, live_states
from random_requests import CONFIGS, Requests
from scale import progress, scaled
from tiny_models import build

import sift_attention as sift

CALLS = scaled(10_000, 120)
SAMPLES = scaled(100, 20)

# Growth per call over the last three quarters. One forgotten object is 1 block; one forgotten state
# some 30 blocks and 8 tensors; a cache of these requests 50,000 bytes.
MAX_BLOCKS = scaled(1, 200) / 20
MAX_TENSORS = scaled(1, 100) / 200
MAX_BYTES = scaled(500, 20_000)


@pytest.fixture
def frozen():
    """What is there already need not be gone through at every sample."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.row(34)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_memory_stays_flat_and_no_state_survives(frozen):
    model = build("llama")
    torch.manual_seed(1)
    samples = Samples(SAMPLES)
    with sift.hf.enabled(model, CONFIGS[0]) as handle:
        requests = Requests(model)
        for call in progress(range(CALLS), "requests"):
            if call % 20 == 0:
                sift.hf.enable(model, CONFIGS[call // 20 % len(CONFIGS)])
            requests.serve()
            if (call + 1) % (CALLS // SAMPLES) == 0:
                handle.stats()  # counters keep the results of up to 64 steps
                samples.take(call)
                assert samples.newest("states") == 0
        assert handle.stats().total.decode_calls > 2 * CALLS
    assert min(requests.served.values()) > CALLS // 20
    assert len(requests.served) == 8
    assert requests.num_broken_off > CALLS // 5
    assert live_states() == 0
    names = ("blocks", "tensors", "resident_bytes")
    blocks, tensors, resident = (samples.growth_per_call(name) for name in names)
    print(f"per call: {blocks:.4f} blocks, {tensors:.4f} tensors, {resident:.0f} bytes resident")
    assert blocks <= MAX_BLOCKS
    assert tensors <= MAX_TENSORS
    assert resident <= MAX_BYTES


def test_growth_is_seen():
    """The judgement itself: one object per call more, and a jump that is none."""

    def growth(per_call: float, jump: int) -> float:
        samples = Samples(40)
        for call in range(0, 1000, 25):
            samples.note(call, 0, 1000 + per_call * call + jump * (call >= 500), 0, 0)
        return samples.growth_per_call("blocks")

    assert growth(1.0, 0) == 1.0
    assert growth(0.0, 0) == 0.0
    assert abs(growth(0.0, 300)) < 0.5
