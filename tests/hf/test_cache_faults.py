"""Caches in the wrong hands, cropped, offloaded, used in other modes and by several models."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from configurations import EXACT, LONG, QUANTILE, UNIFORM
from modes import NEW, generate, prompt, step_through
from tiny_models import LAYERS, build
from torch import Tensor
from transformers import DynamicCache, StaticCache

import sift_attention as sift

WARM_UP = sift.SiftConfig(threshold="quantile", quantile=0.5, min_keys=0, warmup_steps=3)
CONFIGS = pytest.mark.parametrize(
    "config", [UNIFORM, QUANTILE, WARM_UP], ids=["uniform", "quantile", "warm-up"]
)
TOKEN = torch.tensor([[5]])


@pytest.fixture(scope="module")
def model():
    return build("llama")


def filled(model, kind: str = "dynamic", tokens: Tensor | None = None):
    """A cache with a prompt."""
    tokens = prompt(1, LONG) if tokens is None else tokens
    cache = DynamicCache(config=model.config)
    if kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=tokens.shape[1] + 3 * NEW)
    with torch.no_grad():
        model(tokens, past_key_values=cache)
    return cache


@pytest.mark.filterwarnings("ignore:sift_attention. no decode step was sifted")
@pytest.mark.row(36, 38)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_of_another_model_is_refused(model, kind):
    other = build("llama", seed=1)
    with sift.hf.enabled(model, QUANTILE), sift.hf.enabled(other, QUANTILE):
        cache = filled(model, kind)
        twin = copy.deepcopy(cache)
        _, expected = step_through(model, copy.deepcopy(cache), TOKEN)
        with pytest.raises(ValueError, match=r"filled by this model, got one that another model"):
            step_through(other, cache, TOKEN)
        with pytest.raises(ValueError, match=r"filled by this model, got one that another model"):
            generate(other, prompt(1, LONG + 1), past_key_values=cache)
        _, logits = step_through(model, cache, TOKEN)
        assert torch.equal(logits, expected)
        cache.reset()
        step_through(other, cache, prompt(1), steps=1)
        step_through(other, twin, TOKEN)  # weights may be the same: a copy is of no model
    with sift.hf.enabled(model, QUANTILE):
        cache = filled(model, kind)
    with sift.hf.enabled(model, QUANTILE):
        step_through(model, cache, TOKEN)


@pytest.mark.row(38)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3)])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_cache_of_another_batch_is_refused(model, kind, before, after, rows):
    """Where the stock caches raise, too."""
    tokens, more = prompt(before), torch.full((after, rows), 5)
    with sift.hf.enabled(model, UNIFORM) as handle:
        cache = filled(model, kind, tokens)
        with pytest.raises(RuntimeError), torch.no_grad():
            model(more, past_key_values=cache)
        assert handle.stats().total.decode_calls == 0
        handle.reset_stats()
        _, expected = step_through(model, filled(model, kind, tokens), more[:1].expand(before, -1))
        if kind == "dynamic":  # a static one has counted the tokens that it refused
            _, logits = step_through(model, cache, more[:1].expand(before, -1))
            assert torch.equal(logits, expected)


@pytest.mark.row(36, 37)
@CONFIGS
def test_a_cache_cropped_below_its_prompt_equals_a_shorter_prompt(model, config):
    tokens, other = prompt(1, LONG), prompt(1, LONG).flip(1)
    with sift.hf.enabled(model, config), torch.no_grad():
        for left in (LONG - 1, 60, 10, 0):
            cache = filled(model)
            step_through(model, cache, TOKEN)
            cache.crop(left - LONG - NEW)
            fresh = filled(model, tokens=tokens[:, :left]) if left else DynamicCache()
            laws = []
            for each in (cache, fresh):
                out = model(other, past_key_values=each)
                laws.append(each.sift_state.layers[0].log_alpha.clone())
                step_through(model, each, TOKEN)
            assert each.get_seq_length() == left + LONG + NEW
            if left in (10, 0):  # otherwise a fit of more than half the tokens stays
                torch.testing.assert_close(*laws, atol=1e-4, rtol=0)
            assert laws[0].isfinite().all()
            assert out.logits.isfinite().all()


@pytest.mark.row(38)
def test_two_models_decode_by_turns(model):
    """Each with its configuration, its caches and its counters."""
    models, configs = [model, build("llama", seed=1)], [UNIFORM, QUANTILE]
    alone = []
    for each, config in zip(models, configs, strict=True):
        with sift.hf.enabled(each, config) as handle:
            alone.append((generate(each, prompt(2, LONG))[1], handle.stats().total))
    handles = [sift.hf.enable(*pair) for pair in zip(models, configs, strict=True)]
    caches = [filled(each, tokens=prompt(2, LONG)[:, :-1]) for each in models]
    tokens = [prompt(2, LONG)[:, -1:]] * 2
    for handle in handles:
        handle.reset_stats()
    for step in range(NEW):
        for i, (logits, _) in enumerate(alone):
            tokens[i], out = step_through(models[i], caches[i], tokens[i], steps=1)
            if step == 0:  # the others decode what alone was the end of the prompt
                handles[i].reset_stats()
                caches[i] = filled(models[i], tokens=prompt(2, LONG))
                tokens[i] = logits[0].argmax(-1, keepdim=True)
            else:
                torch.testing.assert_close(out[0], logits[step], atol=1e-5, rtol=0)
    for handle, (_, total) in zip(handles, alone, strict=True):
        assert handle.stats().total.rows_loaded == total.rows_loaded
        assert handle.stats().total.decode_calls == total.decode_calls
        handle.disable()


@pytest.mark.row(10)
@pytest.mark.parametrize("residual", ["mean", "renormalize", "none"])
def test_a_law_that_keeps_everything_is_exact_to_the_bit(model, residual):
    exact = sift.SiftConfig(c=0, residual=residual)
    with sift.hf.enabled(model, exact):
        _, expected = generate(model, prompt())
    with sift.hf.enabled(model, sift.SiftConfig(c=1e-30, min_keys=0, residual=residual)) as handle:
        _, logits = generate(model, prompt())
    assert torch.equal(logits, expected)
    assert handle.stats().total.rows_loaded == handle.stats().total.keys


@pytest.mark.row(33)
@pytest.mark.parametrize("all_of_it", [True, False])
def test_autocast(model, all_of_it):
    """Its mixture of dtypes runs dense and is counted; float32 from a cache of it sifts."""

    def run() -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=all_of_it):
            cache = filled(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = step_through(model, cache, TOKEN, steps=1)[1]
        return mixed, step_through(model, cache, TOKEN, steps=1)[1]

    exact = step_through(model, filled(model), TOKEN, steps=1)[1]
    stock, stock_after = run()
    with sift.hf.enabled(model, EXACT) as handle:
        mixed, after = run()
    if all_of_it:
        assert torch.equal(mixed, stock)
        assert handle.stats().total.dense_calls["dtype"] == LAYERS
    else:
        assert (mixed - exact).abs().max() <= 2.0 * (stock - exact).abs().max()
        assert handle.stats().total.decode_calls == 2 * LAYERS
        torch.testing.assert_close(after, stock_after, atol=1e-1, rtol=0)


@pytest.mark.row(33, 36)
@pytest.mark.parametrize("change", ["repeat", "select", "reorder", "crop", "reset"])
def test_rows_changed_in_inference_mode_serve_in_no_grad(model, change):
    results = []
    with sift.hf.enabled(model, QUANTILE):
        for mode in (torch.inference_mode, torch.no_grad):
            with mode():
                cache = DynamicCache(config=model.config)
                model(prompt(3, LONG), past_key_values=cache)
                step_through(model, cache, TOKEN.expand(3, -1), steps=1)
                if change == "repeat":
                    cache.batch_repeat_interleave(2)
                elif change == "select":
                    cache.batch_select_indices(torch.tensor([2, 0]))
                elif change == "reorder":
                    cache.reorder_cache(torch.tensor([1, 1, 0]))
                elif change == "crop":
                    cache.crop(-4)
                else:
                    cache.reset()
            batch = {"repeat": 6, "select": 2}.get(change, 3)
            with torch.no_grad():
                model(prompt(batch, LONG), past_key_values=cache)
                results.append(step_through(model, cache, TOKEN.expand(batch, -1))[1])
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)


@pytest.mark.row(36)
def test_an_offloading_cache(model, monkeypatch):
    """On the CPU nothing moves, but the cache does all that it does for a GPU."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: stream)
    monkeypatch.setattr(torch, "Stream", nullcontext)
    results = []
    with sift.hf.enabled(model, QUANTILE) as handle:
        for options in ({}, {"offloading": True}):
            cache = DynamicCache(config=model.config, **options)
            with torch.no_grad():
                model(prompt(1, LONG), past_key_values=cache)
            results.append(step_through(model, cache, TOKEN)[1])
            cache.crop(-3)
            cache.batch_repeat_interleave(2)
            results.append(step_through(model, cache, TOKEN.expand(2, -1))[1])
    torch.testing.assert_close(results[:2], results[2:], atol=1e-5, rtol=0)
    assert handle.stats().total.decode_calls == 4 * NEW * LAYERS


@pytest.mark.filterwarnings("ignore:sift_attention. no decode step was sifted")
@pytest.mark.row(36)
def test_a_used_cache_outlives_disable(model):
    """It stays a working cache of the stock model, and sifts again when that does."""
    _, expected = step_through(model, filled(model), TOKEN)
    with sift.hf.enabled(model, EXACT):
        cache = filled(model)
    tokens, first = step_through(model, cache, TOKEN, steps=2)
    cache.reorder_cache(torch.tensor([0]))
    tokens, second = step_through(model, cache, tokens, steps=2)
    with sift.hf.enabled(model, EXACT) as handle:
        _, third = step_through(model, cache, tokens, steps=2)
    logits = torch.cat([first, second, third])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert handle.stats().total.decode_calls == 2 * LAYERS
