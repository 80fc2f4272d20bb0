"""The cells of an evaluation: what each one measures, what identifies it, where its result lies."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers

from .policies import Policy, families
from .policies.exact import Exact

Protocol = Literal["simulated", "stepwise", "free-running", "drift", "quantiles"]
Result = dict[str, Any]

MIN_LENGTH = 512  # the operator sifts from 256 attended keys, which half of it is
DRIFT_PROMPT = 512
_PACKAGE = Path(__file__).resolve().parents[1]
_NOT_MEASURING = {
    "__main__",
    "arguments",
    "options",
    "run",
    "workers",
    "environment",
    "report",
    "lm_eval",
}


@dataclass(frozen=True)
class Group:
    """What cells share that are measured against the same exact forward.

    Attributes:
        task: name of the task.
        length: tokens of a sequence, N.
        seed: of the sequences.
        sequences: how many.
        start: tokens of the prompt; the others are decode steps.
    """

    task: str
    length: int
    seed: int
    sequences: int
    start: int


@dataclass(frozen=True)
class Cell:
    """One measurement: a policy on the sequences of a group.

    Attributes:
        group: the sequences.
        family: name of the policy's family.
        policy: its setting.
        protocol: how the decode steps are run.
    """

    group: Group
    family: str
    policy: Policy
    protocol: Protocol = "simulated"

    def describe(self) -> Result:
        """The fields by which reports tell cells apart."""
        return {
            "task": self.group.task,
            "length": self.group.length,
            "seed": self.group.seed,
            "sequences": self.group.sequences,
            "start": self.group.start,
            "family": self.family,
            "policy": repr(self.policy),
            "protocol": self.protocol,
        }

    def id(self, model: str) -> str:
        """Digest of all that determines the result: this cell, the sources, the versions.

        Args:
            model: stands for weights, dtype and device.
        """
        known = {**self.describe(), "model": model, "code": _code(type(self.policy)), **_versions()}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:20]


class Store:
    """Results of cells on disk, one file each.

    Args:
        folder: of the evaluation.
        model: see `Cell.id`.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self._folder = folder / "cells"
        self._model = model
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, cell: Cell) -> Path:
        """Where the result of a cell lies, once it is finished."""
        return self._folder / f"{cell.id(self._model)}.json"

    def load(self, cell: Cell) -> Result | None:
        """The result of a finished cell."""
        path = self.path(cell)
        result: Result | None = json.loads(path.read_text()) if path.exists() else None
        return result

    def has(self, cell: Cell) -> bool:
        """Whether a cell is finished."""
        return self.path(cell).exists()


def write_json(path: Path, value: Any) -> None:
    """Write JSON as a whole or not at all; NaN and infinities become null."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def exact_cells(
    tasks: Sequence[str], lengths: Sequence[int], seeds: Sequence[int], sequences: int
) -> list[Cell]:
    """The cells that come first: how good the exact model is decides which others are run."""
    return [
        Cell(Group(task, length, seed, sequences, length // 2), "exact", Exact())
        for task in tasks
        for length in lengths
        for seed in seeds
    ]


def settings(names: Sequence[str]) -> list[tuple[str, Policy]]:
    """Families by name with each of their settings, without exact attention."""
    known = families()
    pairs = [(name, policy) for name in names for policy in known[name] if name != "exact"]
    return list({(name, repr(policy)): (name, policy) for name, policy in pairs}.values())


def file_of(policy: Policy) -> str:
    """Name of the file that defines a policy, without its ending."""
    return type(policy).__module__.rpartition(".")[2]


def operator_settings(names: Sequence[str]) -> list[tuple[str, Policy]]:
    """The settings that the operator itself can run.

    Args:
        names: families; "default" for the setting that is SiftConfig().
    """
    from sift_attention.config import SiftConfig

    chosen: dict[str, tuple[str, Policy]] = {}
    for family, policies in families().items():
        for policy in policies:
            config = policy.sift_config()
            is_default = "default" in names and config == SiftConfig()
            if config is not None and (family in names or is_default):
                chosen.setdefault(repr(policy), (family, policy))
    return list(chosen.values())


def jobs(cells: Sequence[Cell], largest: int = 24) -> Iterator[list[Cell]]:
    """Runs of cells of one group, short enough that workers end at about the same time."""
    by_group: dict[Group, list[Cell]] = {}
    for cell in cells:
        by_group.setdefault(cell.group, []).append(cell)
    for members in by_group.values():
        for begin in range(0, len(members), largest):
            yield members[begin : begin + largest]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _versions() -> Result:
    """The samples come from the standard library of this very Python and numpy's generators."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@cache
def _code(policy: type[Policy]) -> str:
    """Digest of the sources that results depend on: the package's, and of policies only this."""
    own = Path(inspect.getfile(policy)).resolve()
    files = {path for path in _PACKAGE.rglob("*.py") if path.parent.name != "policies"}
    files = {path for path in files if not _NOT_MEASURING & {path.stem, path.parent.name}}
    files |= set((_PACKAGE / "lib").glob("*.so"))
    digest = hashlib.sha256()
    for path in sorted(files | _with_siblings(own)):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _with_siblings(source: Path) -> set[Path]:
    """A source file and those of its folder that it imports."""
    found = {source}
    for name in re.findall(r"^from \.(\w+) import", source.read_text(), re.MULTILINE):
        if (sibling := source.parent / f"{name}.py").exists():
            found |= _with_siblings(sibling)
    return found
