"""Sifting that drops rows: the result depends on the sequence, not on how it is decoded."""

from __future__ import annotations

import pytest
import torch
from configurations import BYPASSES_CHUNKS, CHUNKED, CONFIGS, LONG, QUANTILE, ragged
from modes import NEW, generate, prompt, step_through
from tiny_models import build
from transformers import AttentionMaskInterface, DynamicCache

import sift_attention as sift


@pytest.fixture(scope="module")
def model():
    return build("llama")


@pytest.mark.row(27)
@CONFIGS
def test_padding_cache_and_chunks_change_nothing(model, config):
    batch, rows = ragged()
    with sift.hf.enabled(model, config) as handle:
        tokens, logits = generate(model, batch)
        total = handle.stats().total
        assert total.decode_calls == (NEW - 1) * 2
        assert total.unfitted_heads == 0
        assert total.loaded_fraction < 0.97
        for options in (
            {"cache_implementation": "static"},
            *([] if BYPASSES_CHUNKS else [CHUNKED, {**CHUNKED, "cache_implementation": "static"}]),
        ):
            handle.reset_stats()
            again_tokens, again = generate(model, batch, **options)
            torch.testing.assert_close(again, logits, atol=1e-5, rtol=0)
            assert torch.equal(again_tokens, tokens)
            assert handle.stats().total.rows_loaded == total.rows_loaded
        for row, alone in enumerate(rows):
            alone_tokens, alone_logits = generate(model, alone)
            torch.testing.assert_close(alone_logits[:, 0], logits[:, row], atol=1e-5, rtol=0)
            assert torch.equal(alone_tokens[0, -NEW:], tokens[row, -NEW:])


@CONFIGS
def test_decoding_is_deterministic(model, config):
    with sift.hf.enabled(model, config):
        _, first = generate(model, ragged()[0])
        _, second = generate(model, ragged()[0])
    assert torch.equal(first, second)


@pytest.mark.row(14, 27)
@pytest.mark.filterwarnings("ignore:sift_attention. no decode step was sifted")
def test_fit_of_a_padded_row_equals_its_fit_alone(model):
    batch, rows = ragged()
    laws = []
    with sift.hf.enabled(model, QUANTILE), torch.no_grad():
        for inputs in (batch, *({"input_ids": row} for row in rows)):
            laws.append(model(**inputs, use_cache=True).past_key_values.sift_state.layers[1])
    for row in range(3):
        alone = laws[1 + row]
        torch.testing.assert_close(laws[0].log_alpha[row], alone.log_alpha[0], atol=1e-4, rtol=0)
        assert torch.equal(laws[0].beta[row], alone.beta[0])
    assert laws[0].log_alpha.isfinite().all()


def test_steps_below_min_keys_are_exact(model):
    config = sift.SiftConfig(c=4.0, min_keys=23)
    for padding in (0, 2):
        tokens = prompt(1)
        mask = torch.ones(1, 20, dtype=torch.long)
        mask[:, :padding] = 0
        inputs = {"input_ids": tokens, "attention_mask": mask}
        _, exact = generate(model, inputs)
        with sift.hf.enabled(model, config) as handle:
            _, logits = generate(model, inputs)
        same = (logits - exact).abs().amax(dim=(1, 2)) < 1e-5
        first = 23 - (20 - padding)  # the logits whose step attends 23 keys, if it is generated
        assert same[:first].all()
        assert not same[first:].any()
        assert handle.stats().total.decode_calls == 2 * (NEW - 1)


@pytest.mark.row(14)
def test_warm_up_steps_are_exact(model):
    config = sift.SiftConfig(threshold="quantile", quantile=0.5, min_keys=0, warmup_steps=3)
    inputs = prompt(1, LONG)
    _, exact = generate(model, inputs)
    with sift.hf.enabled(model, config):
        _, logits = generate(model, inputs)
    same = (logits - exact).abs().amax(dim=(1, 2)) < 1e-5
    assert same.tolist() == [True] * 4 + [False] * (NEW - 4)


def test_refused_fits_are_exact_and_reported(model):
    with sift.hf.enabled(model, QUANTILE) as handle:
        _, logits = generate(model, prompt())  # shorter than any sample
    torch.testing.assert_close(logits, generate(model, prompt())[1], atol=1e-5, rtol=0)
    assert handle.stats().total.unfitted_heads == 2 * 2 * 4
    assert "16 heads" in str(handle.stats())


@pytest.mark.row(37)
def test_a_later_turn_that_doubles_the_sequence_fits_anew(model):
    with sift.hf.enabled(model, QUANTILE), torch.no_grad():
        cache = DynamicCache(config=model.config)
        step_through(model, cache, prompt(1, 130), steps=3)
        state = cache.sift_state.layers[0]
        first = state.log_alpha.clone()
        model(prompt(1, 60), past_key_values=cache)  # a turn, or candidates to verify
        assert torch.equal(state.log_alpha, first)
        model(prompt(1, 100), past_key_values=cache)
        assert not torch.equal(state.log_alpha, first)


@pytest.mark.skipif(not BYPASSES_CHUNKS, reason="chunks reach the model's hooks")
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}])
def test_bypassed_chunks_leave_the_heads_exact(model, options):
    _, expected = generate(model, prompt(1, LONG))
    with sift.hf.enabled(model, QUANTILE) as handle:
        _, logits = generate(model, prompt(1, LONG), **CHUNKED, **options)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert handle.stats().total.decode_calls == 2 * NEW  # the last prompt token, too


@pytest.mark.row(27)
def test_registered_mask_matters(model, monkeypatch):
    """The negative control: with masks of another implementation, padding goes wrong."""
    batch, _ = ragged()
    _, expected = generate(model, batch)

    def no_mask(*args, **kwargs):
        return None

    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "sift", no_mask)
    with sift.hf.enabled(model, sift.SiftConfig(c=0)):
        _, plain = generate(model, prompt())
        _, padded = generate(model, batch)
    torch.testing.assert_close(plain, generate(model, prompt())[1], atol=1e-5, rtol=0)
    assert (padded - expected).abs().max() > 0.05


def test_additive_masks_run_dense(model):
    tokens, new = prompt(1), torch.tensor([[5]])
    causal = torch.ones(20, 20, dtype=torch.bool).tril()
    prefill = torch.zeros(1, 1, 20, 20).masked_fill(~causal, torch.finfo(torch.float32).min)
    step = torch.zeros(1, 1, 1, 21)

    def decode() -> list[torch.Tensor]:
        cache = DynamicCache(config=model.config)
        model(tokens, attention_mask=prefill, past_key_values=cache)
        dense = model(new, attention_mask=step, past_key_values=cache)
        return [dense.logits, model(new, past_key_values=cache).logits]

    with torch.no_grad():
        stock = decode()
        with sift.hf.enabled(model, sift.SiftConfig(c=8.0, min_keys=0)) as handle:
            dense, sifted = decode()
    torch.testing.assert_close(dense, stock[0], atol=1e-5, rtol=0)
    assert not torch.allclose(sifted, stock[1], atol=1e-3)
    assert handle.stats().total.dense_calls == {"mask": 2}
    assert handle.stats().total.decode_calls == 2
