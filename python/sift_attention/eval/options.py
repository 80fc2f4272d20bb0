"""What may be asked of an evaluation, and what is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ..hf.enable import check_attention
from .cells import DRIFT_PROMPT, MIN_LENGTH, file_of, operator_settings
from .dialects import check_vocabulary
from .local import LOCAL_ONLY
from .policies import families
from .tasks import EVALUATION_TASKS

_REPOSITORY_MODEL = Path(__file__).resolve().parents[3] / "examples" / "model"
DTYPES = ("auto", "float32", "bfloat16", "float16")


class RefusedError(ValueError):
    """What was asked for cannot be done; the message is one sentence for the user."""


@dataclass(frozen=True)
class Options:
    """What to evaluate; the fields are the options of the command line, which explains them."""

    out: Path
    model: Path | None = None
    tasks: tuple[str, ...] = tuple(EVALUATION_TASKS)
    policies: tuple[str, ...] | None = None
    lengths: tuple[int, ...] = (1024,)
    seeds: int = 3
    seed: int = 0
    sequences: int = 2
    budget: tuple[float, ...] = (0.05, 0.10, 0.15, 0.25)
    min_accuracy: float = 0.9
    stepwise: tuple[str, ...] = ("default",)
    free_running: bool = False
    drift: int = 0
    workers: int = 0
    device: str = "cpu"
    dtype: str = "auto"

    @property
    def folder(self) -> Path:
        """Of the model."""
        if self.model is not None:
            return self.model
        if (_REPOSITORY_MODEL / "config.json").exists():
            return _REPOSITORY_MODEL
        raise RefusedError(
            "eval: --model must name the folder of a model, got none outside a checkout"
        )

    @property
    def family_names(self) -> tuple[str, ...]:
        """The families that are simulated."""
        names = tuple(families()) if self.policies is None else self.policies
        return _families("--policies", names)

    @property
    def operator_names(self) -> tuple[str, ...]:
        """The families that the operator runs, and "default"."""
        special = [name for name in self.stepwise if name in ("none", "default")]
        others = [name for name in self.stepwise if name not in special]
        return (*special, *_families("--stepwise", others))

    @property
    def num_workers(self) -> int:
        """Processes: as many as there are cores, one on a GPU, unless told otherwise."""
        return self.workers or (num_cores() if torch.device(self.device).type == "cpu" else 1)

    def check(self) -> Any:
        """Refuse what cannot be done, in one sentence.

        Returns:
            The model without its weights.

        Raises:
            RefusedError: see there.
        """
        for task in self.tasks:
            known = f"of {', '.join(EVALUATION_TASKS)}"
            _require("--tasks", task, known, task in EVALUATION_TASKS)
        for name, values in (
            ("--tasks", self.tasks),
            ("--policies", self.family_names),
            ("--stepwise", self.operator_names),
            ("--lengths", self.lengths),
        ):
            _require(name, values, "each named once", len(set(values)) == len(values))
        self._check_stepwise()
        for name, value, least in (
            *(("--lengths", length, MIN_LENGTH) for length in self.lengths),
            ("--seeds", self.seeds, 1),
            ("--seed", self.seed, 0),
            ("--sequences", self.sequences, 1),
            ("--drift", self.drift, 0),
            ("--workers", self.workers, 0),
        ):
            _require(name, value, f"at least {least}", value >= least)
        within = all(0 < share <= 1 for share in self.budget)
        _require("--budget", self.budget, "shares above 0 and up to 1", within)
        _require("--min-accuracy", self.min_accuracy, "0 to 1", 0 <= self.min_accuracy <= 1)
        _require("--dtype", self.dtype, f"one of {', '.join(DTYPES)}", self.dtype in DTYPES)
        _check_device(self.device)
        return self._check_model()

    def _check_stepwise(self) -> None:
        if "none" in self.stepwise:
            _require(
                "--stepwise", self.stepwise, "none alone, or settings", self.stepwise[1:] == ()
            )
            idle = "--free-running" if self.free_running else "--drift" if self.drift else None
            if idle is not None:
                raise RefusedError(f"eval: {idle} runs the settings of --stepwise, got none")
            return
        for name in self.operator_names:
            runs = bool(operator_settings([name]))
            _require("--stepwise", name, "settings that the operator can run", runs)

    def _check_model(self) -> Any:
        folder = self.folder
        has_config = (folder / "config.json").exists()
        _require("--model", folder, "a folder with config.json and weights", has_config)
        try:
            config = AutoConfig.from_pretrained(folder, **LOCAL_ONLY)
        except ValueError as error:
            raise RefusedError(
                "eval: --model must be of a type that transformers knows without code from the "
                f"folder, got {folder}"
            ) from error
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
            check_attention(model, "eval")
            check_vocabulary("eval: --model", folder)
        except ValueError as error:
            sentence = str(error).partition("\n")[0]
            raise RefusedError(
                sentence if sentence.startswith("eval") else f"eval: {sentence}"
            ) from error
        has_weights = any(folder.glob("*.safetensors"))
        _require("--model", folder, "a folder with weights as safetensors", has_weights)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if positions is not None:
            most = f"at most the {positions} positions of the model"
            for length in self.lengths:
                _require("--lengths", length, most, length <= positions)
            room = max(0, positions - DRIFT_PROMPT)
            most = f"at most {room} steps, after {DRIFT_PROMPT} tokens in {positions} positions"
            _require("--drift", self.drift, most, self.drift <= room)
        return model


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _require(name: str, value: object, requirement: str, holds: bool) -> None:
    if not holds:
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        raise RefusedError(f"eval: {name} must be {requirement}, got {shown}")


def _families(option: str, names: Sequence[str]) -> tuple[str, ...]:
    """Families by their names in any case, or else all those of a file by its name."""
    known = families()
    found: list[str] = []
    for name in names:
        hits = [family for family in known if family.casefold() == name.casefold()]
        hits = hits or [f for f, members in known.items() if file_of(members[0]) == name]
        _require(option, name, f"of {'; '.join(known)}", bool(hits))
        found += hits
    return tuple(found)


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise RefusedError(f"eval: --device must be usable here, got {name} ({reason})") from error
