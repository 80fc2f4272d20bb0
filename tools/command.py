"""Runs a program within a time limit, its output on the screen and in a log."""

from __future__ import annotations

import contextlib
import enum
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

GRACE_S = 8.0  # between asking a program to end and ending it


@dataclass(frozen=True)
class Command:
    """A program, its arguments, and what it finds in its environment beside ours."""

    words: list[str]
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What is being run, briefly: a script of Python's, a module, else the program."""
        words = [word for word in self.words if not word.startswith("-")]
        scripts = [word for word in words if word.endswith(".py")]
        return Path(scripts[0] if scripts else words[0]).name

    def __str__(self) -> str:
        """As one would type it."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.extra.items()]
        return " ".join([*settings, shlex.join(self.words)])


class Outcome(enum.Enum):
    """How a program ended."""

    PASSED = "passed"
    FAILED = "failed"
    TIME_UP = "time up"


class Log:
    """Writes to the screen and to a file at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")

    def write(self, text: str) -> None:
        """Every write is flushed: the process may be killed at any time."""
        for stream in (sys.stdout, self._file):
            stream.write(text)
            stream.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def run_command(command: Command, limit_s: float, folder: Path, log: Log) -> tuple[Outcome, str]:
    """Run it in a folder; its outcome and the last line that it printed.

    At the limit the program and whatever it started are interrupted, so that they may still write
    what they have, and GRACE_S later killed.
    """
    log.write(f"$ {command}\n")
    if limit_s <= 0:
        return Outcome.TIME_UP, "no time was left"
    paths = [str(folder / "python"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        **command.extra,
    }
    try:
        process = subprocess.Popen(
            command.words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_heed_interrupts,
        )
    except OSError as error:
        log.write(f"{error}\n")
        return Outcome.FAILED, str(error)
    timers = [
        threading.Timer(limit_s, _signal_group, (process, signal.SIGINT)),
        threading.Timer(limit_s + GRACE_S, _signal_group, (process, signal.SIGKILL)),
    ]
    begin_s = time.monotonic()
    for timer in timers:
        timer.start()
    last_line = ""
    assert process.stdout is not None
    for line in process.stdout:
        log.write(line)
        last_line = line.strip() or last_line
    status = process.wait()
    for timer in timers:
        timer.cancel()
    if time.monotonic() - begin_s >= limit_s:
        return Outcome.TIME_UP, last_line
    return (Outcome.PASSED if status == 0 else Outcome.FAILED), last_line


def _heed_interrupts() -> None:
    """A job in the background ignores SIGINT, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _signal_group(process: subprocess.Popen[str], number: int) -> None:
    """Signal the session that the program leads, as long as any of it lives."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
