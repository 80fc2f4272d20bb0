"""Half precision, encoder-decoders and vision-language models."""

from __future__ import annotations

import pytest
import torch
import transformers
from configurations import EXACT
from modes import NEW, generate, prompt
from tiny_models import LAYERS, VERSION, VOCABULARY, build, finish

import sift_attention as sift
from sift_attention.hf.attention import dense


@pytest.fixture
def model():
    return build("llama")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, dtype):
    model = model.to(dtype)
    _, expected = generate(model, prompt())
    with sift.hf.enabled(model, EXACT) as handle:
        _, logits = generate(model, prompt())
    # Only the first steps: rounding may choose another token later.
    torch.testing.assert_close(logits[:2], expected[:2], atol=0.1, rtol=0)
    assert handle.stats().total.decode_calls == (NEW - 1) * LAYERS


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


def test_an_attention_module_of_a_derived_class():
    """Parametrizations and FSDP give a module a class of their own, far from its model's code."""
    model = build("gpt_oss")
    _, expected = generate(model, prompt())
    attention = model.model.layers[0].self_attn
    torch.nn.utils.parametrize.register_parametrization(attention, "sinks", torch.nn.Identity())
    assert type(attention).__module__ != type(model).__module__
    with sift.hf.enabled(model, EXACT) as handle:
        _, logits = generate(model, prompt())
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert handle.stats().total.dense_calls == {"sliding window": NEW - 1}


def test_softcap_without_the_eager_attention_of_its_model():
    class Lonely(torch.nn.Module):
        is_causal = True

    rows = torch.zeros(1, 1, 1, 32)
    with pytest.raises(NotImplementedError, match="got none beside Lonely"):
        dense(Lonely(), rows, rows, rows, None, 1.0, 0.0, {"softcap": 2.0})
