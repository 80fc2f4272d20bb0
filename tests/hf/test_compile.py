"""Compiled decoding: whole graphs, no recompilation, the results of eager decoding."""

from __future__ import annotations

import pytest
import torch
from modes import NEW, generate, left_padded, prompt
from tiny_models import FAMILIES, VERSION, build
from torch._dynamo.utils import counters
from transformers import CompileConfig, StaticCache

import sift_attention as sift

SIFTING = sift.SiftConfig(c=1.0, min_keys=0)
CALIBRATED = sift.SiftConfig(threshold="quantile", quantile=0.5, min_keys=0, warmup_steps=2)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(backend: str = "eager", fullgraph: bool = True) -> dict[str, object]:
    """Options of `generate` that compile the decode steps as on an accelerator."""
    config = CompileConfig(fullgraph=fullgraph, backend=backend, mode=None)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def num_graphs() -> int:
    return counters["stats"].get("unique_graphs", 0)


@pytest.mark.row(32)
@pytest.mark.parametrize(
    ("family", "backend", "config"),
    [
        ("llama", "eager", sift.SiftConfig(c=0)),
        ("llama", "inductor", SIFTING),
        ("llama", "eager", CALIBRATED),
        ("gemma2", "aot_eager", SIFTING),
        ("gpt_oss", "aot_eager", SIFTING),
        ("gemma3n", "eager", SIFTING),
    ],
)
def test_generate_compiles_once_and_equals_eager(family, backend, config):
    if family == "gpt_oss" and VERSION.major < 5:
        pytest.skip("the stock experts do not compile as a whole")
    model = build(family)
    inputs = prompt(length=140) if config is CALIBRATED else left_padded()
    with sift.hf.enabled(model, config) as handle:
        tokens, logits = generate(model, inputs)
        calls = handle.stats().total.decode_calls
        assert calls == (NEW - 1) * FAMILIES[family].full_layers
    with sift.hf.enabled(model, config) as handle:
        for repeat in range(3):
            again = generate(model, inputs, **compiled(backend))
            torch.testing.assert_close(again[1], logits, atol=1e-5, rtol=0)
            assert torch.equal(again[0], tokens)
            assert handle.stats().total.decode_calls == (repeat + 1) * calls
            if repeat == 0:
                graphs = num_graphs()
        assert num_graphs() == graphs <= 2
    assert not counters["graph_break"]


@pytest.mark.skipif(VERSION.major < 5, reason="chunks bypass the model's hooks")
@pytest.mark.parametrize("config", [SIFTING, CALIBRATED], ids=["uniform", "quantile"])
def test_chunked_prefill_compiles(config):
    model = build("llama")
    inputs = prompt(length=140)
    fullgraph = VERSION.release[:2] != (5, 18)  # where the stock model breaks the graph, too
    with sift.hf.enabled(model, config) as handle:
        _, logits = generate(model, inputs)
        expected = handle.stats().total
        handle.reset_stats()
        for _ in range(2):
            again = generate(model, inputs, prefill_chunk_size=32, **compiled(fullgraph=fullgraph))
            torch.testing.assert_close(again[1], logits, atol=1e-5, rtol=0)
        total = handle.stats().total
    assert not counters["graph_break"] or not fullgraph
    assert total.rows_loaded == 2 * expected.rows_loaded < total.keys
    assert total.dropped == pytest.approx(2 * expected.dropped, rel=1e-4)
    assert total.unfitted_heads == 0


def test_finished_rows_do_not_count_when_compiled():
    model = build("llama")
    inputs = prompt()
    end = generate(model, inputs)[0][0, -NEW + 1].item()
    totals = []
    for options in ({}, compiled()):
        with sift.hf.enabled(model, sift.SiftConfig(c=0)) as handle:
            generate(model, inputs, eos_token_id=end, **options)
        totals.append(handle.stats().total)
    assert totals[0] == totals[1]
    assert totals[0].head_steps < (NEW - 1) * 2 * 2 * 4
    assert not counters["graph_break"]


@pytest.mark.row(32)
def test_two_static_caches_share_a_graph():
    model = build("llama")
    step = torch.compile(model, backend="eager", fullgraph=True)
    results = []
    with sift.hf.enabled(model, SIFTING), torch.no_grad():
        caches = [StaticCache(config=model.config, max_cache_len=40) for _ in range(2)]
        for cache in caches:
            model(prompt(), past_key_values=cache)
        for token in range(3, 6):
            tokens = torch.full((2, 1), token)
            # Before transformers 5 a model cannot tell the position inside a whole graph.
            position = {"cache_position": torch.tensor([17 + token])} if VERSION.major < 5 else {}
            results.append(
                [step(tokens, past_key_values=cache, **position).logits for cache in caches]
            )
    for first, second in results:
        assert torch.equal(first, second)
    assert num_graphs() == 1
    assert not counters["graph_break"]


def test_guards_follow_enable_disable_and_config():
    model = build("llama")
    step = torch.compile(model, backend="eager")
    new = torch.full((2, 1), 5)

    def decode(call) -> torch.Tensor:
        cache = StaticCache(config=model.config, max_cache_len=40)
        with torch.no_grad():
            model(prompt(), past_key_values=cache)
            return call(new, past_key_values=cache).logits

    stock = decode(model)
    torch.testing.assert_close(decode(step), stock)
    for c in (1.0, 8.0, 0.0):
        with sift.hf.enabled(model, sift.SiftConfig(c=c, min_keys=0)) as handle:
            sifted = decode(step)
            assert handle.stats().total.decode_calls == 2
            torch.testing.assert_close(sifted, decode(model))
            assert torch.allclose(sifted, stock, atol=1e-5) == (c == 0.0)
        torch.testing.assert_close(decode(step), stock)


@pytest.mark.row(32)
def test_64_steps_of_a_compiled_model_with_a_dynamic_cache():
    model = build("llama")
    with sift.hf.enabled(model, SIFTING) as handle:
        tokens, logits = generate(model, prompt(), max_new_tokens=65)
        calls = handle.stats().total.decode_calls
        model.forward = torch.compile(model.forward, backend="eager", dynamic=True)
        again = generate(model, prompt(), max_new_tokens=65)
    torch.testing.assert_close(again[1], logits, atol=1e-5, rtol=0)
    assert torch.equal(again[0], tokens)
    assert handle.stats().total.decode_calls == 2 * calls
    assert num_graphs() <= 3  # the prompt, and at most two kinds of steps
