"""Models on a GPU: every kind of cache, compiled into CUDA graphs by transformers."""

from __future__ import annotations

import pytest
import torch
from modes import NEW, generate, left_padded, prompt
from tiny_models import LAYERS, build
from torch._dynamo.utils import counters
from transformers import DynamicCache, StaticCache

import sift_attention as sift

pytestmark = pytest.mark.usefixtures("cuda")

SIFTING = sift.SiftConfig(c=1.0, min_keys=0)
CALIBRATED = sift.SiftConfig(threshold="quantile", quantile=0.5, min_keys=0, warmup_steps=2)


def build_for_cuda():
    return build("llama", head_dim=64).bfloat16()


def forced(model, cache, num_steps=30):
    """Logits of one token after another, whatever the model would have chosen."""
    tokens = prompt(length=140 + num_steps)
    with torch.no_grad():
        model(tokens[:, :140], past_key_values=cache)
        steps = [
            model(tokens[:, i : i + 1], past_key_values=cache).logits
            for i in range(140, 140 + num_steps)
        ]
    return torch.cat(steps, dim=1).float()


def make_caches(model):
    return [DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=180)]


def test_exact_equals_the_stock_attention():
    model = build_for_cuda()
    expected = forced(model, DynamicCache(config=model.config))
    for cache in make_caches(model):
        with sift.hf.enabled(model, sift.SiftConfig(c=0)) as handle:
            logits = forced(model, cache)
        assert handle.stats().total.decode_calls == 30 * LAYERS
        assert (logits - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("config", [SIFTING, CALIBRATED], ids=["uniform", "quantile"])
def test_the_kind_of_cache_changes_nothing(config):
    model = build_for_cuda()
    results = []
    for cache in make_caches(model):
        with sift.hf.enabled(model, config) as handle:
            results.append((forced(model, cache), handle.stats().total))
    (dynamic, total), (static, static_total) = results
    assert (static - dynamic).norm() < 0.05 * dynamic.norm()
    assert static_total.rows_loaded == pytest.approx(total.rows_loaded, rel=0.02)
    assert total.unfitted_heads == 0
    assert total.loaded_fraction < 0.97


@pytest.mark.parametrize("config", [SIFTING, CALIBRATED], ids=["uniform", "quantile"])
@pytest.mark.parametrize("inputs", ["whole", "left_padded"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate(config, inputs, cache):
    """transformers compiles the steps of a static cache into CUDA graphs by itself."""
    model = build_for_cuda()
    inputs = prompt(length=140) if inputs == "whole" else left_padded()
    torch.compiler.reset()
    counters.clear()
    with sift.hf.enabled(model, config) as handle:
        for repeat in range(3):
            _, logits = generate(model, inputs, cache_implementation=cache)
            assert logits.isfinite().all()
            assert handle.stats().total.decode_calls == (repeat + 1) * (NEW - 1) * LAYERS
    assert handle.stats().total.dense_calls == {}
    assert counters["inductor"]["cudagraph_skips"] == 0
