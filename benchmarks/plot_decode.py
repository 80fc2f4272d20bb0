"""The plots of a decode result: time against length, share of the limit against loaded rows.

Of a GPU's result also the speed-up over SDPA against loaded rows.

    python benchmarks/plot_decode.py benchmarks/results/decode_cpu.json    # or decode_cuda.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cells import COPY, EXACT, READ, Cell, shown

COLOURS = {
    "SDPA cuDNN": "tab:cyan",
    "SDPA": "tab:gray",
    "grouped": "tab:blue",
    "flex": "tab:purple",
    "sift, exact": "tab:green",
    "sift, 25%": "gold",
    "sift, 10%": "tab:orange",
    "sift, 4%": "tab:red",
    "sift, 1%": "tab:brown",
    READ: "black",
}
LIMITS = {READ: "a plain read of K and V", COPY: "a copy"}
STYLES = {"fp32": "--", "widened": "-.", READ: ":"}
SHARE_KEYS = 32768
SHORTEST_ON_GPU = 4096  # below it a call's launch decides


def plot(result: dict[str, Any], json_path: Path) -> list[Path]:
    """Write `<name>_time.png`, `<name>_share.png` and so on beside the JSON; their paths."""
    every = shown(result)
    if every and every[0].on_gpu:
        every = [cell for cell in every if cell.keys >= SHORTEST_ON_GPU]
    long = [cell for cell in every if cell.keys == SHARE_KEYS]
    plots = {"time": (_plot_time, every), "share": (_plot_share, long)}
    if every and every[0].on_gpu:
        primary = [cell for cell in every if cell.shape == every[0].shape]
        plots["speedup"] = (_plot_speed_up, primary)
    paths = []
    for kind, (draw, chosen) in plots.items():
        if chosen:  # a result that was cut short may have nothing to show
            paths.append(json_path.with_name(f"{json_path.stem}_{kind}.png"))
            draw(chosen, paths[-1])
    return paths


def _plot_time(every: list[Cell], path: Path) -> None:
    """A panel for each variant of each shape that was timed at many lengths."""
    panels: dict[tuple[str, str], list[Cell]] = {}
    for cell in every:
        panels.setdefault((cell.shape, cell.variant), []).append(cell)
    panels = {key: sorted(v, key=_keys) for key, v in panels.items() if len(v) > 4} or panels
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(4.2 * len(panels) + 2, 4.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, ((shape, variant), found) in zip(axes.flat, panels.items(), strict=True):
        for name in dict.fromkeys(name for cell in found for name in cell.rows if name != COPY):
            points = [(cell.keys, cell.ms(name)) for cell in found if name in cell.rows]
            colour = next(c for key, c in COLOURS.items() if name.startswith(key))
            style = next((s for end, s in STYLES.items() if name.endswith(end)), "-")
            axis.loglog(*zip(*points, strict=True), style, marker=".", color=colour, label=name)
        axis.set(title=f"{shape} layer, {variant}", xlabel="keys")
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel("ms per decode step of one layer")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    _save(figure, path)


def _plot_share(long: list[Cell], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
    variants = list(dict.fromkeys(cell.variant for cell in long))
    styles = dict(zip(reversed(variants), ("-", "--", ":"), strict=False))
    for i, shape in enumerate(dict.fromkeys(cell.shape for cell in long)):
        for cell in (cell for cell in long if cell.shape == shape):
            points = sorted(
                (100 * cell.rows[name]["loaded_fraction"], 100 * cell.limit_share(name))
                for name in (EXACT, *cell.sifted())
            )
            axis.plot(*zip(*points, strict=True), styles[cell.variant], marker="o", color=f"C{i}",
                      label=f"{shape}, {cell.variant}")  # fmt: skip
    where = "bfloat16" if long[0].on_gpu else "bfloat16, batch 1"
    limit = LIMITS[long[0].limit]
    axis.axhline(100, color="k", linestyle=":", label=limit)
    axis.set(
        xscale="log",
        xlabel="V rows loaded, %",
        ylabel=f"bytes per second, % of {limit.removesuffix(' of K and V')}",
        ylim=(0, 110),
        title=f"{SHARE_KEYS:,} keys, {where}",
    )
    axis.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right center")
    _save(figure, path)


def _plot_speed_up(primary: list[Cell], path: Path) -> None:
    """Over the baseline, a line for each length, a panel for each batch; and what bytes allow."""
    variants = list(dict.fromkeys(cell.variant for cell in primary))
    figure, axes = plt.subplots(
        1,
        len(variants),
        figsize=(4.2 * len(variants) + 2, 4.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, variant in zip(axes.flat, variants, strict=True):
        found = [cell for cell in primary if cell.variant == variant]
        for cell in sorted(found, key=_keys):
            names = [n for n in (EXACT, *cell.sifted()) if cell.speed_up(n, cell.baseline)]
            points = sorted(
                (100 * cell.rows[name]["loaded_fraction"], cell.speed_up(name, cell.baseline))
                for name in names
            )
            if points:
                axis.semilogx(*zip(*points, strict=True), marker="o", label=f"{cell.keys:,} keys")
        fractions = [10 ** (i / 20) for i in range(41)]
        limit = [2 / (1 + fraction / 100) for fraction in fractions]
        axis.semilogx(fractions, limit, "k:", label="the bytes of dense over those read")
        axis.set(title=f"{primary[0].shape} layer, {variant}", xlabel="V rows loaded, %")
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel(f"times as fast as {primary[0].baseline}")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    _save(figure, path)


def _keys(cell: Cell) -> int:
    return cell.keys


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(*plot(json.loads(source.read_text()), source))
