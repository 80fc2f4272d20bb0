"""Interrupts at chosen lines of the package, as Ctrl-C raises them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import sift_attention

PACKAGE = str(Path(sift_attention.__file__).parent)


class Interrupter:
    """Counts the lines of sift_attention that run, and raises KeyboardInterrupt before one of them.

    Args:
        at: which one, counted from 0; None: none.

    Attributes:
        num_lines (int): lines that ran.
    """

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.num_lines = 0

    def run(self, call: Callable[[], Any]) -> bool:
        """Make a call; whether it was interrupted."""
        previous = sys.gettrace()
        sys.settrace(self._enter)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(previous)
        return False

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.num_lines += 1
            if self.num_lines - 1 == self.at:
                raise KeyboardInterrupt
        return self._line


def count_lines(call: Callable[[], Any]) -> int:
    """How many lines of the package a call runs."""
    counter = Interrupter()
    assert not counter.run(call)
    return counter.num_lines
