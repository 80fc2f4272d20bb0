"""Which parts a report has, in which order, and the files it becomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from . import details
from .findings import choice, findings, ranking, standing
from .page import Block, Heading, Table, Text, markdown, page
from .plots import NO_PLOTS, Plots, can_draw
from .results import Axis, Results
from .tables import RECALL_V_SHARE, equal_bytes, recall, scoreboard
from .texts import counted, limit

BUDGETS = (0.05, 0.10, 0.15, 0.25)
AXES: tuple[Axis, ...] = ("v_fraction", "kv_fraction")
_DETAIL_V_SHARE = 0.10  # of the V rows: at which layers are looked at


def write_report(folder: Path, budgets: Sequence[float] | None = None) -> Path:
    """Write report.md, report.html and plots/*.png beside a results.json.

    Args:
        folder: holds results.json; unfinished results make a shorter report.
        budgets: shares of the V rows at which policies are compared, and of K + V those of a
            policy that reads every key and that share of V; defaults to those of the evaluation.

    Returns:
        Path: report.html, which holds its plots. Without matplotlib it says so in their place.
    """
    results = Results.load(folder / "results.json")
    plots = Plots(results, folder) if can_draw() else None
    budgets = budgets or results.environment.get("options", {}).get("budget") or BUDGETS
    blocks = list(_report(results, plots, sorted(budgets)))
    (folder / "report.md").write_text(markdown(blocks))
    path = folder / "report.html"
    path.write_text(page(blocks, folder))
    return path


def _report(results: Results, plots: Plots | None, budgets: Sequence[float]) -> Iterator[Block]:
    yield Heading(f"What sifting costs: {results.environment.get('model', 'a model')}", 1)
    yield from _circumstances(results)
    if plots is None:
        yield Text(NO_PLOTS)
    if not results.families:
        yield Text("No policy has been measured yet.")
        yield from _shown(details.refused(results))
        return
    if results.hero is not None:
        yield Heading("Findings")
        yield from map(Text, findings(results, budgets))
        yield standing(results, budgets)
    middle = budgets[min(1, len(budgets) - 1)]
    for axis in AXES:
        yield Heading(f"All tasks, at equal {'V' if axis == 'v_fraction' else 'K + V'} bytes")
        yield from plots.overview(axis) if plots else ()
        yield from _shown(ranking(results, axis, budgets))
        yield scoreboard(results, axis, middle)
    yield from _aspects(results, plots)
    for condition in results.conditions:
        yield Heading(str(condition))
        for axis in AXES:
            yield from plots.condition(condition, axis) if plots else ()
            yield equal_bytes(results, condition, axis, budgets)
    yield Heading("Policies")
    yield details.sources(results)


def _aspects(results: Results, plots: Plots | None) -> Iterator[Block]:
    """The sections on one aspect each, without those that nothing was measured for."""
    hero = results.hero
    yield from _section("Recall", plots.recall() if plots else (), recall(results))
    if hero is not None:
        yield from _section("What to choose", (), choice(results, hero))
        yield details.settings(results, hero)
        yield from _section(
            "Layers",
            plots.layers(hero, _DETAIL_V_SHARE) if plots else (),
            details.layers(results, hero, _DETAIL_V_SHARE),
        )
        yield from _section(
            "Depth of the answer",
            plots.depths() if plots else (),
            details.depths(results, hero, RECALL_V_SHARE),
        )
        yield from _section("Drift", plots.steps(hero) if plots else (), details.drift(results))
    yield from _section(
        "Predicted and true quantiles",
        plots.quantiles() if plots else (),
        details.quantile_errors(results),
    )
    yield from _section("Simulated and stepwise", (), details.stepwise(results))
    yield from _section("Free-running", (), details.free_running(results))
    yield from _section("Refused", (), details.refused(results))


def _section(heading: str, images: Sequence[Block], table: Table | None) -> Iterator[Block]:
    if images or table:
        yield Heading(heading)
        yield from images
        yield from _shown(table)


def _shown(table: Table | None) -> Iterator[Block]:
    if table is not None:
        yield table


def _circumstances(results: Results) -> Iterator[Block]:
    """Model, settings and machine."""
    yield Text(
        f"{limit(results)} Teacher-forced decode: the first half of every sequence is a dense "
        "prompt, the second half is decoded by the policy, in all layers and from the first step "
        "on, so that errors travel. Scored are all tokens of text, and the answers of other tasks."
    )
    facts = {**results.environment, **results.environment.get("options", {})}
    shown = "; ".join(
        f"{key} {_fact(value)}" for key, value in facts.items() if not isinstance(value, dict)
    )
    if shown:
        yield Text(shown)
    if results.data.get("missing"):
        yield Text(f"**Unfinished**: {counted(results.data['missing'], 'cell')} left to measure.")


def _fact(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if type(value) is int else str(value)
