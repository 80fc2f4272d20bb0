"""The product's figures, derived from a decode result; they are shown, never asserted.

python benchmarks/figures.py benchmarks/results/decode_cpu.json    # or decode_cuda.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cells import EXACT, SIFTED, Cell, cells

LONG = 4096  # from here on a figure is about throughput, below it about overhead


def print_figures(result: dict[str, Any]) -> None:
    every = cells(result)
    q_heads = {name: shape["num_q_heads"] for name, shape in result["shapes"].items()}
    for lines in (_overview(every), _losses(every), _linearity(every), _memory(every, q_heads)):
        print("\n" + "\n".join(lines))


def _overview(every: list[Cell]) -> Iterator[str]:
    limit, baseline = every[0].limit, every[0].baseline.partition(",")[0]
    yield f"Exact mode against PyTorch's best on a cache of its dtype, on any, and {baseline};"
    yield f"sifted against exact. limit: bytes per second as a share of those of: {limit}."
    head = (
        f"{'shape':14}{'dtype':>5}{'B':>4}{'keys':>8}{'run':>11}{'ms':>10}{'spread':>8}{'limit':>6}"
    )
    head += f"{'same':>7}{'any':>7}{'SDPA':>7}"
    yield head + "".join(f"{name.split()[1]:>7}" for name in _sifted_names(every))
    for cell in every:
        exact = cell.rows[EXACT]
        share = f"{cell.limit_share(EXACT):6.0%}" if cell.keys >= LONG else f"{'':6}"
        rivals = (cell.best_pytorch(cell.dtype), cell.best_pytorch(), cell.baseline)
        ratios = [cell.speed_up(EXACT, rival) for rival in rivals]
        ratios += [cell.speed_up(name, EXACT) for name in _sifted_names(every)]
        yield f"{cell}{exact['median_ms']:10.3f}{exact['spread']:8.0%}{share}" + "".join(
            f"{'':7}" if ratio is None else f"{ratio:6.1f}x" for ratio in ratios
        )


def _sifted_names(every: list[Cell]) -> list[str]:
    return list(dict.fromkeys(name for cell in every for name in cell.sifted()))


def _losses(every: list[Cell]) -> Iterator[str]:
    yield "Slower than PyTorch's best on any cache, or sifted slower than exact (spread):"
    count = 0
    for cell in every:
        pairs = [(EXACT, cell.best_pytorch()), *((name, EXACT) for name in cell.sifted())]
        for name, other in pairs:
            if other is not None and cell.ms(name) > cell.ms(other):
                count += 1
                times = [
                    f"{n} {cell.ms(n):.4f} ms ({cell.rows[n]['spread']:.0%})" for n in (name, other)
                ]
                yield f"{cell}  {cell.ms(name) / cell.ms(other):5.2f}x  {'; '.join(times)}"
    yield f"{count} in {len(every)} cells"


def _linearity(every: list[Cell]) -> Iterator[str]:
    yield f"Time per key relative to {LONG:,} keys:"
    for base in every:
        if base.keys != LONG:
            continue
        same = (base.shape, base.dtype, base.batch, base.run)
        longer = [
            cell
            for cell in every
            if (cell.shape, cell.dtype, cell.batch, cell.run) == same and cell.keys > LONG
        ]
        for name in (EXACT, SIFTED, base.limit) if longer else ():
            per_key = base.ms(name) / LONG
            ratios = (f"{c.keys:,}: {c.ms(name) / c.keys / per_key:.2f}" for c in longer)
            yield f"{base}  {name:18}" + "  ".join(ratios)


def _memory(every: list[Cell], q_heads: dict[str, int]) -> Iterator[str]:
    yield "Peak extra memory of one call, MB (10^6 bytes), and the bound of 4 bytes per score plus"
    yield "1 MB per thread of a CPU; the largest share of it:"
    shares = []
    for cell in every:
        for name in (EXACT, *cell.sifted()):
            row = cell.rows[name]
            if (taken := row.get("peak_extra_bytes")) is not None:
                bound = 4 * cell.batch * q_heads[cell.shape] * cell.keys
                bound += 1e6 * row.get("threads", 0)
                shares.append((taken / bound, taken, bound, cell, name))
    for share, taken, bound, cell, name in sorted(shares, key=lambda s: s[0], reverse=True)[:5]:
        yield f"{cell}  {name:18}{taken / 1e6:8.2f} of {bound / 1e6:8.2f} ({share:.0%})"


if __name__ == "__main__":
    print_figures(json.loads(Path(sys.argv[1]).read_text()))
