"""The plots of a decode result: time against length, speed-up against the loaded fraction."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {
    "SDPA": "tab:gray",
    "grouped": "tab:blue",
    "flex": "tab:purple",
    "sift, exact": "tab:green",
    "sift, 25%": "gold",
    "sift, 10%": "tab:orange",
    "sift, 4%": "tab:red",
}
STYLES = {"fp32": "--", "widened": "-."}


def plot(result: dict[str, Any], json_path: Path) -> list[Path]:
    """Write `<name>_time.png` and `<name>_speedup.png` beside the JSON; their paths."""
    paths = [json_path.with_name(f"{json_path.stem}_{kind}.png") for kind in ("time", "speedup")]
    _plot_time(result, paths[0])
    _plot_speedup(result, paths[1])
    return paths


def _panels(result: dict[str, Any]) -> list[tuple[str, int, list[dict[str, Any]]]]:
    keys = dict.fromkeys((row["shape"], row["threads"]) for row in result["rows"])
    return [
        (s, t, [r for r in result["rows"] if (r["shape"], r["threads"]) == (s, t)]) for s, t in keys
    ]


def _plot_time(result: dict[str, Any], path: Path) -> None:
    panels = _panels(result)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 4.4), sharey=True, layout="constrained"
    )
    for axis, (shape, threads, rows) in zip(axes.flat, panels, strict=True):
        for name in dict.fromkeys(row["name"] for row in rows):
            points = [(r["keys"], r["median_ms"]) for r in rows if r["name"] == name]
            colour = next((c for key, c in COLOURS.items() if name.startswith(key)), None)
            style = next((s for end, s in STYLES.items() if name.endswith(end)), "-")
            axis.loglog(*zip(*points, strict=True), style, marker=".", color=colour, label=name)
        limit = [(r["keys"], r["bytes"] / result["read_gb_per_s"][str(threads)] / 1e6)
                 for r in rows if r["name"] == "sift, exact"]  # fmt: skip
        axis.loglog(*zip(*limit, strict=True), "k:", label="K and V at read bandwidth")
        axis.set(title=f"{shape} layer, {threads} thread(s)", xlabel="keys")
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel("ms per decode step of one layer")
    axes.flat[0].legend(fontsize=7)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _plot_speedup(result: dict[str, Any], path: Path) -> None:
    longest = max(row["keys"] for row in result["rows"])
    figure, axis = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for shape, threads, rows in _panels(result):
        ours = [r for r in rows if r["keys"] == longest and r["name"].startswith("sift")]
        exact_ms = next(r["median_ms"] for r in ours if r["name"] == "sift, exact")
        points = [(100 * r["loaded_fraction"], exact_ms / r["median_ms"]) for r in ours]
        axis.plot(*zip(*points, strict=True), marker="o", label=f"{shape}, {threads} thread(s)")
    percent = [p / 2 for p in range(2, 201)]
    axis.plot(percent, [2 / (1 + p / 100) for p in percent], "k:", label="limit: bytes of K + V")
    axis.set(
        xscale="log",
        xlabel="V rows loaded, %",
        ylabel="speed-up over our exact mode",
        title=f"{longest:,} keys, bfloat16",
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(*plot(json.loads(source.read_text()), source))
