"""The plots of a decode result: time against length, share of the limit against loaded rows.

python benchmarks/plot_decode.py benchmarks/results/decode_cpu.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from cells import EXACT, READ, Cell, cells

COLOURS = {
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
STYLES = {"fp32": "--", "widened": "-.", READ: ":"}
SHARE_KEYS = 32768


def plot(result: dict[str, Any], json_path: Path) -> list[Path]:
    """Write `<name>_time.png` and `<name>_share.png` beside the JSON; their paths."""
    plain = [cell for cell in cells(result) if (cell.dtype, cell.batch) == ("bf16", 1)]
    paths = [json_path.with_name(f"{json_path.stem}_{kind}.png") for kind in ("time", "share")]
    _plot_time(plain, paths[0])
    _plot_share([cell for cell in plain if cell.keys == SHARE_KEYS], paths[1])
    return paths


def _plot_time(plain: list[Cell], path: Path) -> None:
    """A panel for each number of threads of each shape that was timed at many lengths."""
    panels: dict[tuple[str, int], list[Cell]] = {}
    for cell in plain:
        panels.setdefault((cell.shape, cell.threads), []).append(cell)
    panels = {key: found for key, found in panels.items() if len(found) > 4}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels) + 2, 4.6), sharey=True, layout="constrained"
    )
    for axis, ((shape, threads), found) in zip(axes.flat, panels.items(), strict=True):
        for name in dict.fromkeys(name for cell in found for name in cell.rows):
            points = [(cell.keys, cell.ms(name)) for cell in found if name in cell.rows]
            colour = next(c for key, c in COLOURS.items() if name.startswith(key))
            style = next((s for end, s in STYLES.items() if name.endswith(end)), "-")
            axis.loglog(*zip(*points, strict=True), style, marker=".", color=colour, label=name)
        axis.set(title=f"{shape} layer, {threads} thread(s)", xlabel="keys")
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel("ms per decode step of one layer")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _plot_share(long: list[Cell], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
    for i, shape in enumerate(dict.fromkeys(cell.shape for cell in long)):
        for style, cell in zip(("--", "-"), (c for c in long if c.shape == shape), strict=False):
            points = sorted(
                (100 * cell.rows[name]["loaded_fraction"], 100 * cell.read_share(name))
                for name in (EXACT, *cell.sifted())
            )
            axis.plot(*zip(*points, strict=True), style, marker="o", color=f"C{i}",
                      label=f"{shape}, {cell.threads} thread(s)")  # fmt: skip
    axis.axhline(100, color="k", linestyle=":", label="a plain read of K and V")
    axis.set(
        xscale="log",
        xlabel="V rows loaded, %",
        ylabel="bytes per second, % of a plain read",
        ylim=(0, 110),
        title=f"{SHARE_KEYS:,} keys, bfloat16, batch 1",
    )
    axis.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(*plot(json.loads(source.read_text()), source))
