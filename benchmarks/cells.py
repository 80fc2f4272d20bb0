"""A decode result, read back: its rows gathered into cells, and ratios within a cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

READ = "read K and V"
EXACT = "sift, exact"
SIFTED = "sift, 10% loaded"  # the one that stands for sifting where only one is shown

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """All formulations of one case with one number of threads, by name."""

    shape: str
    dtype: str
    batch: int
    keys: int
    threads: int
    rows: dict[str, Row]

    def ms(self, name: str) -> float:
        return float(self.rows[name]["median_ms"])

    def speed_up(self, name: str, over: str | None) -> float | None:
        """How much faster `name` is than `over`; None where one of them was not timed."""
        if over is None or not {name, over} <= self.rows.keys():
            return None
        return self.ms(over) / self.ms(name)

    def read_share(self, name: str) -> float:
        """Bytes per second of `name`, as a share of what a plain read of the same K and V got."""
        row, read = self.rows[name], self.rows[READ]
        return float(row["bytes"] / self.ms(name) / (read["bytes"] / self.ms(READ)))

    def best_pytorch(self, dtype: str = "") -> str | None:
        """The fastest of PyTorch's formulations, if any was timed; with `dtype`, on that cache."""
        names = [n for n in self.rows if not n.startswith(("sift", READ)) and f", {dtype}" in n]
        return min(names, key=self.ms, default=None)

    def sifted(self) -> list[str]:
        return [name for name in self.rows if name.startswith("sift") and name != EXACT]

    def __str__(self) -> str:
        return f"{self.shape:13}{self.dtype:>5}{self.batch:>4}{self.keys:>8}{self.threads:>4}"


def cells(result: dict[str, Any]) -> list[Cell]:
    fields = ("shape", "dtype", "batch", "keys", "threads")
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in result["rows"]:
        found.setdefault(tuple(row[field] for field in fields), {})[row["name"]] = row
    return [Cell(**dict(zip(fields, key, strict=True)), rows=rows) for key, rows in found.items()]
