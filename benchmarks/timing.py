"""How every benchmark here measures: warm-up, interleaved repeats, median and spread."""

from __future__ import annotations

import functools
import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Far more than any L2. Reading so much also takes longer than queuing a call, so that a call's
# launches wait for the GPU and not the GPU for them.
FLUSH_BYTES = 1 << 30

Call = Callable[[], object]
Clock = Callable[[Call, int], float]


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call over all repeats; spread is (upper - lower quartile) / median."""

    median_ms: float
    min_ms: float
    spread: float
    repeats: int


def host_ms(call: Call, num_calls: int) -> float:
    """Milliseconds per call by the host's clock, for calls that return when they are done."""
    start_ns = time.perf_counter_ns()
    for _ in range(num_calls):
        call()
    return (time.perf_counter_ns() - start_ns) / 1e6 / num_calls


class CudaClock:
    """Milliseconds per call between two CUDA events on the current stream, the L2 emptied before.

    Args:
        calls_per_run: of the measured kind, in what is passed as one call: a graph holds several.
    """

    def __init__(self, calls_per_run: int = 1) -> None:
        self._calls_per_run = calls_per_run
        self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Call, num_calls: int) -> float:
        flush_l2()
        self._start.record()
        for _ in range(num_calls):
            call()
        self._stop.record()
        self._stop.synchronize()
        return self._start.elapsed_time(self._stop) / (num_calls * self._calls_per_run)


def flush_l2() -> None:
    """Read a large buffer. Written, it would leave lines that the next call has to write back."""
    _flush_buffer().amax()


@functools.cache
def _flush_buffer() -> Tensor:
    return torch.ones(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")


def captured(call: Call, num_calls: int) -> Call:
    """So many calls in a row as a CUDA graph; calling the result replays it."""
    stream, graph = _capture_stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # sets up what is set up once per stream, as a workspace of cuBLAS is
        stream.synchronize()
        graph.capture_begin()
        try:
            for _ in range(num_calls):
                call()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


@functools.cache
def _capture_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


def measure(
    calls: Mapping[str, Call],
    *,
    rounds: int = 21,
    budget_s: float = 0.5,
    min_sample_ms: float = 4.0,
    clock: Clock = host_ms,
) -> dict[str, Timing]:
    """Time the calls against each other: every round runs each of them once, in a new order.

    A drifting clock or a busy neighbour then hits all of them alike. Calls shorter than
    `min_sample_ms` are timed in batches (0: one at a time). A call that would need more than
    `budget_s` seconds sits rounds out, evenly, but runs in the first, the middle and the last one.
    `clock` gives the milliseconds per call of a number of calls in a row.
    """
    batch = {name: _batch_size(call, clock, min_sample_ms) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).sample
    was_collecting = gc.isenabled()
    gc.disable()
    for i in range(rounds):
        for name in shuffle(list(calls), len(calls)):
            spent_s = sum(samples[name]) * batch[name] / 1e3
            if i in (0, rounds // 2, rounds - 1) or spent_s <= budget_s * i / rounds:
                samples[name].append(clock(calls[name], batch[name]))
    if was_collecting:
        gc.enable()
    return {name: summary(times) for name, times in samples.items()}


def _batch_size(call: Call, clock: Clock, min_sample_ms: float) -> int:
    """Calls per sample, from a second run; the first one warms up."""
    call()
    return max(1, round(min_sample_ms / clock(call, 1)))


def summary(times_ms: list[float]) -> Timing:
    median = statistics.median(times_ms)
    lower, _, upper = statistics.quantiles(times_ms, n=4, method="inclusive")
    return Timing(median, min(times_ms), (upper - lower) / median, len(times_ms))
