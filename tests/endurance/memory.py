"""Whether memory stays flat: what a process holds, sampled while it repeats something."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sift_attention.attended import AttendedKeys
from sift_attention.calibration import Calibration
from sift_attention.hf.attention import Forward
from sift_attention.hf.cache import CacheState
from sift_attention.state import SiftState
from sift_attention.value_sum import ValueSum

STATES = (SiftState, ValueSum, Calibration, CacheState, Forward, AttendedKeys)


@dataclass(frozen=True)
class Sample:
    """What the process holds after a garbage collection, but for frozen objects."""

    call: int
    resident_bytes: int
    blocks: int  # pieces of memory that Python allocated: every small object is one
    tensors: int
    states: int

    @classmethod
    def take(cls, call: int) -> Sample:
        gc.collect()
        objects = gc.get_objects()
        tensors = sum(issubclass(type(x), torch.Tensor) for x in objects)
        states = sum(issubclass(type(x), STATES) for x in objects)
        del objects
        return cls(call, resident_bytes(), sys.getallocatedblocks(), tensors, states)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth_per_call(samples: list[Sample], of: Callable[[Sample], float]) -> float:
    """The slope of the Theil-Sen line through the last three quarters of the samples.

    The first quarter warms up. The median of all slopes between two samples ignores single jumps,
    as of an arena that Python takes or gives back.
    """
    steady = samples[len(samples) // 4 :]
    slopes = sorted(
        (of(b) - of(a)) / (b.call - a.call) for i, a in enumerate(steady) for b in steady[i + 1 :]
    )
    return slopes[len(slopes) // 2]


def live_states() -> int:
    """States of any kind that are still referred to."""
    gc.collect()
    return sum(issubclass(type(x), STATES) for x in gc.get_objects())
