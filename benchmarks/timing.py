"""How every benchmark here measures: warm-up, interleaved repeats, median and spread."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call over all repeats; spread is (upper - lower quartile) / median."""

    median_ms: float
    min_ms: float
    spread: float
    repeats: int


def _time_ms(call: Callable[[], object], num_calls: int) -> float:
    start_ns = time.perf_counter_ns()
    for _ in range(num_calls):
        call()
    return (time.perf_counter_ns() - start_ns) / 1e6 / num_calls


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    max_repeats: int = 15,
    min_repeats: int = 5,
    budget_s: float = 4.0,
    min_sample_ms: float = 2.0,
) -> dict[str, Timing]:
    """Time the calls against each other: every repeat runs each of them once, in turn.

    A drifting clock or a busy neighbour then hits all of them alike. Calls shorter than
    `min_sample_ms` are timed in batches; repeats end after `budget_s` seconds.
    """
    batch = {}
    for name, call in calls.items():
        call()
        batch[name] = max(1, round(min_sample_ms / _time_ms(call, 1)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    start_s = time.perf_counter()
    for repeat in range(max_repeats):
        if repeat >= min_repeats and time.perf_counter() - start_s > budget_s:
            break
        for name, call in calls.items():
            samples[name].append(_time_ms(call, batch[name]))
    return {name: _summary(times) for name, times in samples.items()}


def _summary(times_ms: list[float]) -> Timing:
    median = statistics.median(times_ms)
    lower, _, upper = statistics.quantiles(times_ms, n=4, method="inclusive")
    return Timing(median, min(times_ms), (upper - lower) / median, len(times_ms))


def rotate(items: list[Item]) -> Callable[[], Item]:
    """The items in turn, for ever: calls that walk through them find none in the cache."""
    cycle = itertools.cycle(items)
    return lambda: next(cycle)


def read_bandwidth(num_bytes: int = 1 << 29) -> tuple[float, str]:
    """Read bandwidth with torch's present number of threads, in GB/s (10^9 bytes per second).

    It is the better of two reductions of one float32 buffer much larger than the caches, in its
    best repeat, and the name of the one that won.
    """
    buffer = torch.ones(num_bytes // 4)
    timings = measure({"torch.sum": buffer.sum, "torch.amax": buffer.amax}, max_repeats=15)
    method = min(timings, key=lambda name: timings[name].min_ms)
    return buffer.nbytes / timings[method].min_ms / 1e6, method
