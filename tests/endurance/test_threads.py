"""Many threads at once: on the operators, and on one model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch
from configurations import LONG, QUANTILE, UNIFORM, ragged
from modes import generate, prompt
from scale import progress, scaled
from tiny_models import build

import sift_attention as sift
from cases import Case, make_call, make_score_quantile_args

THREADS = 8

T = TypeVar("T")


@pytest.fixture
def hurried():
    """Python changes from thread to thread as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def at_once(work: Callable[[int], T]) -> list[T]:
    """What `work` returns in each of the threads, which all start together."""
    start = threading.Barrier(THREADS)

    def wait_and_work(i: int) -> T:
        start.wait()
        return work(i)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(wait_and_work, range(THREADS)))


@pytest.mark.row(29)
def test_every_operator_at_once(hurried):
    """decode alone: test_concurrent_calls."""
    call = make_call(Case(capacity=700, seq_lens=(699, 345), masked=True, law="per_head"))
    arguments = make_score_quantile_args("paged", torch.float32, sinks=True)
    lengths, quantiles = torch.tensor([[32, 64, 128, 256]] * 2).int(), torch.rand(2, 6, 4)

    def run(op: int) -> torch.Tensor:
        if op == 0:
            return call.run()[0]
        if op == 1:
            return sift.score_quantile(**arguments).nan_to_num()
        return sift.fit_power_law(lengths, quantiles)[0].log_alpha

    expected = [run(op) for op in range(3)]

    def work(i: int) -> bool:
        return all(torch.equal(run((i + n) % 3), expected[(i + n) % 3]) for n in range(rounds))

    rounds = scaled(2000, 40)
    assert all(at_once(work))


def test_other_threads_run_during_a_call():
    """With switches between threads put off for ever, others run only if the call lets them."""
    q, k = torch.randn(1, 8, 64), torch.randn(1, 2, 60_000, 64)
    is_running, has_run = threading.Event(), []

    def other() -> None:
        is_running.wait()
        has_run.append(not is_done)

    is_done = False
    thread = threading.Thread(target=other)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e6)
    try:
        thread.start()
        is_running.set()
        for _ in range(50):
            sift.decode(q, k, k)
        is_done = True
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert has_run == [True]


@pytest.mark.row(29, 38)
def test_one_model_generates_in_many_threads(hurried):
    """The bits of every call, and the counts of all, are those of one call after the other."""
    model = build("llama")
    tokens = prompt(1, LONG)
    batch, _ = ragged()
    calls = [
        (tokens, {}),
        (tokens.flip(1), {"cache_implementation": "static"}),
        (batch, {}),
        (tokens[:, :20], {"num_beams": 2}),
    ]
    rounds = scaled(50, 1)
    for config in (UNIFORM, QUANTILE):
        with sift.hf.enabled(model, config) as handle:
            expected = [generate(model, inputs, **options)[1] for inputs, options in calls]
            handle.reset_stats()
            for inputs, options in calls:
                generate(model, inputs, **options)
            once = handle.stats().total
            handle.reset_stats()

            def work(i: int, expected: list[torch.Tensor] = expected) -> bool:
                same = True
                for n in progress(range(rounds), "threads") if i == 0 else range(rounds):
                    for c in range(len(calls)):
                        c = (c + i + n) % len(calls)
                        inputs, options = calls[c]
                        logits = generate(model, inputs, **options)[1]
                        same &= torch.equal(logits, expected[c])
                return same

            assert all(at_once(work))
            total = handle.stats().total
        times = THREADS * rounds
        assert total.decode_calls == times * once.decode_calls
        assert total.keys == times * once.keys
        assert total.rows_loaded == times * once.rows_loaded
        assert total.head_steps == times * once.head_steps
        assert total.dropped == pytest.approx(times * once.dropped)


def test_counters_lose_nothing(hurried):
    """Many short steps on the counters of one layer, which fold every 64."""
    k = torch.randn(1, 1, 8, 32)
    states = [sift.SiftState(sift.SiftConfig(min_keys=0)) for _ in range(THREADS)]
    steps = scaled(20_000, 500)
    for state in states:
        state.decode(k[:, :, 0], k, k)
        state.counters = states[0].counters
    states[0].counters.reset()

    def work(i: int) -> None:
        for _ in range(steps):
            states[i].decode(k[:, :, 0], k, k)

    at_once(work)
    counters = states[0].counters
    assert len(counters._pending) < 64
    counters.fold()
    assert counters.calls == counters.row_steps == THREADS * steps
    assert counters.keys == 8 * THREADS * steps
    assert counters.covered_mass.item() <= THREADS * steps * (1 + 1e-5)
    assert 0 < counters.rows_loaded <= counters.keys
