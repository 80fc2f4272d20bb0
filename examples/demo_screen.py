"""What the demo prints: headings, tables and two columns that fill side by side."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

WIDTH = 100
_COLUMN = WIDTH // 2 - 2


def heading(text: str) -> None:
    """A line that opens a part."""
    print(f"\n{_bold(text)}\n{'─' * WIDTH}", flush=True)


def say(text: str) -> None:
    """A paragraph of explanation."""
    print(textwrap.fill(" ".join(text.split()), WIDTH), flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need, the first flush left, the others flush right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    for number, line in enumerate((header, *rows)):
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        text = "   ".join(cells)
        print(f"  {_bold(text) if number == 0 else text}")
    print(flush=True)


class TwoColumns:
    """Two texts that grow character by character; a row is printed once both sides are complete.

    Rows that differ are marked in the gutter.
    """

    def __init__(self, left_title: str, right_title: str) -> None:
        self._sides: tuple[list[str], list[str]] = ([""], [""])
        self._printed = 0
        print(_bold(f"{left_title:<{_COLUMN}}    {right_title}"), flush=True)

    def add(self, left: str, right: str) -> None:
        """Append one character to each side."""
        for lines, character in zip(self._sides, (left, right), strict=True):
            if character == "\n" or len(lines[-1]) == _COLUMN:
                lines.append("")
            if character != "\n":
                lines[-1] += character if character.isprintable() else "·"
        while self._printed < min(len(lines) for lines in self._sides) - 1:
            self._print_row()

    def finish(self) -> None:
        """Print what is left."""
        while self._printed < max(len(lines) for lines in self._sides):
            self._print_row()

    def _print_row(self) -> None:
        left, right = (
            lines[self._printed] if self._printed < len(lines) else "" for lines in self._sides
        )
        gutter = "│" if left == right else "≠"
        print(f"{left:<{_COLUMN}} {gutter}  {right}", flush=True)
        self._printed += 1


def _bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text
