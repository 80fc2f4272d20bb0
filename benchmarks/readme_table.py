"""Write README's benchmark tables from the committed JSON; those of a GPU where there is one.

python benchmarks/readme_table.py            # rewrite README.md between the markers
python benchmarks/readme_table.py --check    # fail if that would change it
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cells import EXACT, SIFTED, Cell, shown, threads
from reports import update_page

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
NUM_KEYS = 32768


def tables(result: dict[str, Any]) -> str:
    """Markdown: all formulations of the primary layer, then the best ones of every layer."""
    plain = [cell for cell in shown(result) if cell.keys == NUM_KEYS]
    primary = [cell for cell in plain if cell.shape == plain[0].shape]
    last = primary[-1].variant  # with most threads, or the largest batch
    layers = [cell for cell in plain if cell.variant == last]
    parts = [_formulations(primary), _caption(result, primary), _layers(layers, result["shapes"])]
    if plain[0].on_gpu:
        parts += [
            f"The same with {last}; PyTorch's best is the fastest of the above formulations.",
            _lengths([cell for cell in shown(result) if cell.shape == plain[0].shape]),
            f"Speed-up of exact and of 10% loaded over {plain[0].baseline}, the same layer. "
            "`benchmarks/README.md` says how all this is measured.",
        ]
    else:
        parts.append(
            f"The same with {last}; PyTorch's best is the fastest of the above "
            f"formulations on either cache. `benchmarks/README.md` says how all this is measured."
        )
    return "\n\n".join(parts)


def generation(result: dict[str, Any]) -> str:
    """Markdown: tokens per second of generate(), by the number of keys in the cache."""
    rows = {(row["mode"], row["keys"]): row for row in result["rows"]}
    lengths = sorted({keys for _, keys in rows})
    lines = [_line(["tokens per second", *(f"{keys:,} keys" for keys in lengths)])]
    lines.append(_line(["---"] + ["---:"] * len(lengths)))
    for mode in dict.fromkeys(mode for mode, _ in rows):
        at = [rows.get((mode, keys)) for keys in lengths]
        lines.append(_line([mode, *(f"{row['tokens_per_s']:.2f}" if row else "" for row in at)]))
    weights = result["weight_bytes"] / 1e9
    loaded = min(row["loaded_fraction"] for row in result["rows"])
    return "\n".join(lines) + (
        f"\n\n`generate()` of a model of {result['model']}'s shape in bfloat16, random weights, "
        f"{_place(result)} of the same machine; sift loads down to {loaded:.0%} of "
        f"the V rows, exact all. Every token also reads {weights:.1f} GB of weights."
    )


def _place(result: dict[str, Any]) -> str:
    return threads(result["threads"]) if "threads" in result else "on the GPU"


def _formulations(primary: list[Cell]) -> str:
    head = ["", "V rows loaded", "error"]
    for cell in primary:
        head += [cell.variant, "speed-up", f"of {cell.limit.split()[0]}"]
    lines = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    for name in _names(primary):
        row = next(cell.rows[name] for cell in primary if name in cell.rows)
        error = f"{row['error']:.0e}" if "error" in row else ""
        line = [name.removesuffix(" loaded"), f"{row['loaded_fraction']:.0%}", error]
        for cell in primary:
            share = f"{cell.limit_share(name):.0%}" if name in cell.rows else ""
            line += [_ms(cell, name), _speed_up(cell, name), share]
        lines.append(_line(line))
    return "\n".join(lines)


def _names(primary: list[Cell]) -> list[str]:
    """Of all formulations; a copy is none."""
    rows = {name: row for cell in primary for name, row in cell.rows.items()}
    return [name for name, row in rows.items() if "loaded_fraction" in row]


def _layers(layers: list[Cell], shapes: dict[str, dict[str, Any]]) -> str:
    baseline = layers[0].baseline
    head = ["layer", "HQ / HK / D", baseline, "PyTorch's best", "sift, exact", "", "sift, 10%"]
    lines = [_line([*head, ""]), _line(["---"] + ["---:"] * len(head))]
    for cell in layers:
        shape = shapes[cell.shape]
        sizes = (shape["num_q_heads"], shape["num_kv_heads"], shape["head_dim"])
        best = cell.best_pytorch()
        line = [cell.shape, " / ".join(map(str, sizes)), _ms(cell, baseline)]
        line.append("" if best is None else _ms(cell, best))
        for name in (EXACT, SIFTED):
            line += [_ms(cell, name), _speed_up(cell, name)]
        lines.append(_line(line))
    return "\n".join(lines)


def _lengths(layer: list[Cell]) -> str:
    """Speed-ups at every length and batch."""
    at = {(cell.keys, cell.variant): cell for cell in layer}
    variants = list(dict.fromkeys(cell.variant for cell in layer))
    names = (EXACT, SIFTED)
    head = [f"{name.removesuffix(' loaded')}, {variant}" for variant in variants for name in names]
    lines = [_line(["keys", *head]), _line(["---:"] * (1 + len(head)))]
    for keys in sorted({keys for keys, _ in at}):
        line = [f"{keys:,}"]
        for cell in (at.get((keys, variant)) for variant in variants):
            line += ["" if cell is None else _speed_up(cell, name) for name in names]
        lines.append(_line(line))
    return "\n".join(lines)


def _ms(cell: Cell, name: str) -> str:
    if name not in cell.rows:
        return ""
    return f"{cell.ms(name):.3f} ms" if cell.on_gpu else f"{cell.ms(name):.2f} ms"


def _speed_up(cell: Cell, name: str) -> str:
    ratio = cell.speed_up(name, cell.baseline)
    if ratio is None:
        return ""
    return f"{ratio:.2f}x" if cell.on_gpu else f"{ratio:.1f}x"


def _line(texts: list[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _caption(result: dict[str, Any], primary: list[Cell]) -> str:
    machine, shape, cell = result["machine"], result["shapes"][primary[0].shape], primary[0]
    what = (
        f"One decode step of one {cell.shape} layer: {shape['num_q_heads']} query heads, "
        f"{shape['num_kv_heads']} key/value heads, D = {shape['head_dim']}"
    )
    how = "Medians; speed-up against SDPA in bfloat16; error relative to exact attention."
    if cell.on_gpu:
        return (
            f"{what}, {NUM_KEYS:,} keys, in CUDA graphs, K and V outside the L2. {machine['gpu']}, "
            f"driver {machine['driver']}, CUDA {machine['cuda']}; torch {machine['torch']}, commit "
            f"{machine['commit']}, {machine['date']}. {how} SDPA is the flash backend's. Of copy: "
            f"bytes per second against a copy, {cell.gb_per_s(cell.limit):,.0f} GB/s read and "
            f"written."
        )
    bandwidth = ", ".join(f"{c.gb_per_s(c.limit):.1f} GB/s with {c.variant}" for c in primary)
    return (
        f"{what}, batch 1, "
        f"{NUM_KEYS:,} keys outside the caches. {machine['cpu']} with {machine['cores']} cores and "
        f"{', '.join(machine['isa'])}; torch {machine['torch']}, commit {machine['commit']}, "
        f"{machine['date']}. {how} fp32 keeps the cache in float32, twice the bytes; widened reads "
        f"bfloat16 and computes in float32. Of read: bytes per second against a plain read of K "
        f"and V, {bandwidth}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if outdated")
    arguments = parser.parse_args()

    results = {
        name: json.loads(path.read_text())
        for name in ("decode_cuda", "generate_cuda", "decode_cpu", "generate_cpu")
        if (path := RESULTS / f"{name}.json").exists()
    }
    write = {"decode": tables, "generate": generation}
    texts = [write[name.partition("_")[0]](result) for name, result in results.items()]
    command = "python benchmarks/readme_table.py"
    text = "\n\n".join(texts)
    return update_page(README, "benchmark table", text, command, check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
