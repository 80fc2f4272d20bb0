"""Switching on and off."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from configurations import EXACT, UNIFORM
from modes import NEW, generate, prompt, step_through
from tiny_models import LAYERS, build
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

import sift_attention as sift


@pytest.fixture
def model():
    return build("llama")


def test_leaving_the_context_restores_the_model(model):
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        before = dict(vars(model))
        with sift.hf.enabled(model, EXACT):
            assert model.config._attn_implementation == "sift"
            generate(model, prompt())
        assert model.config._attn_implementation == attention
        assert vars(model).keys() == before.keys() | {"_previous_max_cache_length"} & set(
            vars(model)
        )
        assert not model._forward_pre_hooks
        generate(model, prompt())


def test_an_exception_restores_the_model(model):
    with pytest.raises(ValueError, match="output_attentions"), sift.hf.enabled(model, EXACT):
        model(prompt(1), output_attentions=True)
    assert model.config._attn_implementation == "sdpa"
    assert not model._forward_pre_hooks


def test_enabling_twice_is_one_hook(model):
    handle = sift.hf.enable(model, EXACT)
    assert sift.hf.enable(model, UNIFORM) is handle
    assert handle.config is UNIFORM
    assert len(model._forward_pre_hooks) == 1
    handle.disable()
    handle.disable()
    assert not model._forward_pre_hooks
    assert model.config._attn_implementation == "sdpa"


def test_nested_contexts_restore_the_outer_configuration(model):
    _, exact = generate(model, prompt())
    with sift.hf.enabled(model, EXACT) as outer:
        with sift.hf.enabled(model, UNIFORM) as inner:
            assert inner is outer
            assert not torch.allclose(generate(model, prompt())[1], exact, atol=1e-3)
        assert outer.config is EXACT
        torch.testing.assert_close(generate(model, prompt())[1], exact, atol=1e-5, rtol=0)


def test_a_new_configuration_reaches_a_used_cache(model):
    cache = DynamicCache(config=model.config)
    with sift.hf.enabled(model, EXACT), torch.no_grad():
        step_through(model, cache, prompt(1))
        state = cache.sift_state
    with sift.hf.enabled(model, UNIFORM), torch.no_grad():
        step_through(model, cache, prompt(1, 3))
        assert cache.sift_state is not state
        assert cache.sift_state.config is UNIFORM


@pytest.mark.row(37)
@pytest.mark.parametrize("cache_class", ["dynamic", "static"])
def test_steps_without_sift_in_between(model, cache_class):
    """Enable, decode, disable, decode, enable again: the running sum is taken anew."""
    new = torch.tensor([[5]])
    if cache_class == "dynamic":
        cache = DynamicCache(config=model.config)
    else:
        cache = StaticCache(config=model.config, max_cache_len=40)
    with torch.no_grad():
        with sift.hf.enabled(model, UNIFORM):
            model(prompt(1), past_key_values=cache)
            model(new, past_key_values=cache)
        model(new, past_key_values=cache)
        model(new, past_key_values=cache)
        with sift.hf.enabled(model, UNIFORM):
            model(new, past_key_values=cache)
            values = cache.sift_state.layers[0].values
    torch.testing.assert_close(values.total, cache.layers[0].values.sum(2))


@pytest.mark.row(37)
def test_a_filled_static_cache_bypassed_for_a_step_decodes_exactly(model):
    """What neither host nor sum can know, the device notices."""
    new = torch.tensor([[5]])
    results = []
    for config in (EXACT, UNIFORM):
        cache = StaticCache(config=model.config, max_cache_len=40)
        with sift.hf.enabled(model, config), torch.no_grad():
            model(prompt(1), past_key_values=cache)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.model(new, past_key_values=cache)
            results.append(model(new, past_key_values=cache).logits)
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=0)


@pytest.mark.row(37)
@pytest.mark.filterwarnings("ignore:attn_implementation")
@pytest.mark.parametrize("padding", [0, 3])
def test_a_dynamic_cache_bypassed_for_a_step_is_summed_again(model, padding):
    mask = torch.ones(1, 23, dtype=torch.long)
    mask[:, :padding] = 0
    tokens, new = prompt(1), torch.tensor([[5]])
    cache = DynamicCache(config=model.config)
    with sift.hf.enabled(model, UNIFORM), torch.no_grad():
        model(tokens, attention_mask=mask[:, :20], past_key_values=cache)
        for length in (21, 22):
            model.model(new, attention_mask=mask[:, :length], past_key_values=cache)
        model(new, attention_mask=mask, past_key_values=cache)
    values = cache.layers[0].values[:, :, padding:]
    torch.testing.assert_close(cache.sift_state.layers[0].values.total, values.sum(2))


def test_positional_cache_and_no_cache(model):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        _, expected = generate(model, prompt(1))
        with sift.hf.enabled(model, EXACT) as handle:
            logits = [model(prompt(1), None, None, cache).logits[:, -1]]
            for _ in range(NEW - 1):
                token = logits[-1].argmax(-1, keepdim=True)
                logits.append(model(token, None, None, cache).logits[:, -1])
            assert handle.stats().total.decode_calls == (NEW - 1) * LAYERS
            out = model(prompt(1), use_cache=False)
            assert out.past_key_values is None
    torch.testing.assert_close(torch.stack(logits), expected, atol=1e-5, rtol=0)


def test_save_and_load(model, tmp_path):
    with sift.hf.enabled(model, EXACT):
        model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sift").eval()
    loaded.generation_config = model.generation_config
    _, expected = generate(model, prompt())
    with pytest.warns(UserWarning, match="decodes dense"):
        _, logits = generate(loaded, prompt())
    assert torch.equal(logits, expected)
    with sift.hf.enabled(loaded, EXACT) as handle:
        generate(loaded, prompt())
    assert handle.stats().total.decode_calls == (NEW - 1) * LAYERS


def test_an_enabled_model_can_be_copied(model):
    with sift.hf.enabled(model, UNIFORM) as handle:
        other = copy.deepcopy(model)
        _, expected = generate(model, prompt())
        _, logits = generate(other, prompt())
        calls = handle.stats().total.decode_calls
    assert torch.equal(logits, expected)
    assert calls == (NEW - 1) * LAYERS
    other.sift_handle.disable()
    assert not other._forward_pre_hooks


@pytest.mark.row(33)
def test_inference_mode_then_no_grad(model):
    with sift.hf.enabled(model, UNIFORM):
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(prompt(1), past_key_values=cache)
            model(torch.tensor([[5]]), past_key_values=cache)
        with torch.no_grad():
            model(torch.tensor([[5]]), past_key_values=cache)
            cache.reorder_cache(torch.tensor([0]))
            cache.reset()
