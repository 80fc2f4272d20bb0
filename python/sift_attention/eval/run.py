"""Runs an evaluation: what is missing is measured, what there is becomes results and a report."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .cells import (
    DRIFT_PROMPT,
    Cell,
    Group,
    Result,
    Store,
    exact_cells,
    file_of,
    jobs,
    operator_settings,
    settings,
    write_json,
)
from .environment import describe_machine, describe_model
from .guard import refusal
from .options import Options, RefusedError
from .policies import Policy, families
from .policies.exact import Exact
from .report import write_report
from .worker import ModelSpec
from .workers import Workers

_NOT_RECORDED = {"out", "model", "workers", "device", "dtype"}  # or elsewhere


def evaluate(options: Options, progress: bool = True) -> Result:
    """Run an evaluation, or what is left of it.

    Exact attention goes first. A task at which the exact model fails is refused: none of its other
    cells is measured. Results and report are written at the end, and also when the run is
    interrupted or a worker fails; what is finished is never measured again.

    Args:
        options: what to evaluate, and the folder `out` for cells/, results.json and the report.
        progress: show a bar over the cells.

    Returns:
        dict: the contents of results.json.

    Raises:
        RefusedError: what was asked for cannot be done.
        WorkerError: a worker process raised or ended.

    Example:
        >>> results = evaluate(Options(Path("out"), tasks=("text",)))  # doctest: +SKIP
    """
    started_s = time.perf_counter()
    model = describe_model(options.folder, options.check())
    _claim(options.out, model)
    failure = options.out / "failure.txt"
    failure.unlink(missing_ok=True)
    store = Store(options.out, f"{model['weights']} {options.dtype} {options.device}")
    plan = _Plan(options, store)
    try:
        _measure(options, plan, store, failure, progress)
    finally:
        for partial in (options.out / "cells").glob(".*"):  # of a worker that was stopped
            partial.unlink()
        results = _results(options, plan, store, model)
        wall_s = _spent_s(options.out) + time.perf_counter() - started_s
        results["environment"]["wall_s"] = round(wall_s, 3)
        write_json(options.out / "results.json", results)
        write_report(options.out)
    return results


class _Plan:
    """The cells of an evaluation, and what the exact model's results make of them."""

    def __init__(self, options: Options, store: Store) -> None:
        self._options = options
        self._store = store
        self._known: dict[Cell, Result] = {}  # of the exact cells
        seeds = range(options.seed, options.seed + options.seeds)
        self.first = exact_cells(options.tasks, options.lengths, seeds, options.sequences)
        simulated = settings(options.family_names)
        operated = operator_settings(options.operator_names)
        self._others = [
            cell
            for exact in self.first
            for cell in self._of_group(exact.group, simulated, operated)
        ]
        if options.drift:
            length = DRIFT_PROMPT + options.drift
            groups = [Group("text", length, s, options.sequences, DRIFT_PROMPT) for s in seeds]
            self._others += [Cell(g, f, p, "drift") for g in groups for f, p in operated]

    def _of_group(
        self,
        group: Group,
        simulated: Sequence[tuple[str, Policy]],
        operated: Sequence[tuple[str, Policy]],
    ) -> list[Cell]:
        cells = [Cell(group, family, policy) for family, policy in simulated]
        cells += [Cell(group, family, policy, "stepwise") for family, policy in operated]
        if self._options.free_running:
            cells += [Cell(group, family, policy, "free-running") for family, policy in operated]
        if group.seed == self._options.seed:
            cells.append(Cell(replace(group, sequences=1), "exact", Exact(), "quantiles"))
        return cells

    def refused(self) -> dict[tuple[str, int], str]:
        """Why a task is refused at a length, of those whose exact cells are finished."""
        reasons = {}
        for key, results in self._exact().items():
            if results is not None:
                reason = refusal(*_pooled(results), min_accuracy=self._options.min_accuracy)
                if reason is not None:
                    reasons[key] = reason
        return reasons

    def others(self) -> list[Cell]:
        """The cells beside the exact ones, without those of refused tasks."""
        refused = self.refused()
        return [c for c in self._others if (c.group.task, c.group.length) not in refused]

    def reported(self) -> list[Cell]:
        """Cells of tasks at which the exact model is known to succeed, finished or not."""
        known = {key for key, results in self._exact().items() if results is not None}
        known -= self.refused().keys()
        cells = [*self.first, *self._others]
        return [
            c for c in cells if c.protocol == "drift" or (c.group.task, c.group.length) in known
        ]

    def _exact(self) -> dict[tuple[str, int], list[Result] | None]:
        """The results of the exact cells by task and length; None where one is missing."""
        found: dict[tuple[str, int], list[Result] | None] = {}
        for cell in self.first:
            key = (cell.group.task, cell.group.length)
            result = self._known.get(cell) or self._store.load(cell)
            if result is not None:
                self._known[cell] = result
            so_far = found.setdefault(key, [])
            found[key] = None if result is None or so_far is None else [*so_far, result]
        return found


