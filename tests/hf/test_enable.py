"""Switching on and off, statistics, and what is refused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers
from modes import NEW, generate, prompt, step_through
from tiny_models import LAYERS, VERSION, VOCABULARY, build, finish
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

import sift_attention as sift

SIFTING = sift.SiftConfig(c=1.0, min_keys=0)
EXACT = sift.SiftConfig(c=0)


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
    assert sift.hf.enable(model, SIFTING) is handle
    assert handle.config is SIFTING
    assert len(model._forward_pre_hooks) == 1
    handle.disable()
    handle.disable()
    assert not model._forward_pre_hooks
    assert model.config._attn_implementation == "sdpa"


def test_nested_contexts_restore_the_outer_configuration(model):
    _, exact = generate(model, prompt())
    with sift.hf.enabled(model, EXACT) as outer:
        with sift.hf.enabled(model, SIFTING) as inner:
            assert inner is outer
            assert not torch.allclose(generate(model, prompt())[1], exact, atol=1e-3)
        assert outer.config is EXACT
        torch.testing.assert_close(generate(model, prompt())[1], exact, atol=1e-5, rtol=0)


def test_a_new_configuration_reaches_a_used_cache(model):
    cache = DynamicCache(config=model.config)
    with sift.hf.enabled(model, EXACT), torch.no_grad():
        step_through(model, cache, prompt(1))
        state = cache.sift_state
    with sift.hf.enabled(model, SIFTING), torch.no_grad():
        step_through(model, cache, prompt(1, 3))
        assert cache.sift_state is not state
        assert cache.sift_state.config is SIFTING


@pytest.mark.parametrize("cache_class", ["dynamic", "static"])
def test_steps_without_sift_in_between(model, cache_class):
    """Enable, decode, disable, decode, enable again: the running sum is taken anew."""
    new = torch.tensor([[5]])
    if cache_class == "dynamic":
        cache = DynamicCache(config=model.config)
    else:
        cache = StaticCache(config=model.config, max_cache_len=40)
    with torch.no_grad():
        with sift.hf.enabled(model, SIFTING):
            model(prompt(1), past_key_values=cache)
            model(new, past_key_values=cache)
        model(new, past_key_values=cache)
        model(new, past_key_values=cache)
        with sift.hf.enabled(model, SIFTING):
            model(new, past_key_values=cache)
            values = cache.sift_state.layers[0].values
    torch.testing.assert_close(values.total, cache.layers[0].values.sum(2))


def test_the_inner_model_runs_dense_and_says_so(model):
    with sift.hf.enabled(model, SIFTING), torch.no_grad():
        cache = DynamicCache(config=model.config)
        model.model(prompt(1), past_key_values=cache)
        with pytest.warns(UserWarning, match="decodes dense"):
            model.model(torch.tensor([[5]]), past_key_values=cache)


def test_a_filled_static_cache_bypassed_for_a_step_decodes_exactly(model):
    """What neither host nor sum can know, the device notices."""
    new = torch.tensor([[5]])
    results = []
    for config in (EXACT, SIFTING):
        cache = StaticCache(config=model.config, max_cache_len=40)
        with sift.hf.enabled(model, config), torch.no_grad():
            model(prompt(1), past_key_values=cache)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.model(new, past_key_values=cache)
            results.append(model(new, past_key_values=cache).logits)
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=0)


def test_idle_use_warns_once(model):
    match = "no decode step was sifted: no forward had one query"
    with pytest.warns(UserWarning, match=match), sift.hf.enabled(model, SIFTING), torch.no_grad():
        model(prompt(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with sift.hf.enabled(model, SIFTING):
            pass


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


def test_training_and_gradients_run_dense(model):
    with sift.hf.enabled(model, SIFTING) as handle:
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
    with pytest.warns(UserWarning, match=reason), sift.hf.enabled(model, SIFTING) as handle:
        _, logits = generate(model, prompt())
    assert torch.equal(logits, expected)
    assert handle.stats().total.dense_calls == {reason: (NEW - 1) * LAYERS}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, dtype):
    model = model.to(dtype)
    _, expected = generate(model, prompt())
    with sift.hf.enabled(model, EXACT) as handle:
        _, logits = generate(model, prompt())
    # Only the first steps: rounding may choose another token later.
    torch.testing.assert_close(logits[:2], expected[:2], atol=0.1, rtol=0)
    assert handle.stats().total.decode_calls == (NEW - 1) * LAYERS


def test_statistics(model):
    with sift.hf.enabled(model, SIFTING) as handle:
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


def test_output_attentions_is_refused(model):
    with sift.hf.enabled(model, EXACT):
        with pytest.raises(ValueError, match="output_attentions must be False"):
            model(prompt(1), output_attentions=True)
        with pytest.raises(ValueError, match="output_attentions must be False"):
            generate(model, prompt(1), output_attentions=True)


def test_continuous_batching_is_refused(model):
    requests = [prompt(1)[0].tolist()]
    with sift.hf.enabled(model, EXACT):
        with pytest.raises(NotImplementedError, match="continuous batching"):
            model.generate_batch(requests)
        error = NotImplementedError if VERSION.major >= 5 else ValueError
        with pytest.raises(error, match=r"continuous batching|paged"):
            generate(model, prompt(1), cache_implementation="paged")


def test_speculation_on_a_static_cache_is_refused(model):
    # Every token is in the prompt, so that there are candidates to take back.
    tokens = torch.arange(2, VOCABULARY)[None].repeat(1, 2)
    options = {"prompt_lookup_num_tokens": 3, "eos_token_id": VOCABULARY}
    with sift.hf.enabled(model, EXACT):
        cache = StaticCache(config=model.config, max_cache_len=300)
        with pytest.raises(ValueError, match=r"(?i)assisted generat"):
            generate(model, tokens, past_key_values=cache, **options)
        with pytest.raises(ValueError, match="dynamic for assisted generation and prompt lookup"):
            cache.crop(-1)


def test_models_outside_the_attention_interface_are_refused():
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=1, n_head=2)
    model = transformers.BloomForCausalLM(config)
    with pytest.raises(ValueError, match=r"enable: model must .*, got BloomForCausalLM"):
        sift.hf.enable(model)
    assert not model._forward_pre_hooks


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
    with sift.hf.enabled(model, SIFTING) as handle:
        other = copy.deepcopy(model)
        _, expected = generate(model, prompt())
        _, logits = generate(other, prompt())
        calls = handle.stats().total.decode_calls
    assert torch.equal(logits, expected)
    assert calls == (NEW - 1) * LAYERS
    other.sift_handle.disable()
    assert not other._forward_pre_hooks


def test_inference_mode_then_no_grad(model):
    with sift.hf.enabled(model, SIFTING):
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(prompt(1), past_key_values=cache)
            model(torch.tensor([[5]]), past_key_values=cache)
        with torch.no_grad():
            model(torch.tensor([[5]]), past_key_values=cache)
            cache.reorder_cache(torch.tensor([0]))
            cache.reset()


@pytest.mark.skipif(VERSION.major >= 5, reason="its forward takes **kwargs")
def test_encoder_decoder_is_refused():
    model = transformers.BartForConditionalGeneration(
        transformers.BartConfig(d_model=64, encoder_layers=1, decoder_layers=1, vocab_size=128)
    )
    with pytest.raises(ValueError, match=r"forward of model must take \*\*kwargs, got Bart"):
        sift.hf.enable(model)


@pytest.mark.skipif(VERSION.major < 5, reason="its forward takes no **kwargs")
def test_encoder_decoder():
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=64,
        encoder_layers=1,
        decoder_layers=LAYERS,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=None,
        forced_eos_token_id=None,
        decoder_start_token_id=2,
    )
    model = finish(transformers.BartForConditionalGeneration(config).eval())
    for options in ({}, {"cache_implementation": "static"}, {"num_beams": 2}):
        _, expected = generate(model, prompt(), max_new_tokens=10, **options)
        with sift.hf.enabled(model, EXACT) as handle:
            _, logits = generate(model, prompt(), max_new_tokens=10, **options)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        # The first step has one query token, too. Cross-attention never counts.
        assert handle.stats().total.decode_calls == 10 * LAYERS
        assert not handle.stats().total.dense_calls


def test_vision_language_model():
    torch.manual_seed(0)
    text = build("llama").config
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=4, vision_feature_layer=-1
    )
    model = finish(transformers.LlavaForConditionalGeneration(config).eval())
    tokens = prompt(1)
    tokens[tokens == 4] = 5
    tokens[0, 2:6] = 4  # one image of 2 x 2 patches
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "pixel_values": torch.randn(1, 3, 16, 16),
    }
    vision_attention = model.config.vision_config._attn_implementation
    _, expected = generate(model, inputs)
    with sift.hf.enabled(model, EXACT) as handle:
        assert model.config.vision_config._attn_implementation == vision_attention
        _, logits = generate(model, inputs)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert handle.stats().total.decode_calls == (NEW - 1) * LAYERS
    assert model.config.text_config._attn_implementation == vision_attention
