"""How every benchmark here measures: warm-up, interleaved repeats, median and spread."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call over all repeats; spread is (upper - lower quartile) / median."""

    median_ms: float
    min_ms: float
    spread: float
    repeats: int


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 21,
    budget_s: float = 0.5,
    min_sample_ms: float = 4.0,
) -> dict[str, Timing]:
    """Time the calls against each other: every round runs each of them once, in a new order.

    A drifting clock or a busy neighbour then hits all of them alike. Calls shorter than
    `min_sample_ms` are timed in batches. A call that would need more than `budget_s` seconds
    sits rounds out, evenly, but runs in the first, the middle and the last one.
    """
    batch = {name: _batch_size(call, min_sample_ms) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).sample
    was_collecting = gc.isenabled()
    gc.disable()
    for i in range(rounds):
        for name in shuffle(list(calls), len(calls)):
            spent_s = sum(samples[name]) * batch[name] / 1e3
            if i in (0, rounds // 2, rounds - 1) or spent_s <= budget_s * i / rounds:
                samples[name].append(_time_ms(calls[name], batch[name]))
    if was_collecting:
        gc.enable()
    return {name: summary(times) for name, times in samples.items()}


def _batch_size(call: Callable[[], object], min_sample_ms: float) -> int:
    """Calls per sample, from a second run; the first one warms up."""
    call()
    return max(1, round(min_sample_ms / _time_ms(call, 1)))


def _time_ms(call: Callable[[], object], num_calls: int) -> float:
    start_ns = time.perf_counter_ns()
    for _ in range(num_calls):
        call()
    return (time.perf_counter_ns() - start_ns) / 1e6 / num_calls


def summary(times_ms: list[float]) -> Timing:
    median = statistics.median(times_ms)
    lower, _, upper = statistics.quantiles(times_ms, n=4, method="inclusive")
    return Timing(median, min(times_ms), (upper - lower) / median, len(times_ms))
