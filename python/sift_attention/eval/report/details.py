"""Tables on single families and on the method: settings, layers, depths, steps, checks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from .page import Table
from .results import Cell, Condition, Results, mean, number
from .tables import accuracy_change, condition_names, ordered
from .texts import limit, milli, percent, points, setting_labels, times


def settings(results: Results, family: str) -> Table:
    """What every setting of a family reads and loses on every task."""
    names = condition_names(results)
    policies = [p for c in results.conditions for p in results.settings(c, family)]
    labels = setting_labels(list(dict.fromkeys(policies)))
    rows = [
        [
            f"{names[condition]}, {labels[policy]}",
            percent(mean(cells, "v_fraction"), 1),
            percent(mean(cells, "kv_fraction"), 1),
            milli(mean(cells, "kl")),
            percent(mean(cells, "agreement"), 1),
            points(accuracy_change(cells)),
            percent(mean(cells, "dropped_mass"), 1),
            percent(mean(cells, "sifted_share")),
        ]
        for condition in results.conditions
        for policy, cells in results.settings(condition, family).items()
    ]
    return Table(
        [family, "V", "K + V", "KL", "same token", "accuracy", "dropped mass", "sifted"],
        rows,
        "V, K + V: rows read over those of exact attention. KL: thousandths of a nat per scored "
        "token. Same token: both models rank it first. Accuracy: minus exact, percentage points. "
        "Dropped mass: probability on V rows that were not read. Sifted: steps, layers and heads "
        f"in which a row was left out. Means over seeds. {limit(results)}",
    )


def layers(results: Results, family: str, v_share: float) -> Table | None:
    """Kept V rows and dropped mass of every layer; None if the family never stays within."""
    names = condition_names(results)
    found = {
        names[condition]: by_layer(setting[1])
        for condition in results.conditions
        if (setting := results.nearest_within(condition, family, v_share))
    }
    numbers = sorted({layer for read in found.values() for layer in read})
    if not numbers:
        return None
    return Table(
        [family, *(f"layer {layer}" for layer in numbers)],
        [
            [name, *(_kept_and_dropped(read[n]) if n in read else "" for n in numbers)]
            for name, read in found.items()
        ],
        "V rows read, and in brackets the probability on those that were not, of the setting that "
        f"reads most within {v_share:.0%} of the V rows. Means over seeds. {limit(results)}",
    )


def _kept_and_dropped(layer: tuple[float, float]) -> str:
    return f"{layer[0]:.1%} ({layer[1]:.1%})"


def by_layer(cells: Sequence[Cell]) -> dict[int, tuple[float, float]]:
    """Mean over cells of (v_fraction, dropped_mass), by index of the layer."""
    found: dict[int, list[Cell]] = {}
    for cell in cells:
        for index, layer in enumerate(cell.get("layers") or []):
            found.setdefault(layer.get("layer", index), []).append(layer)
    return {
        index: (mean(layers, "v_fraction"), mean(layers, "dropped_mass"))
        for index, layers in sorted(found.items())
    }


def by_depth(cells: Sequence[Cell], key: str = "accuracy") -> dict[float, float]:
    """Share of right answers over all cells by depth of what they ask for; depths with answers."""
    right: dict[float, float] = {}
    count: dict[float, int] = {}
    for place in (place for cell in cells for place in cell.get("by_depth") or []):
        if place["num_answers"]:
            depth = place["depth"]
            right[depth] = right.get(depth, 0.0) + number(place, key) * place["num_answers"]
            count[depth] = count.get(depth, 0) + place["num_answers"]
    return {depth: right[depth] / count[depth] for depth in sorted(count)}


def depths(results: Results, family: str, v_share: float) -> Table | None:
    """Accuracy of a family by depth of the answer's source, on every task and length."""
    rows = []
    columns = sorted({depth for c in results.conditions for depth in by_depth(results.cells(c))})
    for condition in results.conditions:
        setting = results.nearest_within(condition, family, v_share)
        if setting is None or not (found := by_depth(setting[1])):
            continue
        exact = by_depth(setting[1], "exact_accuracy")
        shown = [f"{found[d]:.1%} ({exact[d]:.1%})" if d in found else "" for d in columns]
        rows.append([f"{condition.task}, {condition.length:,}", *shown])
    if not rows:
        return None
    return Table(
        [family, *(f"{depth:.0%} deep" for depth in columns)],
        rows,
        "Share of right answers (of exact attention) by where in the context the answer stands, "
        f"of the setting that reads most within {v_share:.0%} of the V rows. {limit(results)}",
    )


def stepwise(results: Results) -> Table | None:
    """The simulation against the operator, step by step, on the same tokens."""
    rows = []
    for condition in results.conditions:
        for family in results.families:
            simulated = results.settings(condition, family)
            for policy, real in results.settings(condition, family, "stepwise").items():
                pairs = _pairs(simulated.get(policy, []), real)
                if pairs:
                    rows.append([f"{condition}: {policy}", *_agreement(pairs)])
    if not rows:
        return None
    return Table(
        ["", "KL, simulated", "KL, operator", "V, simulated", "V, operator", "largest gap of V"],
        rows,
        "KL in thousandths of a nat per scored token. Simulated: one forward pass with explicit "
        "probabilities. Operator: one token at a time through the kernel. Means over seeds; the "
        f"gap is the largest of a seed, in percentage points. {limit(results)}",
    )


