"""What a finished evaluation holds, as the report asks for it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

Cell = dict[str, Any]
Axis = Literal["v_fraction", "kv_fraction"]
Kind = Literal["ours", "reads every key", "estimates scores", "evicts", "oracle"]

KINDS: tuple[Kind, ...] = ("ours", "reads every key", "estimates scores", "evicts", "oracle")
_OUR_SOURCE = "this project"  # how the sources of our policies begin
_DEFAULT_MODULE = "sift"  # whose first family is the default
_CEILING = "exact"
_ROUNDING = 1e-9
_SAME = 0.01  # shares of the keys this close count as equal


@dataclass(frozen=True)
class Condition:
    """A task at a length: what a curve is drawn for.

    Attributes:
        task: name in `eval.tasks.TASKS`.
        length: tokens of a sequence.
    """

    task: str
    length: int

    def __str__(self) -> str:
        return f"{self.task}, {self.length:,} tokens"

    @property
    def file_name(self) -> str:
        """Part of a file name, whatever results.json says."""
        return re.sub(r"[^\w-]", "_", f"{self.task}_{self.length}")


@dataclass(frozen=True)
class Family:
    """A policy with all its settings.

    Attributes:
        name: key in `policies.families()`.
        kind: ours; or, from the bytes that its cells count, whether it reads every key, estimates
            scores from less than the keys, or keeps key and value rows of the same tokens only.
        source: paper, or the like.
        module: file of the policy, without its ending.
    """

    name: str
    kind: Kind
    source: str
    module: str

    @property
    def is_oracle(self) -> bool:
        """Whether no implementation could do the same."""
        return self.kind == "oracle"


@dataclass(frozen=True)
class Results:
    """The contents of results.json.

    Attributes:
        data: see `run.evaluate`. A part of the report is left out where its key is missing.
    """

    data: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a results.json."""
        return cls(json.loads(path.read_text()))

    @cached_property
    def families(self) -> dict[str, Family]:
        """Families with simulated cells, without the ceiling, in their order; by name."""
        found = list(dict.fromkeys(cell["family"] for cell in self.cells()))
        facts = self.data.get("families", {})
        names = [name for name in facts if name in found]
        names += [name for name in found if name not in facts]
        return {
            name: Family(
                name,
                self._kind(name, facts.get(name, {})),
                facts.get(name, {}).get("source", ""),
                facts.get(name, {}).get("module", ""),
            )
            for name in names
            if name != _CEILING
        }

    @cached_property
    def hero(self) -> str | None:
        """The family of the package's default; None if it was not measured."""
        families = self.families.values()
        return next((f.name for f in families if f.module == _DEFAULT_MODULE), None)

    @property
    def quantiles(self) -> dict[Condition, list[dict[str, Any]]]:
        """Rows of `quantiles.predicted_quantiles` by task and length, shortest first."""
        found: dict[Condition, list[dict[str, Any]]] = {}
        for cell in self.cells(protocol="quantiles"):
            found.setdefault(Condition(cell["task"], cell["length"]), []).extend(cell["rows"])
        return {c: found[c] for c in sorted(found, key=lambda c: c.length)}

    @property
    def environment(self) -> dict[str, Any]:
        """Model, machine and options."""
        found: dict[str, Any] = self.data.get("environment", {})
        return found

    @cached_property
    def conditions(self) -> list[Condition]:
        """Tasks and lengths with simulated cells, by length, tasks in the order of the run."""
        found = dict.fromkeys(Condition(cell["task"], cell["length"]) for cell in self.cells())
        tasks = list(dict.fromkeys(condition.task for condition in found))
        return sorted(found, key=lambda c: (c.length, tasks.index(c.task)))

    def cells(
        self,
        condition: Condition | None = None,
        family: str | None = None,
        protocol: str = "simulated",
    ) -> list[Cell]:
        """The cells of a protocol, all or those of a condition and a family."""
        return self._index.get((protocol, condition, family), [])

    @cached_property
    def _index(self) -> dict[tuple[str, Condition | None, str | None], list[Cell]]:
        index: dict[tuple[str, Condition | None, str | None], list[Cell]] = {}
        for cell in self.data.get("cells", []):
            condition = Condition(cell["task"], cell["length"])
            for key in product((cell["protocol"],), (None, condition), (None, cell["family"])):
                index.setdefault(key, []).append(cell)
        return index

    def settings(
        self, condition: Condition, family: str, protocol: str = "simulated"
    ) -> dict[str, list[Cell]]:
        """Cells of a family by policy, one per seed, most value rows first."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells(condition, family, protocol):
            found.setdefault(cell["policy"], []).append(cell)
        return dict(sorted(found.items(), key=lambda item: -mean(item[1], "v_fraction")))

    def nearest_within(
        self, condition: Condition, family: str, v_fraction: float
    ) -> tuple[str, list[Cell]] | None:
        """The policy of a family that reads most, but no more than a share of the value rows."""
        within = (
            item
            for item in self.settings(condition, family).items()
            if mean(item[1], "v_fraction") <= v_fraction + _ROUNDING
        )
        return next(within, None)

    def _kind(self, name: str, facts: dict[str, Any]) -> Kind:
        if facts.get("is_oracle"):
            return "oracle"
        if facts.get("source", "").startswith(_OUR_SOURCE):
            return "ours"
        cells = self.cells(family=name)
        v = [number(cell, "v_fraction") for cell in cells]
        k = [2 * number(cell, "kv_fraction") - v for cell, v in zip(cells, v, strict=True)]
        if all(share > 1 - _SAME for share in k):
            return "reads every key"
        same = all(abs(one - other) < _SAME for one, other in zip(k, v, strict=True))
        return "evicts" if same else "estimates scores"


def number(cell: Cell, *keys: str) -> float:
    """A number of a cell; NaN where it is null or missing."""
    value: Any = cell
    for key in keys:
        value = None if value is None else value.get(key)
    return math.nan if value is None else float(value)


def mean(cells: Sequence[Cell], *keys: str) -> float:
    """Mean over cells of a number in each; NaN without cells."""
    values = [number(cell, *keys) for cell in cells]
    return sum(values) / len(values) if values else math.nan
