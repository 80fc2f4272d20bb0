"""benchmarks/: the programs that measure a GPU, as far as they run without one."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

import bench_authors
import bench_decode
import bench_gather
import machine
import profile_cuda
import timing
import workload
from cells import COPY, EXACT, SIFTED, cells
from suites import GPU, Suite
from workload import LLAMA_1B, LLAMA_8B, Case, make_problem


@pytest.fixture
def small_caches(monkeypatch):
    """So that a few copies of K and V are more than they hold."""
    monkeypatch.setattr(workload, "last_level_cache_bytes", lambda: 1 << 18)


def test_a_gpu_is_measured_as_a_cpu_is(small_caches, monkeypatch, tmp_path, capsys):
    """The same program, with the GPU's clock, graphs and copies put on the CPU."""

    def replayed(call, num_calls):
        return lambda: [call() for _ in range(num_calls)]

    monkeypatch.setattr(bench_decode, "captured", replayed)
    monkeypatch.setattr(bench_decode, "CudaClock", lambda calls_per_run=1: timing.host_ms)
    monkeypatch.setattr(bench_decode, "make_problem", lambda case, device: make_problem(case))
    monkeypatch.setattr(bench_decode.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(bench_decode, "copy_call", lambda: torch.ones(1 << 20).clone)
    monkeypatch.setattr(bench_decode, "peak_extra_bytes", lambda call, device: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(machine, "describe", lambda device: {"device": device})
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


class PlainKernel:
    """What the authors' extension computes, in PyTorch, for the layouts that it takes."""

    def decode_attn_fwd_gmem(self, q, k, v, bias, thresholds, scale):
        assert all(tensor.is_contiguous() for tensor in (q, k, v, bias, thresholds))
        assert {q.dtype, k.dtype, v.dtype} == {torch.float16}
        assert {bias.dtype, thresholds.dtype} == {torch.float32}
        assert thresholds.shape == q.shape[:2] == k.shape[:2]
        p = ((q.float() @ k.float().mT) * scale + bias).softmax(-1)
        return (p.where(p >= thresholds[..., None, None], 0.0) @ v.float()).half()


def test_the_authors_kernel_gets_the_same_step(small_caches, monkeypatch):
    monkeypatch.setattr(bench_authors, "CudaClock", lambda: timing.host_ms)
    monkeypatch.setattr(bench_authors, "make_problem", lambda case, device: make_problem(case))
    case = Case(LLAMA_8B, 400, 2, torch.float16)
    rows = {row["name"]: row for row in bench_authors.bench_case(case, PlainKernel())}
    assert rows.keys() == {"SDPA flash, fp16", EXACT, SIFTED, bench_authors.AUTHORS}
    assert rows[EXACT]["error"] < 1e-3
    assert rows[bench_authors.AUTHORS]["error"] < 0.1
    assert 0.05 < rows[bench_authors.AUTHORS]["loaded_fraction"] < 0.2


def test_the_authors_kernel_must_be_there(tmp_path):
    with pytest.raises(SystemExit, match=r"thresh_attn_c.cpp must exist, got none"):
        bench_authors.load_kernel(tmp_path)