def _pairs(simulated: Sequence[Cell], real: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    by_seed = {cell["seed"]: cell for cell in simulated}
    return [(by_seed[cell["seed"]], cell) for cell in real if cell["seed"] in by_seed]


def _agreement(pairs: Sequence[tuple[Cell, Cell]]) -> list[str]:
    simulated, real = zip(*pairs, strict=True)
    gaps = [abs(number(a, "v_fraction") - number(b, "v_fraction")) for a, b in pairs]
    return [
        *(milli(mean(cells, "kl")) for cells in (simulated, real)),
        *(percent(mean(cells, "v_fraction"), 2) for cells in (simulated, real)),
        f"{100 * max(gaps):.3f}",
    ]


def drift(results: Results) -> Table | None:
    """KL and V rows along the steps of long decodes."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in results.cells(protocol="drift"):
        groups.setdefault((cell["task"], cell["policy"]), []).append(cell)
    if not groups:
        return None
    steps = sorted({s["step"] for cells in groups.values() for s in by_step(cells)})
    rows = []
    for (task, policy), cells in groups.items():
        at = {stretch["step"]: stretch for stretch in by_step(cells)}
        shown = [
            f"{milli(at[s]['kl'])} at {percent(at[s]['v_fraction'], 1)}" if s in at else ""
            for s in steps
        ]
        rows.append([f"{task}: {policy}", *shown])
    return Table(
        ["", *(f"from step {step:,}" for step in steps)],
        rows,
        "KL in thousandths of a nat per scored token at the V rows read, by stretch of decode "
        f"steps. Means over seeds. {limit(results)}",
    )


def by_step(cells: Sequence[Cell]) -> list[dict[str, float]]:
    """Mean over cells of KL and V fraction of every stretch of steps, first step first."""
    found: dict[int, list[Cell]] = {}
    for stretch in (stretch for cell in cells for stretch in cell.get("by_step") or []):
        found.setdefault(stretch["step"], []).append(stretch)
    return [
        {"step": step, **{key: _known_mean(stretches, key) for key in ("kl", "v_fraction")}}
        for step, stretches in sorted(found.items())
    ]


def _known_mean(cells: Sequence[Cell], key: str) -> float:
    """Mean of what was measured; stretches without a scored token have no KL."""
    known = [value for cell in cells if not math.isnan(value := number(cell, key))]
    return statistics.fmean(known) if known else math.nan


def quantile_errors(results: Results) -> Table | None:
    """How far the fitted power law misses the true quantile, by task and layer."""
    names = condition_names(results)
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for condition, found in results.quantiles.items():
        for row in found:
            name = names.get(condition, str(condition))
            groups.setdefault((name, row["layer"]), []).append(row)
    if not groups:
        return None
    rows = [
        [
            f"{task}, layer {layer}",
            str(len(logs)),
            times(math.exp(statistics.median(logs))),
            percent(statistics.fmean(abs(error) <= math.log(2) for error in logs)),
            f"{r_squared(found):.2f}",
        ]
        for (task, layer), found in groups.items()
        if (logs := log_errors(found))
    ]
    return Table(
        ["", "quantiles", "median of predicted / true", "within a factor of 2", "R²"],
        rows,
        "The power law fitted to the prompt against the quantiles of the decode steps after it, "
        "over heads, sequences and steps. R²: share of the variance of the logs of the true "
        f"quantiles that the predictions explain. {limit(results)}",
    )


def log_errors(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Natural log of predicted over true, where both are positive."""
    return [
        math.log(row["predicted"] / row["true"])
        for row in rows
        if row["predicted"] > 0 and row["true"] > 0
    ]


def r_squared(rows: Sequence[dict[str, Any]]) -> float:
    """1 - sum of squared log errors over that of the logs of the true quantiles to their mean."""
    true = [math.log(row["true"]) for row in rows if row["predicted"] > 0 and row["true"] > 0]
    spread = sum((value - statistics.fmean(true)) ** 2 for value in true) if true else 0.0
    return 1 - sum(error**2 for error in log_errors(rows)) / spread if spread else math.nan


def refused(results: Results) -> Table | None:
    """Tasks at which the exact model fails."""
    rows = [
        [str(Condition(r["task"], r["length"])), r["reason"]]
        for r in results.data.get("refused", [])
    ]
    if not rows:
        return None
    return Table(
        ["refused", "reason"],
        rows,
        "Where exact attention itself fails, a change of it says nothing, so no policy is shown.",
    )


def sources(results: Results) -> Table:
    """Every family, what it reads, and where it comes from."""
    return Table(
        ["policy", "kind", "settings", "source"],
        [
            [
                family.name,
                family.kind,
                str(len({cell["policy"] for cell in results.cells(family=family.name)})),
                family.source,
            ]
            for family in ordered(results)
        ],
        "Estimates scores: reads less than the keys to choose rows. Evicts: keys and values of "
        "the same tokens are kept, the others are gone. Settings: those measured.",
    )


def free_running(results: Results) -> Table | None:
    """Generation without given tokens: where it leaves the exact model's, and what it answers."""
    rows = []
    for condition in results.conditions:
        for family in results.families:
            for policy, cells in results.settings(condition, family, "free-running").items():
                rows.append(
                    [
                        f"{condition}: {policy}",
                        f"{mean(cells, 'first_divergence'):,.0f}",
                        percent(mean(cells, "accuracy"), 1),
                        percent(mean(cells, "exact", "accuracy"), 1),
                        percent(mean(cells, "v_fraction"), 1),
                    ]
                )
    if not rows:
        return None
    return Table(
        ["", "same tokens until step", "accuracy", "exact accuracy", "V"],
        rows,
        "Greedy generation, sifted and exact from the same prompt. Means over seeds. "
        f"{limit(results)}",
    )
