"""benchmarks/bench_generate.py: every mode decodes the same text, and counts what it claims."""

import dataclasses
import json
import sys

import pytest
import torch
import transformers
from torch._dynamo.utils import counters

import bench_generate as bench
import writers

NUM_KEYS = 600


@pytest.fixture(scope="module")
def model():
    bench.register_grouped_matmul(NUM_KEYS)
    return bench.build_model(num_layers=1, vocab_size=256)


@pytest.fixture(scope="module")
def logits(model):
    return bench.Writer(bench.MODES["cpu"][0], model, NUM_KEYS, 1).warm_up()


@pytest.mark.parametrize("index", range(7))
def test_a_mode_decodes_what_sdpa_does(model, logits, index):
    mode = bench.MODES["cpu"][index]
    writer = bench.Writer(mode, model, NUM_KEYS, 1)
    own = writer.warm_up()
    writer.write()

    assert own.shape == logits.shape
    error = (own - logits).norm() / logits.norm()
    assert len(writer.seconds_per_token) == mode.num_tokens
    assert writer.text.shape[1] == NUM_KEYS + 1 + len(logits) + mode.num_tokens
    assert (writer.graph_skips, writer.graph_breaks) == (0, 0)
    if mode.name.startswith("sift,"):
        assert error < 0.2
        assert 0.05 < writer.loaded_fraction < 0.3
    else:
        assert error < 0.05
        assert writer.loaded_fraction == 1.0


def test_compiled_steps_write_what_others_do(monkeypatch):
    """As on a GPU, where generate() compiles the steps over a static cache."""
    from transformers.generation.configuration_utils import GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    for of_device in (writers.WARM_UP_TOKENS, writers.UNCOMPILED_TOKENS):
        monkeypatch.setitem(of_device, "cpu", of_device["cuda"])
    compiled, eager = (
        bench.build_model(num_layers=1, vocab_size=256, shape=bench.LLAMA_1B) for _ in range(2)
    )
    config = transformers.CompileConfig(backend="aot_eager", mode=None)
    config._compile_all_devices = True
    compiled.generation_config = GenerationConfig(compile_config=config)
    for mode in (mode for mode in bench.MODES["cuda"] if mode.cache == "static"):
        fast = bench.Writer(mode, compiled, NUM_KEYS, 1)
        slow = bench.Writer(mode, eager, NUM_KEYS, 1)
        torch.testing.assert_close(fast.warm_up(), slow.warm_up(), atol=1e-2, rtol=1e-2)
        num_graphs = counters["stats"]["unique_graphs"]
        fast.write()
        assert counters["stats"]["unique_graphs"] == num_graphs > 0
        assert hasattr(fast.model, "_compiled_call")
        assert len(fast.seconds_per_token) == mode.num_tokens
        assert fast.graph_breaks == 0


def test_a_token_reads_weights_and_keys_and_loaded_values(model):
    weights = 2 * model.num_parameters()
    rows = NUM_KEYS * 8 * 64 * 2

    assert bench.num_bytes(model, 0, 1.0) == weights
    assert bench.num_bytes(model, NUM_KEYS, 0.25) == weights + rows * 5 // 4


def test_a_token_does_not_read_an_input_embedding_of_its_own():
    shape = dataclasses.replace(bench.LLAMA_1B, is_tied=False)
    model = bench.build_model(num_layers=1, vocab_size=256, shape=shape)

    assert bench.weight_bytes(model) == 2 * (model.num_parameters() - 256 * 2048)


def test_the_program_leaves_a_result_and_a_plot(model, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "build_model", lambda shape, device: model)
    monkeypatch.setattr(bench, "LENGTHS", {"cpu": {"quick": (0, 300)}})
    monkeypatch.setattr(bench, "ROUNDS", {"quick": 2})
    path = tmp_path / "generate_cpu.json"
    monkeypatch.setattr(sys, "argv", ["", "--out", str(path)])
    bench.main()

    result = json.loads(path.read_text())
    assert result["weight_bytes"] == bench.weight_bytes(model)
    modes = [mode.name for mode in bench.MODES["cpu"]]
    assert [(row["keys"], row["mode"]) for row in result["rows"]] == [
        (keys, mode) for keys in (0, 300) for mode in modes
    ]
    assert path.with_suffix(".png").exists()
    assert modes[0] in capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", [*sys.argv, "--seconds", "-1"])
    bench.main()
    assert json.loads(path.read_text())["rows"] == []
    assert "time is up, left out: sift, our cache, 300 keys" in capsys.readouterr().out
