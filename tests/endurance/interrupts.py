"""Interrupts at chosen moments of the package, as Ctrl-C raises them."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import sift_attention

PACKAGE = str(Path(sift_attention.__file__).parent)


def is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(PACKAGE)


class Interrupter:
    """Counts the moments when Ctrl-C can meet sift_attention, and raises KeyboardInterrupt at one.

    Python acts on signals when a function starts, in loops and after a call (bpo-29988). Elsewhere
    it never does: an exception at the end of a `with` block, as a tracer can raise it, would leave
    the lock taken.

    Args:
        at: which one, counted from 0; None: none.

    Attributes:
        num_moments (int): moments that passed.
    """

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.num_moments = 0

    def run(self, call: Callable[[], Any]) -> bool:
        """Make a call; whether it was interrupted."""
        previous = sys.getprofile()
        sys.setprofile(self._count)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(previous)
        return False

    def _count(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "return":  # of other packages' functions, which may call C last
            counts = is_ours(frame.f_back) and not is_ours(frame)
        else:
            counts = event in ("call", "c_return") and is_ours(frame)
        if counts:
            self.num_moments += 1
            if self.num_moments - 1 == self.at:
                raise KeyboardInterrupt


def count_moments(call: Callable[[], Any]) -> int:
    """At how many moments of a call the package can be interrupted."""
    counter = Interrupter()
    assert not counter.run(call)
    return counter.num_moments


@contextmanager
def alarms() -> Iterator[Callable[[float], object]]:
    """Real signals: what it gives takes seconds until the next, which interrupts the package."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None and not is_ours(frame):
            frame = frame.f_back
        if frame is not None:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield functools.partial(signal.setitimer, signal.ITIMER_REAL)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
