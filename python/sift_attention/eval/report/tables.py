"""Tables that compare all families: at equal bytes, and in recall."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .curves import AtBudget, at_budget, best_and_tied, kv_share
from .page import Table
from .results import KINDS, Axis, Cell, Condition, Family, Results, mean, number
from .texts import KL_UNIT, limit, marked, percent, points, reached

RECALL_V_SHARE = 0.15  # of the V rows: the budget that recall is judged at
WHAT: dict[Axis, str] = {"v_fraction": "V", "kv_fraction": "K + V"}

_MARKS = (
    "Bold: the best that needs no oracle; italic: tied with it, within the spread of their ratio "
    "over the seeds. Needs: its cheapest setting reads more, so much on some seed. At: its dearest "
    "setting reads less."
)


def ordered(results: Results) -> list[Family]:
    """The default first, then the rest of ours; oracles last."""
    return sorted(
        results.families.values(),
        key=lambda family: (family.name != results.hero, KINDS.index(family.kind)),
    )


def title(results: Results, family: Family) -> str:
    """The family's name in a table."""
    if family.name == results.hero:
        return f"{family.name} (default)"
    is_marked = family.is_oracle and "oracle" not in family.name
    return f"{family.name} (oracle)" if is_marked else family.name


def share_of(axis: Axis, budget: float) -> float:
    """Share of the axis' bytes that reading every key and a share `budget` of V takes."""
    return budget if axis == "v_fraction" else kv_share(budget)


def equal_bytes(
    results: Results, condition: Condition, axis: Axis, budgets: Sequence[float]
) -> Table:
    """KL of every family at some shares of the bytes.

    Args:
        results: the evaluation.
        condition: task and length.
        axis: which bytes are equal.
        budgets: shares of the V rows; with K + V, see `share_of`.
    """
    shares = [share_of(axis, budget) for budget in budgets]
    columns = [measured(results, condition, axis, share) for share in shares]
    return Table(
        [str(condition), *(f"{_short(share)} of {WHAT[axis]}" for share in shares)],
        _rows(results, columns),
        f"{KL_UNIT}, at equal {WHAT[axis]} bytes. {_MARKS} {limit(results)}",
    )


def scoreboard(results: Results, axis: Axis, budget: float) -> Table:
    """KL of every family on every task at one budget, see `equal_bytes`."""
    share = share_of(axis, budget)
    columns = [measured(results, condition, axis, share) for condition in results.conditions]
    names = condition_names(results)
    return Table(
        [f"at {_short(share)} of {WHAT[axis]}", *(names[c] for c in results.conditions)],
        _rows(results, columns),
        f"{KL_UNIT}, at equal {WHAT[axis]} bytes. {_MARKS} {limit(results)}",
    )


def condition_names(results: Results) -> dict[Condition, str]:
    """Names of tasks, with the length where there are several."""
    same = len({condition.length for condition in results.conditions}) == 1
    return {c: c.task if same else f"{c.task} at {c.length:,}" for c in results.conditions}


def measured(
    results: Results, condition: Condition, axis: Axis, share: float
) -> dict[str, AtBudget]:
    """What the families reach at a share of the bytes; by name, without those not measured."""
    found = {name: at_budget(results, condition, name, axis, share) for name in results.families}
    return {name: at for name, at in found.items() if at is not None}


def contenders(results: Results, column: dict[str, AtBudget]) -> dict[str, AtBudget]:
    """Those that need no oracle."""
    return {name: at for name, at in column.items() if not results.families[name].is_oracle}


def _rows(results: Results, columns: Sequence[dict[str, AtBudget]]) -> list[list[str]]:
    winners = [best_and_tied(contenders(results, column)) for column in columns]
    return [
        [
            title(results, family),
            *(
                marked(reached(column.get(family.name)), family.name, *winner)
                for column, winner in zip(columns, winners, strict=True)
            ),
        ]
        for family in ordered(results)
    ]


def _short(share: float) -> str:
    """A share in percent, without a decimal that says nothing."""
    return f"{round(100 * share, 1):g}%"


def accuracy_change(cells: Sequence[Cell]) -> list[float]:
    """Accuracy minus that of the exact model, of each cell; NaN without answers."""
    return [number(cell, "accuracy") - number(cell, "exact", "accuracy") for cell in cells]


def asked(results: Results) -> list[Condition]:
    """The conditions with answers."""
    return [c for c in results.conditions if not math.isnan(exact_accuracy(results, c))]


def exact_accuracy(results: Results, condition: Condition) -> float:
    """Share of right answers of exact attention; NaN without answers."""
    return mean(results.cells(condition), "exact", "accuracy")


def recall(results: Results) -> Table | None:
    """Accuracy minus exact of every family within RECALL_V_SHARE; None without answers."""
    conditions = asked(results)
    if not conditions:
        return None
    names = condition_names(results)
    exact = [percent(exact_accuracy(results, condition), 1) for condition in conditions]
    rows = [["exact accuracy", *exact]]
    rows += [
        [title(results, family), *(_recall(results, c, family.name) for c in conditions)]
        for family in ordered(results)
    ]
    return Table(
        [f"at most {RECALL_V_SHARE:.0%} of V", *(names[c] for c in conditions)],
        rows,
        "Share of right answers minus that of exact attention in percentage points, mean ± "
        "standard deviation over seeds, and the V rows read, of the setting that reads most "
        f"within the limit. {limit(results)}",
    )


def _recall(results: Results, condition: Condition, family: str) -> str:
    setting = results.nearest_within(condition, family, RECALL_V_SHARE)
    if setting is not None:
        read = percent(mean(setting[1], "v_fraction"))
        return f"{points(accuracy_change(setting[1]))} at {read}"
    cheapest = list(results.settings(condition, family).values())[-1:]
    return f"needs {percent(mean(cheapest[0], 'v_fraction'))}" if cheapest else ""
