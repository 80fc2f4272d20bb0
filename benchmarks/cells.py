"""A decode result, read back: its rows gathered into cells, and ratios within a cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

READ = "read K and V"
COPY = "copy"
EXACT = "sift, exact"
SIFTED = "sift, 10% loaded"  # the one that stands for sifting where only one is shown
STREAM, GRAPH = "stream", "graph"

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """All formulations of one case in one kind of run, by name."""

    shape: str
    dtype: str
    batch: int
    keys: int
    run: str  # "1 thread", "2 threads" and so on; on a GPU STREAM or GRAPH
    rows: dict[str, Row]

    @property
    def on_gpu(self) -> bool:
        return self.run in (STREAM, GRAPH)

    @property
    def baseline(self) -> str:
        """What everybody would call."""
        return f"SDPA flash, {self.dtype}" if self.on_gpu else f"SDPA, {self.dtype}"

    @property
    def limit(self) -> str:
        """What shows the bandwidth: on a GPU a copy, else a plain read of the same K and V."""
        return COPY if self.on_gpu else READ

    @property
    def variant(self) -> str:
        """What tells cells of one shape and length apart where results are shown."""
        return f"batch {self.batch}" if self.on_gpu else self.run

    def ms(self, name: str) -> float:
        return float(self.rows[name]["median_ms"])

    def speed_up(self, name: str, over: str | None) -> float | None:
        """How much faster `name` is than `over`; None where one of them was not timed."""
        if over is None or not {name, over} <= self.rows.keys():
            return None
        return self.ms(over) / self.ms(name)

    def gb_per_s(self, name: str) -> float:
        """10^9 bytes per second."""
        return float(self.rows[name]["bytes"] / self.ms(name) / 1e6)

    def limit_share(self, name: str) -> float:
        """Bytes per second of `name`, as a share of those of the limit."""
        return self.gb_per_s(name) / self.gb_per_s(self.limit)

    def best_pytorch(self, dtype: str = "") -> str | None:
        """The fastest of PyTorch's formulations, if any was timed; with `dtype`, on that cache."""
        names = [n for n in self.rows if not n.startswith(("sift", self.limit))]
        return min((n for n in names if f", {dtype}" in n), key=self.ms, default=None)

    def sifted(self) -> list[str]:
        return [name for name in self.rows if name.startswith("sift") and name != EXACT]

    def __str__(self) -> str:
        return f"{self.shape:14}{self.dtype:>5}{self.batch:>4}{self.keys:>8}{self.run:>11}"


def cells(result: dict[str, Any]) -> list[Cell]:
    fields = ("shape", "dtype", "batch", "keys")
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in result["rows"]:
        run = threads(row["threads"]) if "threads" in row else row["launch"]
        found.setdefault((*(row[field] for field in fields), run), {})[row["name"]] = row
    return [
        Cell(**dict(zip((*fields, "run"), key, strict=True)), rows=rows)
        for key, rows in found.items()
    ]


def shown(result: dict[str, Any]) -> list[Cell]:
    """The cells of plots and tables: bfloat16; at batch 1 on the CPU, in CUDA graphs on a GPU."""
    return [
        cell
        for cell in cells(result)
        if cell.dtype == "bf16" and (cell.run == GRAPH if cell.on_gpu else cell.batch == 1)
    ]


def threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
