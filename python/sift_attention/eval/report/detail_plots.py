"""Plots of single aspects: layers, steps, depths, and the power law's predictions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .details import by_depth, by_layer, by_step, log_errors
from .panels import grid
from .results import Cell, Condition, Results
from .styles import HERO_COLOUR
from .tables import condition_names, ordered, title
from .texts import setting_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHORT_LABEL = 20  # characters; longer ones stand below each other
_LOST = (-100, -50, -20, -10, -5, -2, -0.5, 100)  # points, between colours of the depth plot
LOWEST_QUANTILE = 1e-7  # drawn; what is less lies on the edge
_DASHES = ("-", "--", ":", "-.")


def plot_layers(results: Results, family: str, v_share: float) -> Figure | None:
    """Kept V rows and dropped mass by layer, a line for each task and length."""
    from matplotlib.ticker import MaxNLocator

    names = condition_names(results)
    figure, axes = grid(2, width=4.6, height=3.4, columns=2, share=False)
    found = False
    looks = _looks(results.conditions)
    for condition in results.conditions:
        setting = results.nearest_within(condition, family, v_share)
        layers = by_layer(setting[1]) if setting else {}
        for part, panel in enumerate(axes):
            values = [100 * layer[part] for layer in layers.values()]
            panel.plot(list(layers), values, marker="o", label=names[condition], **looks[condition])
        found = found or bool(layers)
    if not found:
        return None
    for panel, label in zip(axes, ("V rows read, %", "dropped mass, %"), strict=True):
        panel.set(xlabel="layer", ylabel=label)
        _start_at_zero(panel)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.25)
    _legend_below(figure, axes)
    figure.suptitle(f"{family}, at most {v_share:.0%} of the V rows")
    return figure


def plot_steps(results: Results, family: str, v_share: float) -> Figure | None:
    """KL and V rows along the steps: of the drift cells, else of the family's simulation."""
    lines = _drift_lines(results) or _simulated_lines(results, family, v_share)
    if not lines:
        return None
    figure, axes = grid(2, width=4.6, height=3.4, columns=2, share=False)
    for i, (name, cells) in enumerate(lines.items()):
        stretches = [s for s in by_step(cells) if not math.isnan(s["kl"])]
        steps = [stretch["step"] for stretch in stretches]
        for panel, key, factor in ((axes[0], "kl", 1), (axes[1], "v_fraction", 100)):
            values = [factor * stretch[key] for stretch in stretches]
            colour, dashes = f"C{i % 10}", _DASHES[i // 10 % len(_DASHES)]
            panel.plot(steps, values, marker="o", color=colour, linestyle=dashes, label=name)
    axes[0].set(xlabel="decode step", ylabel="KL, nats per scored token", yscale="log")
    axes[1].set(xlabel="decode step", ylabel="V rows read, %")
    _start_at_zero(axes[1])
    for panel in axes:
        panel.grid(alpha=0.25)
    _legend_below(figure, axes)
    figure.suptitle("Along the decode steps")
    return figure


def _looks(conditions: Sequence[Condition]) -> dict[Condition, dict[str, Any]]:
    """A colour for each task and dashes for each length."""
    tasks = list(dict.fromkeys(condition.task for condition in conditions))
    lengths = sorted({condition.length for condition in conditions})
    return {
        c: {
            "color": f"C{tasks.index(c.task) % 10}",
            "linestyle": _DASHES[lengths.index(c.length) % len(_DASHES)],
        }
        for c in conditions
    }


def _start_at_zero(panel: Axes) -> None:
    panel.set_ylim(0, 1.08 * panel.dataLim.y1)


def _legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    handles, labels = axes[0].get_legend_handles_labels()
    columns = 5 if max(map(len, labels)) < _SHORT_LABEL else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _drift_lines(results: Results) -> dict[str, list[Cell]]:
    lines: dict[str, list[Cell]] = {}
    for cell in results.cells(protocol="drift"):
        lines.setdefault(f"{cell['task']}, {cell['policy']}", []).append(cell)
    policies = list(dict.fromkeys(c["policy"] for c in results.cells(protocol="drift")))
    labels = setting_labels(policies)
    return {f"{cells[0]['task']}, {labels[cells[0]['policy']]}": cells for cells in lines.values()}


def _simulated_lines(results: Results, family: str, v_share: float) -> dict[str, list[Cell]]:
    names = condition_names(results)
    return {
        names[condition]: setting[1]
        for condition in results.conditions
        if (setting := results.nearest_within(condition, family, v_share))
    }


def plot_depths(results: Results, v_share: float) -> Figure | None:
    """Accuracy minus exact by depth: a row for each family, a panel for each task and length."""
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm

    conditions = [c for c in results.conditions if by_depth(results.cells(c))]
    if not conditions:
        return None
    families = ordered(results)
    figure, axes = grid(len(conditions), width=2.1, height=0.24 * len(families) + 0.6, columns=6)
    columns = sorted({depth for c in conditions for depth in by_depth(results.cells(c))})
    colours = colormaps["YlOrRd_r"].resampled(len(_LOST) - 1)
    norm = BoundaryNorm(_LOST, len(_LOST) - 1)
    image: Any = None
    for panel, condition in zip(axes, conditions, strict=True):
        shown = [_by_depth(results, condition, f.name, v_share, columns) for f in families]
        image = panel.imshow(shown, aspect="auto", cmap=colours, norm=norm)
        panel.set_title(condition_names(results)[condition], fontsize=10)
        panel.set_xticks(range(len(columns)), [f"{depth:.0%}" for depth in columns], fontsize=8)
        panel.set_yticks(
            range(len(families)), [title(results, family) for family in families], fontsize=8
        )
        panel.set_facecolor("#dddddd")
        panel.set_xlabel("depth", fontsize=8)
        for text in panel.get_yticklabels():
            text.set_color(HERO_COLOUR if text.get_text().endswith("(default)") else "#222222")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, spacing="uniform")
    bar.ax.set_ylabel("accuracy minus exact,\npercentage points", fontsize=8)
    bar.set_ticks(_LOST[1:-1], labels=[f"{points:g}" for points in _LOST[1:-1]])
    return figure


