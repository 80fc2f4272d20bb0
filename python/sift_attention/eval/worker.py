"""What one process of an evaluation does: load the model once, then measure cells as they come."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import traceback
import zlib
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from sift_attention.config import SiftConfig

from .cells import Cell, Group, Result, write_json
from .dialects import tasks_of
from .drift import drift
from .free_running import free_running
from .guard import order0_entropy
from .local import LOCAL_WEIGHTS
from .measure import measure
from .policies import Policy, Rows
from .quantiles import predicted_quantiles
from .simulate import Simulation, exact_logits, observe
from .stepwise import stepwise
from .tokens import Sample, stacked

# Of mallopt: what glibc takes from the system block by block, and what it hands back (malloc.h).
_M_MMAP_THRESHOLD, _LARGEST_BLOCK = -3, 1 << 25
_M_TRIM_THRESHOLD, _MOST_KEPT = -1, 1 << 30

_CALIBRATION_SEED = 7919  # the texts differ from the scored ones anyway


@dataclass(frozen=True)
class ModelSpec:
    """A model to be loaded.

    Attributes:
        folder: in the form of Hugging Face.
        dtype: "auto" for that of the weights, or a name as "bfloat16".
        device: as torch names it.
    """

    folder: Path
    dtype: str
    device: str

    def load(self) -> Any:
        """The model, ready to be evaluated."""
        model: Any = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=self.dtype, **LOCAL_WEIGHTS
        )
        return model.to(self.device).eval()


class Evaluator:
    """Measures cells of one model.

    Args:
        spec: the model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._model = spec.load()
        self._folder = spec.folder
        self._tasks = tasks_of(spec.folder)
        self._group: Group | None = None
        self._simulation: Simulation | None = None
        self._observed: tuple[int, dict[tuple[int, int], list[Rows]]] | None = None
        self._calibrated: dict[tuple[int, str], Policy] = {}

    @torch.inference_mode()
    def measure(self, cell: Cell) -> Result:
        """All that is measured of a cell, see `measure.measure`."""
        group = cell.group
        num_steps = group.length - group.start
        if cell.protocol == "drift":
            samples = self._draw(group)
            return drift(self._model, samples, num_steps, _config(cell))
        self._prepare(group)
        if cell.protocol == "quantiles":
            return {"rows": predicted_quantiles(observe(self._model, self._tokens, num_steps))}
        if cell.protocol == "free-running":
            return free_running(self._model, self._samples, num_steps, _config(cell))
        if cell.protocol == "stepwise":
            decoded = stepwise(self._model, self._tokens, num_steps, _config(cell), progress=False)
        else:
            policy = self._calibrate(cell.policy, group.length)
            decoded = self._simulated().decode(policy)
        result = measure(self._samples, self._exact, decoded)
        if cell.family == "exact":
            result["order0_bits"] = _order0_bits(self._samples, group.start)
        return result

    def _prepare(self, group: Group) -> None:
        """The sequences of a group and what the exact model makes of them."""
        if group == self._group:
            return
        self._samples = self._draw(group)
        (self._tokens,) = stacked(self._samples, "tokens")
        self._simulation = None
        self._exact = exact_logits(self._model, self._tokens, group.length - group.start)
        self._group = group

    def _simulated(self) -> Simulation:
        """The sequences of the group, whose prompt is read when the first policy needs it."""
        if self._simulation is None:
            num_steps = self._exact.shape[1]
            self._simulation = Simulation(self._model, self._tokens, num_steps)
        return self._simulation

    def _draw(self, group: Group) -> list[Sample]:
        rng = np.random.default_rng([group.seed, group.length, zlib.crc32(group.task.encode())])
        return [self._tasks[group.task](rng, group.length) for _ in range(group.sequences)]

    def _calibrate(self, policy: Policy, length: int) -> Policy:
        """The policy after it saw one sequence of every task, of texts that are not scored."""
        if type(policy).calibrate is Policy.calibrate:
            return policy
        known = self._calibrated.get((length, repr(policy)))
        if known is not None:
            return known
        if self._observed is None or self._observed[0] != length:
            self._observed = (length, self._observe(length))
        observed = self._observed[1]
        calibrated = self._calibrated[length, repr(policy)] = policy.calibrate(observed)
        for rows in (rows for sequences in observed.values() for rows in sequences):
            rows.__dict__.pop("p", None)  # cached there, and large
        return calibrated

    def _observe(self, length: int) -> dict[tuple[int, int], list[Rows]]:
        observed: dict[tuple[int, int], list[Rows]] = {}
        for name, draw in tasks_of(self._folder, "train").items():
            rng = np.random.default_rng([_CALIBRATION_SEED, length, zlib.crc32(name.encode())])
            (tokens,) = stacked([draw(rng, length)], "tokens")
            seen = observe(self._model, tokens, length - length // 2)
            for place, rows in seen.items():
                observed.setdefault(place, []).extend(rows)
        return observed


def serve(spec: ModelSpec, num_threads: int, connection: Connection, failure: Path) -> None:
    """Measure the cells that arrive until the other end closes.

    Sends True after every cell and None when it waits for the next ones. A failure is sent as one
    sentence, and its traceback written to a file, after which nothing more is sent.

    Args:
        spec: the model.
        num_threads: of torch.
        connection: brings lists of cells, each with the file for its result.
        failure: where a traceback goes.
    """
    torch.set_num_threads(num_threads)
    _keep_freed_memory()
    # The lock that bars create by themselves is a semaphore, which a stopped process leaves behind.
    tqdm.set_lock(threading.RLock())
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    cell = None
    try:
        evaluator = Evaluator(spec)
        connection.send(None)
        while True:
            for cell, path in connection.recv():
                write_json(path, {**cell.describe(), **evaluator.measure(cell)})
                connection.send(True)
            connection.send(None)
    except (EOFError, ConnectionError):
        os._exit(0)  # the parent is gone; nobody needs what is left
    except Exception as error:
        failure.write_text(traceback.format_exc())
        where = "loading the model" if cell is None else f"{cell.family} on {cell.group.task}"
        connection.send(f"{where}: {type(error).__name__}: {error}; see {failure}")


def _keep_freed_memory() -> None:
    """Spare a quarter of the time, which glibc spends on returning memory and getting it anew."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)


def _config(cell: Cell) -> SiftConfig:
    config = cell.policy.sift_config()
    if config is None:
        raise ValueError(f"eval: the operator must be able to run {cell.policy!r}, it is not")
    return config


def _order0_bits(samples: list[Sample], start: int) -> float:
    """Entropy of the scored tokens of the decode steps."""
    return order0_entropy(
        np.concatenate([s.tokens[start + 1 :][s.scored[start + 1 :]] for s in samples])
    )
