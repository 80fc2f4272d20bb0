"""Processes that measure cells side by side, and what becomes of them when one of them fails."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType

from .cells import Cell
from .options import num_cores
from .worker import ModelSpec, serve

_PATIENCE_S = 5.0  # that a process has to end
_REFRESH_S = 1.0  # between two looks at the clock while nothing happens


class WorkerError(RuntimeError):
    """A worker process cannot go on; the message says why."""


class Workers:
    """Worker processes, each with the model loaded; they live as long as the `with` block.

    Args:
        count: processes; they share the cores.
        spec: the model.
        failure: file for the traceback of a failure.
    """

    def __init__(self, count: int, spec: ModelSpec, failure: Path) -> None:
        context = multiprocessing.get_context("spawn")
        num_threads = max(1, num_cores() // count)
        self._processes = {}
        self._idle: list[Connection] = []
        # Ctrl-C reaches the whole group of processes; what a worker does then is decided here.
        resource_tracker.ensure_running()  # the first start of a process would, and unblock signals
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(count):
                ours, theirs = context.Pipe()
                arguments = (spec, num_threads, theirs, failure)
                process = context.Process(target=serve, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self._processes[ours] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def __enter__(self) -> Workers:
        """See the class."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the processes at once: what they have not finished is not written."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join(_PATIENCE_S)
            if process.is_alive():
                process.kill()
                process.join()

    def run(
        self,
        jobs: Iterable[list[tuple[Cell, Path]]],
        finished: Callable[[], None],
        tick: Callable[[], None],
    ) -> None:
        """Measure all cells.

        Args:
            jobs: lists of cells for one worker each, with the files for their results.
            finished: called after every cell.
            tick: called about once a second.

        Raises:
            WorkerError: a worker raised, or ended.
        """
        waiting = list(reversed(list(jobs)))
        for connection in self._idle[: len(waiting)]:
            self._idle.remove(connection)
            _send(connection, waiting.pop())
        while waiting or len(self._idle) < len(self._processes):
            for ready in wait(list(self._processes), timeout=_REFRESH_S):
                assert isinstance(ready, Connection)
                if self._receive(ready):
                    finished()
                elif waiting:
                    _send(ready, waiting.pop())
                else:
                    self._idle.append(ready)
            tick()

    def _receive(self, connection: Connection) -> bool:
        """True: a cell is finished; False: the worker waits for the next."""
        try:
            message: bool | str | None = connection.recv()
        except (EOFError, ConnectionResetError):
            process = self._processes[connection]
            process.join(_PATIENCE_S)
            raise WorkerError(
                f"a worker ended with exit code {process.exitcode}"
                + (", as when memory runs out" if process.exitcode == -signal.SIGKILL else "")
            ) from None
        if isinstance(message, str):
            raise WorkerError(f"a worker failed at {message}")
        return message is True


def _send(connection: Connection, job: list[tuple[Cell, Path]]) -> None:
    """Hand over a job; where the worker is gone, receiving from it will tell."""
    with contextlib.suppress(BrokenPipeError):
        connection.send(job)