def _by_depth(
    results: Results, condition: Condition, family: str, v_share: float, depths: list[float]
) -> list[float]:
    """Accuracy minus exact in percentage points at every depth; NaN where there is none."""
    setting = results.nearest_within(condition, family, v_share)
    if setting is None:
        return [math.nan] * len(depths)
    found, exact = by_depth(setting[1]), by_depth(setting[1], "exact_accuracy")
    return [100 * (found[d] - exact[d]) if d in found else math.nan for d in depths]


def plot_quantiles(results: Results) -> Figure | None:
    """Predicted against true quantile, a panel for each task and length, coloured by layer."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    names = condition_names(results)
    positive = {
        names.get(condition, str(condition)): [
            row for row in rows if row["predicted"] > 0 and row["true"] > 0
        ]
        for condition, rows in results.quantiles.items()
    }
    shown = [(name, rows) for name, rows in positive.items() if rows]
    if not shown:
        return None
    figure, axes = grid(len(shown), width=3.2, height=3.0, columns=3)
    last = max(row["layer"] for _, rows in shown for row in rows)
    points: Any = None
    values = [row[key] for _, rows in shown for row in rows for key in ("true", "predicted")]
    ends = [max(min(values), LOWEST_QUANTILE), max(values)]
    for panel, (name, rows) in zip(axes, shown, strict=True):
        points = panel.scatter(
            [max(row["true"], ends[0]) for row in rows],
            [max(row["predicted"], ends[0]) for row in rows],
            c=[row["layer"] for row in rows],
            cmap="viridis",
            vmin=0,
            vmax=max(last, 1),
            s=7,
            alpha=0.6,
            linewidths=0,
        )
        for factor, style in ((1.0, "-"), (0.5, ":"), (2.0, ":")):
            panel.plot(ends, [factor * end for end in ends], style, color="#555555", linewidth=0.9)
        close = statistics.fmean(abs(error) <= math.log(2) for error in log_errors(rows))
        panel.set(xscale="log", yscale="log", xlabel="true quantile", ylabel="predicted")
        panel.set_title(f"{name}: {close:.0%} within a factor of 2", fontsize=10)
        panel.grid(alpha=0.25)
        for ticks in (panel.xaxis, panel.yaxis):
            ticks.set_minor_formatter(NullFormatter())
    figure.colorbar(points, ax=axes, label="layer", shrink=0.7, ticks=MaxNLocator(integer=True))
    return figure
