"""The plot of a generate result: tokens per second against context, with the memory's limit."""

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
    "sift exact": "tab:green",
    "sift,": "tab:orange",
}


def plot(result: dict[str, Any], json_path: Path) -> Path:
    """Write `<name>.png` beside the JSON; its path."""
    path = json_path.with_suffix(".png")
    figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
    limited: set[str] = set()  # exact and sifted modes read the same bytes over every cache
    for mode in dict.fromkeys(row["mode"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["mode"] == mode]
        colour = next(c for start, c in COLOURS.items() if mode.startswith(start))
        style = "--" if mode.endswith("StaticCache") else "-"
        points = [(row["keys"], row["tokens_per_s"]) for row in rows]
        axis.plot(*zip(*points, strict=True), style, marker=".", color=colour, label=mode)
        if mode.startswith("sift") and colour not in limited:
            limited.add(colour)
            limit = [(row["keys"], result["read_gb_per_s"] * 1e9 / row["bytes"]) for row in rows]
            label = f"{mode.rpartition(',')[0]}: limit"
            axis.plot(*zip(*limit, strict=True), ":", marker="_", color=colour, label=label)
    ticks = sorted({row["keys"] for row in result["rows"]})
    axis.set(
        xlabel="keys in the cache",
        ylabel="tokens per second",
        title=f"generate(), {result['model']}'s shape, bfloat16, "
        f"{result['machine'].get('gpu', 'CPU')}",
        xticks=ticks,
        xticklabels=[f"{num_keys:,}" for num_keys in ticks],
        ylim=(0, None),
    )
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(plot(json.loads(source.read_text()), source))
