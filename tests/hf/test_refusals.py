"""What cannot work says so, in one sentence and at once."""

from __future__ import annotations

import pytest
import torch
import transformers
from configurations import EXACT
from modes import generate, prompt
from tiny_models import VERSION, VOCABULARY, build
from transformers import StaticCache

import sift_attention as sift
from sift_attention.hf.version import check_version


@pytest.fixture
def model():
    return build("llama")


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


@pytest.mark.skipif(VERSION.major >= 5, reason="its forward takes **kwargs")
def test_encoder_decoder_is_refused():
    model = transformers.BartForConditionalGeneration(
        transformers.BartConfig(d_model=64, encoder_layers=1, decoder_layers=1, vocab_size=128)
    )
    with pytest.raises(ValueError, match=r"forward of model must take \*\*kwargs, got Bart"):
        sift.hf.enable(model)


@pytest.mark.parametrize("version", ["4.56.2", "4.9.0", "3.5.1"])
def test_an_old_transformers_is_refused(version):
    with pytest.raises(ImportError, match=f"transformers must be 4.57 or newer, got {version}"):
        check_version(version)
    for newer in ("4.57.0", "4.100.1", "5.13.1", "5.24.0.dev0"):
        check_version(newer)
