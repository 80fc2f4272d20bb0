"""What the plots share: grids of panels, percent axes, labels at the ends of lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NARROWEST = 7.5  # inches, for title and legend
_LABEL_GAP = 0.052  # of the height of a panel, between two labels


def grid(
    count: int, width: float, height: float, columns: int, share: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of a size in inches, left to right, then down."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(columns, count)
    num_rows = -(-count // columns)
    size = (max(_NARROWEST, width * columns + 0.4), height * num_rows + 0.9)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
    panels = figure.subplots(num_rows, columns, squeeze=False, sharex=share, sharey=share)
    for panel in panels.flat[count:]:
        panel.remove()
    shown = list(panels.flat[:count])
    for panel in shown:
        panel.tick_params(labelbottom=True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, shown


def percent_axis(panel: Axes, log: bool) -> None:
    """Percentages of all rows on the x axis, on a logarithmic or a linear scale."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    panel.set_xscale("log" if log else "linear")
    shares = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0] if log else [0.0, 0.25, 0.5, 0.75, 1.0]
    panel.xaxis.set_major_locator(FixedLocator(shares))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    panel.xaxis.set_minor_locator(NullLocator())
    if not log:
        panel.set_xlim(0, 1)


def direct_labels(panel: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names beside a panel, each joined to the end of its line.

    Args:
        panel: with its final scales.
        ends: x, y, text and colour.
    """
    panel.autoscale_view()
    to_height = panel.transData + panel.transAxes.inverted()
    placed = sorted((to_height.transform((x, y))[1], x, y, text, c) for x, y, text, c in ends)
    heights = _apart([height for height, *_ in placed])
    for height, (_, x, y, text, colour) in zip(heights, placed, strict=True):
        panel.annotate(
            text,
            xy=(x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=colour,
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.35, "linewidth": 0.7},
        )


def _apart(heights: Sequence[float]) -> list[float]:
    """Ascending heights moved as little as a sweep up and one down need to be _LABEL_GAP apart."""
    moved = list(heights)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + _LABEL_GAP)
    excess = max(0.0, moved[-1] - 1.0) if moved else 0.0
    moved = [height - excess for height in moved]
    for i in range(len(moved) - 2, -1, -1):
        moved[i] = min(moved[i], moved[i + 1] - _LABEL_GAP)
    return moved
