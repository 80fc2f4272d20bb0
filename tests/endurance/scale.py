"""How long the tests of this folder run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

IS_FULL = os.environ.get("SIFT_ENDURANCE") == "1"  # make endurance

T = TypeVar("T")


def scaled(full: int, short: int) -> int:
    """A number of repetitions: the one of `make endurance`, or the one of the test suite."""
    return full if IS_FULL else short


def progress(steps: Iterable[T], name: str) -> Iterator[T]:
    """The steps, with a bar where they take long."""
    return iter(tqdm(steps, desc=name, disable=not IS_FULL, dynamic_ncols=True))
