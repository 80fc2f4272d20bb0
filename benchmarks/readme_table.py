"""Write README's benchmark tables from the committed JSON.

python benchmarks/readme_table.py            # rewrite README.md between the markers
python benchmarks/readme_table.py --check    # fail if that would change it
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cells import EXACT, READ, SIFTED, Cell, cells
from reports import update_page

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
NUM_KEYS = 32768
BASELINE = "SDPA, bf16"


def tables(result: dict[str, Any]) -> str:
    """Markdown: all formulations of the primary layer, then the best ones of every layer."""
    plain = [c for c in cells(result) if (c.dtype, c.batch, c.keys) == ("bf16", 1, NUM_KEYS)]
    primary = [cell for cell in plain if cell.shape == plain[0].shape]
    most_threads = max(cell.threads for cell in plain)
    layers = [cell for cell in plain if cell.threads == most_threads]
    return "\n\n".join(
        (
            _formulations(primary),
            _caption(result, primary),
            _layers(layers, result["shapes"]),
            f"The same with {_threads(most_threads)}; PyTorch's best is the fastest of the above "
            f"formulations on either cache. `benchmarks/README.md` says how all this is measured.",
        )
    )


def generation(result: dict[str, Any]) -> str:
    """Markdown: tokens per second of generate(), by the number of keys in the cache."""
    rows = {(row["mode"], row["keys"]): row for row in result["rows"]}
    lengths = sorted({keys for _, keys in rows})
    lines = [_line(["tokens per second", *(f"{keys:,} keys" for keys in lengths)])]
    lines.append(_line(["---"] + ["---:"] * len(lengths)))
    for mode in dict.fromkeys(mode for mode, _ in rows):
        at = [rows[mode, keys] for keys in lengths]
        lines.append(_line([mode, *(f"{row['tokens_per_s']:.2f}" for row in at)]))
    weights = min(row["bytes"] for row in result["rows"]) / 1e9
    loaded = min(row["loaded_fraction"] for row in result["rows"])
    return "\n".join(lines) + (
        f"\n\n`generate()` of a model of Llama-3.2-1B's shape in bfloat16, random weights, "
        f"{_threads(result['threads'])} of the same machine; sift loads down to {loaded:.0%} of "
        f"the V rows, exact all. Every token also reads {weights:.1f} GB of weights."
    )


def _formulations(primary: list[Cell]) -> str:
    head = ["", "V rows loaded", "error"]
    for cell in primary:
        head += [_threads(cell.threads), "speed-up", "of read"]
    lines = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    for name, row in primary[0].rows.items():
        error = f"{row['error']:.0e}" if "error" in row else ""
        line = [name.removesuffix(" loaded"), f"{row['loaded_fraction']:.0%}", error]
        for cell in primary:
            line += [_ms(cell, name), _speed_up(cell, name), f"{cell.read_share(name):.0%}"]
        lines.append(_line(line))
    return "\n".join(lines)


def _layers(layers: list[Cell], shapes: dict[str, dict[str, Any]]) -> str:
    head = ["layer", "HQ / HK / D", "SDPA, bf16", "PyTorch's best", "sift, exact", "", "sift, 10%"]
    lines = [_line([*head, ""]), _line(["---"] + ["---:"] * len(head))]
    for cell in layers:
        shape = shapes[cell.shape]
        sizes = (shape["num_q_heads"], shape["num_kv_heads"], shape["head_dim"])
        best = cell.best_pytorch()
        line = [cell.shape, " / ".join(map(str, sizes)), _ms(cell, BASELINE)]
        line.append("" if best is None else _ms(cell, best))
        for name in (EXACT, SIFTED):
            line += [_ms(cell, name), _speed_up(cell, name)]
        lines.append(_line(line))
    return "\n".join(lines)


def _ms(cell: Cell, name: str) -> str:
    return f"{cell.ms(name):.2f} ms"


def _speed_up(cell: Cell, name: str) -> str:
    return f"{cell.ms(BASELINE) / cell.ms(name):.1f}x"


def _threads(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def _line(texts: list[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _caption(result: dict[str, Any], primary: list[Cell]) -> str:
    machine, shape = result["machine"], result["shapes"][primary[0].shape]
    bandwidth = ", ".join(
        f"{c.rows[READ]['bytes'] / c.ms(READ) / 1e6:.1f} GB/s with {_threads(c.threads)}"
        for c in primary
    )
    return (
        f"One decode step of one {primary[0].shape} layer: {shape['num_q_heads']} query heads, "
        f"{shape['num_kv_heads']} key/value heads, D = {shape['head_dim']}, batch 1, "
        f"{NUM_KEYS:,} keys outside the caches. {machine['cpu']} with {machine['cores']} cores and "
        f"{', '.join(machine['isa'])}; torch {machine['torch']}, commit {machine['commit']}, "
        f"{machine['date']}. Medians; speed-up against SDPA in bfloat16; error relative to exact "
        f"attention. fp32 keeps the cache in float32, twice the bytes; widened reads bfloat16 and "
        f"computes in float32. Of read: bytes per second against a plain read of K and V, "
        f"{bandwidth}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if outdated")
    arguments = parser.parse_args()

    decode, generate = (
        json.loads((RESULTS / f"{name}_cpu.json").read_text()) for name in ("decode", "generate")
    )
    text = f"{tables(decode)}\n\n{generation(generate)}"
    command = "python benchmarks/readme_table.py"
    return update_page(README, "benchmark table", text, command, check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
