"""Whether memory stays flat: what a process holds, sampled while it repeats something."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import torch

from sift_attention.attended import AttendedKeys
from sift_attention.calibration import Calibration
from sift_attention.hf.attention import Forward
from sift_attention.hf.cache import CacheState
from sift_attention.state import SiftState
from sift_attention.value_sum import ValueSum

STATES = (SiftState, ValueSum, Calibration, CacheState, Forward, AttendedKeys)


class Samples:
    """What the process holds after garbage collections, but for frozen objects.

    The numbers lie in one tensor, so that noting them allocates nothing that would count.

    Args:
        count: how many samples there will be.
    """

    NAMES = ("call", "resident_bytes", "blocks", "tensors", "states")

    def __init__(self, count: int) -> None:
        self._rows = torch.zeros(count, len(self.NAMES), dtype=torch.float64)
        self._taken = 0

    def take(self, call: int) -> None:
        """Note what is held after `call` calls; a block is any piece that Python allocated."""
        gc.collect()
        objects = gc.get_objects()
        tensors = sum(issubclass(type(x), torch.Tensor) for x in objects)
        states = sum(issubclass(type(x), STATES) for x in objects)
        del objects
        self.note(call, resident_bytes(), sys.getallocatedblocks(), tensors, states)

    def note(self, *numbers: float) -> None:
        """Add a sample, in the order of NAMES."""
        self._rows[self._taken] = torch.tensor(numbers, dtype=torch.float64)
        self._taken += 1

    def newest(self, name: str) -> float:
        """A number of the last sample."""
        return self._rows[self._taken - 1, self.NAMES.index(name)].item()

    def growth_per_call(self, name: str) -> float:
        """The slope of the Theil-Sen line through the last three quarters of the samples.

        The first quarter warms up. The median of all slopes between two samples ignores single
        jumps, as of an arena that Python takes or gives back.
        """
        steady = self._rows[: self._taken][self._taken // 4 :]
        calls, held = steady[:, 0], steady[:, self.NAMES.index(name)]
        first, second = torch.triu_indices(len(steady), len(steady), offset=1)
        slopes = (held[second] - held[first]) / (calls[second] - calls[first])
        return slopes.median().item()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def live_states() -> int:
    """States of any kind that are still referred to."""
    gc.collect()
    return sum(issubclass(type(x), STATES) for x in gc.get_objects())
