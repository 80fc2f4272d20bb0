"""benchmarks/: a GPU's results, made up here, become figures, plots and README's tables."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

import bench_decode
import bench_generate
import figures
import plot_decode
import plot_generate
import readme_table
from cells import COPY, EXACT, SIFTED, cells, shown
from workload import LLAMA_1B, LLAMA_8B, Case

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
MACHINE = {"gpu": "a made-up GPU", "driver": "1.2", "cuda": "13.0", "torch": "2.11", "nvcc": "13.0"}
MACHINE |= {"commit": "0123456789ab", "date": "2000-01-01"}
NAMES = ("SDPA flash, bf16", "SDPA cuDNN, bf16", "grouped matmul, bf16", EXACT)
FRACTIONS = (0.25, 0.10, 0.04, 0.01)


def made_up_rows(shape, batch, keys):
    """Every formulation 1.5 times slower than bytes at 1 TB/s would take."""
    case = Case(shape, keys, batch=batch)
    names = dict.fromkeys(NAMES, 1.0) | {f"sift, {f:.0%} loaded": f for f in FRACTIONS}
    for launch in ("stream", "graph"):
        fields = {"shape": shape.name, "dtype": "bf16", "batch": batch, "keys": keys}
        fields |= {"launch": launch, "spread": 0.01, "repeats": 21}
        for name, loaded in names.items():
            facts = bench_decode.traffic(case, name, loaded)
            ms = 1.5 * facts["bytes"] / 1e9
            yield {**fields, "name": name, "median_ms": ms, "error": 2e-3, **facts}
        yield {**fields, "name": COPY, "median_ms": 2.0, "bytes": 2 * 10**9}


@pytest.fixture
def decode_result():
    lengths = (4096, 16384, 32768, 65536, 131072)
    rows = [
        row
        for keys in lengths
        for shape in (LLAMA_8B, LLAMA_1B)
        for batch in (1, 64)
        for row in made_up_rows(shape, batch, keys)
    ]
    shapes = {shape.name: dataclasses.asdict(shape) for shape in (LLAMA_8B, LLAMA_1B)}
    return {"benchmark": "decode_cuda", "machine": MACHINE, "shapes": shapes, "rows": rows}


@pytest.fixture
def generate_result():
    fields = {"spread": 0.1, "tokens": 96, "loaded_fraction": 0.5, "logits_error": 0.1}
    fields |= {"graph_skips": 0, "graph_breaks": 0, "bytes": 10**10, "tokens_per_s": 100.0}
    modes = [mode.name for mode in bench_generate.MODES["cuda"]]
    rows = [{"mode": mode, "keys": 32768, "median_ms": 10.0, **fields} for mode in modes]
    return {
        "benchmark": "generate_cuda",
        "model": "Llama-3.1-8B",
        "machine": MACHINE,
        "read_gb_per_s": 4000.0,
        "weight_bytes": 15 * 10**9,
        "rows": rows,
    }


def test_ratios_within_a_cell(decode_result):
    cell = next(cell for cell in shown(decode_result) if (cell.keys, cell.batch) == (32768, 64))
    assert (cell.run, cell.variant, cell.on_gpu) == ("graph", "batch 64", True)
    assert cell.limit_share(EXACT) == pytest.approx(1 / 1.5)
    assert cell.speed_up(SIFTED, cell.baseline) == pytest.approx(2 / 1.1)
    assert cell.best_pytorch() == "SDPA flash, bf16"
    assert len(cells(decode_result)) == 40
    assert len(shown(decode_result)) == 20


def test_figures_are_printed(decode_result, capsys):
    figures.print_figures(decode_result)
    printed = capsys.readouterr().out
    assert "SDPA flash;" in printed
    assert "Llama-3.1-8B   bf16  64   32768      graph" in printed
    assert "0 in 40 cells" in printed


def test_plots_are_drawn(decode_result, generate_result, tmp_path):
    paths = plot_decode.plot(decode_result, tmp_path / "decode_cuda.json")
    paths.append(plot_generate.plot(generate_result, tmp_path / "generate_cuda.json"))
    assert [path.name for path in paths] == [
        *(f"decode_cuda_{kind}.png" for kind in ("time", "share", "speedup")),
        "generate_cuda.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_readme_shows_a_gpu_where_there_is_a_result(
    decode_result, generate_result, tmp_path, monkeypatch
):
    results, readme = tmp_path / "results", tmp_path / "README.md"
    results.mkdir()
    for kind in ("decode", "generate"):
        shutil.copy(BENCHMARKS / "results" / f"{kind}_cpu.json", results)
    readme.write_text("<!-- benchmark table: begin -->\n<!-- benchmark table: end -->\n")
    monkeypatch.setattr(readme_table, "RESULTS", results)
    monkeypatch.setattr(readme_table, "README", readme)
    monkeypatch.setattr(sys, "argv", ["readme_table.py"])
    assert readme_table.main() == 0
    on_cpu = readme.read_text()
    assert on_cpu.split("begin -->")[1] in (ROOT / "README.md").read_text()

    for result in (decode_result, generate_result):
        (results / f"{result['benchmark']}.json").write_text(json.dumps(result))
    assert readme_table.main() == 0
    table = readme.read_text()
    assert on_cpu.split("begin -->")[1] in table
    lines = table.splitlines()
    assert "| sift, 10% | 10% | 2e-03 | 0.111 ms | 1.82x | 67% | 7.087 ms | 1.82x | 67% |" in lines
    assert "| 131,072 | 1.00x | 1.82x | 1.00x | 1.82x |" in lines
    assert "| sift, StaticCache | 100.00 |" in lines
    assert "a made-up GPU, driver 1.2, CUDA 13.0" in table
    assert "a copy, 1,000 GB/s read and written" in table
