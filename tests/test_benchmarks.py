"""benchmarks/: results of a GPU are measured, shown and published by code that runs without one."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench_decode
import bench_gather
import bench_generate
import figures
import machine
import plot_decode
import plot_generate
import profile_cuda
import readme_table
import timing
import workload
from cells import COPY, EXACT, SIFTED, cells, shown
from suites import GPU, Suite
from workload import LLAMA_1B, LLAMA_8B, Case, make_problem

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


def test_a_gpu_is_measured_as_a_cpu_is(monkeypatch, tmp_path, capsys):
    """The same program, with the GPU's clock, graphs and copies put on the CPU."""

    def replayed(call, num_calls):
        return lambda: [call() for _ in range(num_calls)]

    monkeypatch.setattr(bench_decode, "captured", replayed)
    monkeypatch.setattr(bench_decode, "CudaClock", lambda calls_per_run=1: timing.host_ms)
    monkeypatch.setattr(bench_decode, "make_problem", lambda case, device: make_problem(case))
    monkeypatch.setattr(bench_decode.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(workload, "last_level_cache_bytes", lambda: 1 << 18)
    monkeypatch.setattr(bench_decode, "copy_call", lambda: torch.ones(1 << 20).clone)
    monkeypatch.setattr(bench_decode, "peak_extra_bytes", lambda call, device: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(machine, "describe", lambda device: {**MACHINE, "device": device})
    cases = [Case(LLAMA_1B, keys, batch=batch) for keys in (300, 16) for batch in (1, 2)]
    suite = Suite(tuple(cases), longest_dense=131072, flex_shapes=(), budget_s=0.01)
    monkeypatch.setattr(bench_decode, "GPU", suite)
    path = tmp_path / "decode_cuda.json"
    monkeypatch.setattr(sys, "argv", ["", "--device", "cuda", "--out", str(path)])
    bench_decode.main()

    result = json.loads(path.read_text())
    assert result["machine"]["device"] == "cuda"
    assert {row["launch"] for row in result["rows"]} == {"stream", "graph"}
    every = cells(result)
    assert len(every) == 8
    for cell in every:
        assert {COPY, EXACT, "grouped matmul, bf16"} <= cell.rows.keys()
        assert len(cell.sifted()) == (4 if cell.keys == 300 else 0)
        assert all(row["error"] < 0.02 for row in cell.rows.values() if "error" in row)
    loaded = [cell.rows[SIFTED]["loaded_fraction"] for cell in every if cell.keys == 300]
    assert all(0.05 < fraction < 0.2 for fraction in loaded)
    # What the CPU's SDPA has no backend for is told, not hidden.
    assert {refusal["name"] for refusal in result["refused"]} == {"SDPA cuDNN, bf16"}
    assert "refused:" in capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", [*sys.argv, "--seconds", "-1"])
    bench_decode.main()
    assert "time is up, left out: Llama-3.2-1B, bf16, batch 1, 300" in capsys.readouterr().out
    assert json.loads(path.read_text())["rows"] == []


def test_the_cases_fit_the_gpus_they_are_for():
    assert max(case.kv_bytes for case in GPU.cases) < 40e9
    assert len(set(GPU.cases)) == len(GPU.cases)
    primary = {(case.num_keys, case.batch) for case in GPU.cases if case.shape == LLAMA_8B}
    assert {(keys, batch) for keys in (4096, 32768, 131072) for batch in (1, 8, 64)} <= primary


def test_calls_are_timed_by_the_clock_given():
    calls = {"short": lambda: None, "long": lambda: None}
    ms = {id(calls["short"]): 1.0, id(calls["long"]): 80.0}
    timings = timing.measure(calls, clock=lambda call, num_calls: ms[id(call)], min_sample_ms=0.0)
    assert timings["short"].median_ms == 1.0
    assert timings["short"].repeats == 21
    assert 3 <= timings["long"].repeats < 10


def test_gathers_are_tabulated():
    rows = [
        {
            "load": load,
            "instruction": instruction,
            "kept": kept,
            "rows_in_flight": 32 * blocks,
            "blocks_per_sm": blocks,
            "gb_per_s": 1000.0 * kept * blocks,
        }
        for load in ("batch 1", "batch 64")
        for instruction in ("cp.async", "cp.async.bulk")
        for kept in (1.0, 0.1)
        for blocks in (1, 2)
    ]
    head = {"gpu": "a made-up GPU", "copy_gb_per_s": 2000.0, "read_gb_per_s": 2100.0}
    output = "\n".join(json.dumps(line) for line in (head, *rows))
    text = bench_gather.tables(bench_gather.parse(output))
    assert "a made-up GPU: copy 2,000 GB/s" in text
    assert text.count("cp.async.bulk        64 in flight    100%    10%") == 2


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_gather_program_compiles(architecture, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gather, "PROGRAM", tmp_path / "gather_rows")
    command = [*bench_gather.compile_command(architecture), "-Xptxas=--warn-on-spills"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    if not torch.cuda.is_available():
        run = subprocess.run([tmp_path / "gather_rows"], capture_output=True, text=True)
        assert run.returncode == 1
        assert "gather_rows: cudaGetDeviceProperties must succeed, got" in run.stderr


NCU = """==PROF== Connected to process 1
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","1","spin_kernel(long)","dram__bytes_read.sum","byte","0"
"0","1","spin_kernel(long)","dram__bytes_write.sum","byte","0"
"0","1","spin_kernel(long)","gpu__time_duration.sum","nsecond","2000"
"1","1","decode_kernel","dram__bytes_read.sum","byte","1,048,576"
"1","1","decode_kernel","dram__bytes_write.sum","byte","512"
"1","1","decode_kernel","gpu__time_duration.sum","nsecond","10,000"
"2","1","spin_kernel(long)","dram__bytes_read.sum","byte","0"
"2","1","spin_kernel(long)","dram__bytes_write.sum","byte","0"
"2","1","spin_kernel(long)","gpu__time_duration.sum","nsecond","2000"
"3","1","flash, split","dram__bytes_read.sum","byte","1000000"
"3","1","flash, split","dram__bytes_write.sum","byte","7"
"3","1","flash, split","gpu__time_duration.sum","nsecond","20,500"
"4","1","flash, combine","dram__bytes_read.sum","byte","48576"
"4","1","flash, combine","dram__bytes_write.sum","byte","8"
"4","1","flash, combine","gpu__time_duration.sum","nsecond","1,500"
"""


def test_counters_are_told_apart_by_call():
    where = {"shape": "Llama-3.1-8B", "batch": 1, "keys": 4096, "loaded_fraction": 1.0}
    facts = [{**where, "name": name, "bytes": 1 << 20} for name in (EXACT, "SDPA flash, bf16")]
    rows = profile_cuda.merge(facts, profile_cuda.kernels(NCU))
    assert [row["launches"] for row in rows] == [1, 2]
    assert [row["read_over_model"] for row in rows] == [1.0, 1.0]
    assert [row["written_bytes"] for row in rows] == [512, 15]
    assert [row["gpu_us"] for row in rows] == [10.0, 22.0]
    assert rows[1]["kernels"] == ["flash, split", "flash, combine"]
    assert "100.0%" in profile_cuda.table(rows)

    with pytest.raises(SystemExit, match=r"ncu must see 1 calls, got 2 of spin_kernel"):
        profile_cuda.merge(facts[:1], profile_cuda.kernels(NCU))
    with pytest.raises(SystemExit, match=r"ncu must give a table, got: ==ERROR== no permission"):
        profile_cuda.kernels("==ERROR== no permission")
