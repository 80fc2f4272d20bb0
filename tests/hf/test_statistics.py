"""What is counted, and the reasons to decode dense."""

from __future__ import annotations

import warnings

import pytest
import torch
from configurations import LONG, UNIFORM
from modes import NEW, generate, prompt
from tiny_models import LAYERS, build
from transformers import DynamicCache

import sift_attention as sift
from sift_attention.hf.attention import Forward
from sift_attention.hf.cache import CacheState
from sift_attention.hf.stats import Totals


@pytest.fixture
def model():
    return build("llama")


def test_statistics(model):
    with sift.hf.enabled(model, UNIFORM) as handle:
        generate(model, prompt())
        stats = handle.stats()
        lines = str(stats).splitlines()
        handle.reset_stats()
        assert handle.stats().total.keys == 0
        generate(model, prompt(), cache_implementation="static")
        assert handle.stats().total.keys == stats.total.keys
    num_kv_heads, row_bytes = 2, 32 * 4
    keys = 2 * num_kv_heads * sum(range(21, 20 + NEW))
    assert [layer.keys for layer in stats.layers.values()] == [keys, keys]
    assert stats.total.keys == 2 * keys
    assert stats.total.rows_loaded == sum(layer.rows_loaded for layer in stats.layers.values())
    assert 0.0 < stats.total.loaded_fraction < 1.0
    assert 0.0 < stats.total.dropped_mass < 1.0
    assert stats.total.bytes_dense == 2 * stats.total.keys * row_bytes
    assert stats.total.bytes_read == (stats.total.keys + stats.total.rows_loaded) * row_bytes
    assert len(lines) == 1 + LAYERS + 1
    assert len({len(line) for line in lines}) == 1


def test_finished_rows_do_not_count(model):
    tokens = prompt(2, LONG)
    with sift.hf.enabled(model, UNIFORM) as handle:
        free, _ = generate(model, tokens)
        everything = handle.stats().total
        end = free[0, LONG + 1].item()  # the second new token of the first row
        assert end not in free[1, LONG:]
        handle.reset_stats()
        generate(model, tokens, eos_token_id=end, pad_token_id=0)
        total = handle.stats().total
    # Row 0 is fed its two tokens, then padding.
    assert total.decode_calls == everything.decode_calls
    assert total.head_steps == everything.head_steps // 2 + 2 * 2 * 4
    assert total.keys == 2 * 2 * (sum(range(LONG + 1, LONG + NEW)) + 2 * LONG + 3)


def test_idle_use_warns_once(model):
    match = "no decode step was sifted: no forward had one query"
    with pytest.warns(UserWarning, match=match), sift.hf.enabled(model, UNIFORM), torch.no_grad():
        model(prompt(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with sift.hf.enabled(model, UNIFORM):
            pass


def test_the_inner_model_runs_dense_and_says_so(model):
    with sift.hf.enabled(model, UNIFORM), torch.no_grad():
        cache = DynamicCache(config=model.config)
        model.model(prompt(1), past_key_values=cache)
        with pytest.warns(UserWarning, match="decodes dense"):
            model.model(torch.tensor([[5]]), past_key_values=cache)


def test_training_and_gradients_run_dense(model):
    with sift.hf.enabled(model, UNIFORM) as handle:
        cache = DynamicCache(config=model.config)
        model(prompt(1), past_key_values=cache)
        model(torch.tensor([[5]]), past_key_values=cache).logits.sum().backward()
        assert model.lm_head.weight.grad is not None
        assert model.model.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0
        with torch.no_grad():
            model(torch.tensor([[5]]), past_key_values=cache)
            model.train()
            model(torch.tensor([[5]]), past_key_values=cache)
        total = handle.stats().total
    assert total.dense_calls == {"gradients": LAYERS, "training": LAYERS}
    assert total.decode_calls == LAYERS


def test_skipped_layers(model):
    config = sift.SiftConfig(c=1.0, min_keys=0, skip_layers=(0,))
    with sift.hf.enabled(model, config) as handle:
        generate(model, prompt())
    layers = handle.stats().layers
    assert layers[0].dense_calls == {"skipped layer": NEW - 1}
    assert layers[0].decode_calls == 0
    assert layers[1].decode_calls == NEW - 1
    assert layers[1].loaded_fraction < 1.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"head_dim": 16}, "head size"), ({"dtype": torch.float64}, "dtype")],
)
def test_unsupported_shapes_run_dense(change, reason):
    dtype = change.pop("dtype", torch.float32)
    model = build("llama", **change).to(dtype)
    _, expected = generate(model, prompt())
    with pytest.warns(UserWarning, match=reason), sift.hf.enabled(model, UNIFORM) as handle:
        _, logits = generate(model, prompt())
    assert torch.equal(logits, expected)
    assert handle.stats().total.dense_calls == {reason: (NEW - 1) * LAYERS}


def test_masks_are_worked_out_once_a_forward():
    mask = torch.ones(1, 1, 1, 9, dtype=torch.bool)
    key = torch.zeros(1, 2, 9, 32)
    forward = Forward(CacheState(UNIFORM, Totals()))
    first = forward.attended(mask, key, 1)
    assert forward.attended(mask, key, 1) is first
    other = torch.zeros(1, 1, 1, 9, dtype=torch.bool)
    assert forward.attended(other, key, 1).count.item() == 0
    assert forward.attended(None, key, 1).count.item() == 9
    assert forward.attended(None, key[:, :, :5], 1).count.item() == 5
    assert forward.attended(torch.zeros(1, 1, 1, 9), key, 1) is None
