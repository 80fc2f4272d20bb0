"""Plots of quality against bytes, for all families."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .curves import SMALLEST_KL
from .panels import direct_labels, grid, percent_axis
from .results import KINDS, Axis, Cell, Condition, Results, mean, number
from .styles import HERO_COLOUR, KIND_COLOURS, Style, styles
from .tables import WHAT, accuracy_change, asked, condition_names, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Spread:
    """A policy's place in a plot: mean over seeds, and the range."""

    share: float
    mean: float
    low: float
    high: float


def _kl(cells: Sequence[Cell], axis: Axis) -> _Spread | None:
    values = [max(number(cell, "kl"), SMALLEST_KL) for cell in cells]
    if any(map(math.isnan, values)):
        return None
    return _Spread(mean(cells, axis), sum(values) / len(values), min(values), max(values))


def _line(results: Results, condition: Condition, family: str, axis: Axis) -> list[_Spread]:
    """The settings of a family, fewest rows first."""
    settings = results.settings(condition, family).values()
    found = (_kl(cells, axis) for cells in settings)
    return sorted((spread for spread in found if spread), key=lambda spread: spread.share)


def plot_condition(results: Results, condition: Condition, axis: Axis) -> Figure:
    """A panel for each kind of policy, the default and the oracles in all of them."""
    looks, hero = styles(results), results.hero
    everywhere = [f.name for f in results.families.values() if f.is_oracle]
    everywhere += [hero] if hero else []
    panels = {
        kind: [f.name for f in results.families.values() if f.kind == kind and f.name != hero]
        for kind in KINDS
        if kind != "oracle"
    }
    panels = {kind: names for kind, names in panels.items() if names} or {"ours": []}
    figure, axes = grid(len(panels), width=6.2, height=4.3, columns=2)
    for panel, (kind, names) in zip(axes, panels.items(), strict=True):
        ends = []
        for name in [*everywhere, *names]:
            points = _line(results, condition, name, axis)
            if not points:
                continue
            _draw(panel, points, looks[name], name)
            if name in names:
                ends.append((points[-1].share, points[-1].mean, name, looks[name].colour))
        panel.set_title(kind, loc="left", fontweight="bold", color="#333333")
        _decorate(panel, axis)
        direct_labels(panel, ends)
    handles, labels = axes[0].get_legend_handles_labels()
    chosen = {text: h for h, text in zip(handles, labels, strict=True) if text in everywhere}
    figure.legend(
        [chosen[name] for name in reversed(everywhere) if name in chosen],
        [title(results, results.families[n]) for n in reversed(everywhere) if n in chosen],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    figure.suptitle(f"{condition}: distance to exact attention, by {WHAT[axis]} rows read")
    return figure


def _draw(panel: Axes, points: Sequence[_Spread], look: Style, name: str) -> None:
    x = [point.share for point in points]
    panel.plot(
        x,
        [point.mean for point in points],
        dashes=look.dashes or (None, None),
        marker=look.marker or None,
        markersize=5,
        color=look.colour,
        linewidth=look.width,
        zorder=look.above,
        label=name,
    )
    low, high = [point.low for point in points], [point.high for point in points]
    panel.fill_between(x, low, high, color=look.colour, alpha=0.12, linewidth=0, zorder=1)


def _decorate(panel: Axes, axis: Axis) -> None:
    from matplotlib.ticker import NullLocator

    panel.set_yscale("log")
    panel.yaxis.set_minor_locator(NullLocator())  # over so many decades they only take time
    # Policies that read every key lie between half and all of K + V: no place for a log scale.
    percent_axis(panel, log=axis == "v_fraction")
    panel.set_xlabel(f"{WHAT[axis]} rows read")
    panel.set_ylabel("KL, nats per scored token")
    panel.grid(alpha=0.25, linewidth=0.6)


def plot_overview(results: Results, axis: Axis) -> Figure:
    """All tasks: the default against the kinds of rivals."""
    names = condition_names(results)
    figure, axes = grid(len(results.conditions), width=3.6, height=3.0, columns=3)
    for panel, condition in zip(axes, results.conditions, strict=True):
        for family in results.families.values():
            points = _line(results, condition, family.name, axis)
            x, y = [p.share for p in points], [p.mean for p in points]
            _draw_by_kind(panel, x, y, family.name, results)
        panel.set_title(names[condition], fontsize=11)
        _decorate(panel, axis)
    _share_labels(axes, columns=3)
    _kind_legend(figure, results)
    figure.suptitle(f"Distance to exact attention, by {WHAT[axis]} rows read")
    return figure


def plot_recall(results: Results) -> Figure:
    """Accuracy minus exact against V rows, on all tasks with answers."""
    names, conditions = condition_names(results), asked(results)
    figure, axes = grid(len(conditions), width=3.6, height=2.8, columns=3)
    for panel, condition in zip(axes, conditions, strict=True):
        for family in results.families.values():
            points = sorted(
                (mean(cells, "v_fraction"), 100 * sum(accuracy_change(cells)) / len(cells))
                for cells in results.settings(condition, family.name).values()
            )
            x, y = [share for share, _ in points], [change for _, change in points]
            _draw_by_kind(panel, x, y, family.name, results)
        panel.set_title(names[condition], fontsize=11)
        panel.set_yscale("symlog", linthresh=1)
        panel.set_yticks([-100, -10, -1, 0, 1], ["-100", "-10", "-1", "0", "1"])
        panel.set_ylim(-130, 2)
        percent_axis(panel, log=True)
        panel.set_xlabel("V rows read")
        panel.set_ylabel("percentage points")
        panel.grid(alpha=0.25, linewidth=0.6)
    _share_labels(axes, columns=3)
    _kind_legend(figure, results)
    figure.suptitle("Right answers minus those of exact attention")
    return figure


def _draw_by_kind(
    panel: Axes, x: Sequence[float], y: Sequence[float], name: str, results: Results
) -> None:
    """A strong line for the default; the others are told apart by kind only."""
    kind = results.families[name].kind
    if name == results.hero:
        panel.plot(x, y, "o-", color=HERO_COLOUR, linewidth=2.6, markersize=4, zorder=5)
    elif kind == "oracle":
        panel.plot(x, y, "--", color=KIND_COLOURS[kind], linewidth=1.1, zorder=4)
    else:
        panel.plot(x, y, "-", color=KIND_COLOURS[kind], linewidth=1.0, alpha=0.75, zorder=3)


def _share_labels(axes: Sequence[Axes], columns: int) -> None:
    """Labels of axes only where no panel lies between them and the edge."""
    for i, panel in enumerate(axes):
        if i % columns:
            panel.set_ylabel("")
        if i + columns < len(axes):
            panel.set_xlabel("")


def _kind_legend(figure: Figure, results: Results) -> None:
    from matplotlib.lines import Line2D

    handles = []
    if results.hero:
        handles.append(
            Line2D(
                [],
                [],
                color=HERO_COLOUR,
                linewidth=2.6,
                marker="o",
                label=f"{results.hero} (default)",
            )
        )
    for kind in KINDS:
        families = [f for f in results.families.values() if f.kind == kind]
        if any(family.name != results.hero for family in families):
            label = {"ours": "ours, other settings", "oracle": "oracles"}.get(kind, kind)
            handles.append(Line2D([], [], color=KIND_COLOURS[kind], label=label))
            if kind == "oracle":
                handles[-1].set_linestyle("--")
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