def _pooled(results: list[Result]) -> tuple[float, float, float]:
    """Accuracy, bits per token and order-0 entropy of the exact model over all seeds."""

    def mean(values: list[Any], weights: list[int]) -> float:
        if None in values or not sum(weights):
            return math.nan
        return float(np.average(values, weights=weights))

    tokens = [r["num_tokens"] for r in results]
    answered = [r for r in results if r["num_answers"]]
    accuracy = mean(
        [r["exact"]["accuracy"] for r in answered], [r["num_answers"] for r in answered]
    )
    bits = mean([r["exact"]["bits_per_token"] for r in results], tokens)
    return accuracy, bits, mean([r["order0_bits"] for r in results], tokens)


def _measure(options: Options, plan: _Plan, store: Store, failure: Path, progress: bool) -> None:
    """Measure the cells that are missing: the exact ones, then those of the tasks that remain."""

    def missing(cells: list[Cell]) -> list[Cell]:
        return [cell for cell in cells if not store.has(cell)]

    first, others = missing(plan.first), missing(plan.others())
    if not first and not others:
        return
    count = min(options.num_workers, len(list(jobs([*first, *others]))))
    spec = ModelSpec(options.folder, options.dtype, options.device)
    total = len(plan.first) + len(plan.others())
    done = total - len(first) - len(others)
    with (
        Workers(count, spec, failure) as workers,
        tqdm(
            total=total,
            initial=done,
            desc="cells",
            unit="cell",
            smoothing=0.05,
            disable=not progress,
        ) as bar,
    ):

        def run(cells: list[Cell]) -> None:
            located = [[(cell, store.path(cell)) for cell in job] for job in jobs(cells)]
            workers.run(located, lambda: bar.update() and None, bar.refresh)

        run(first)
        bar.total = len(plan.first) + len(plan.others())
        run(missing(plan.others()))


def _results(options: Options, plan: _Plan, store: Store, model: Result) -> Result:
    """What there is, in the form of results.json."""
    asked = {name: v for name, v in vars(options).items() if name not in _NOT_RECORDED}
    asked["policies"] = options.family_names
    loaded = [store.load(cell) for cell in plan.reported()]
    return {
        "environment": {
            **model,
            **describe_machine(),
            "device": options.device,
            "dtype": options.dtype,
            "options": asked,
        },
        "families": {
            name: {
                "module": file_of(members[0]),
                "is_oracle": members[0].is_oracle,
                "source": members[0].source,
            }
            for name, members in families().items()
        },
        "refused": [
            {"task": task, "length": length, "reason": reason}
            for (task, length), reason in plan.refused().items()
        ],
        "missing": sum(not store.has(cell) for cell in [*plan.first, *plan.others()]),
        "cells": [result for result in loaded if result is not None],
    }


def _spent_s(out: Path) -> float:
    """Seconds that earlier runs into the same folder took."""
    results = out / "results.json"
    if not results.exists():
        return 0.0
    return float(json.loads(results.read_text())["environment"]["wall_s"])


def _claim(out: Path, model: Result) -> None:
    """Refuse a folder that is none, or that holds results of another model."""
    if out.exists() and not out.is_dir():
        raise RefusedError(f"eval: --out must be a folder, got the file {out}")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.json"
    if path.exists():
        held = json.loads(path.read_text())
        if held["weights"] != model["weights"]:
            raise RefusedError(
                f"eval: --out must be new or hold results of the same model, got {out} with "
                f"results of {held['model']} (weights {held['weights']})"
            )
    write_json(path, model)
