"""The states of a cache follow everything that happens to it."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from configurations import BYPASSES_CHUNKS, CHUNKED, CONFIGS, LONG, QUANTILE, UNIFORM
from modes import MODES, NEW, generate, prompt, skip_what_stock_cannot, step_through
from tiny_models import build
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import QuantizedLayer

import sift_attention as sift
from sift_attention.hf.cache import SiftingCache
from sift_attention.state import SiftState


@pytest.fixture(scope="module")
def model():
    return build("llama")


def checked_decode(decode):
    """SiftState.decode that compares the running sum with the sum over attended rows."""

    def check(self, q, k, v, mask=None, **options):
        out = decode(self, q, k, v, mask, **options)
        if mask is None or mask.key_mask is None:
            expected, count = v.sum(2), torch.full((v.shape[0],), v.shape[2])
        else:
            expected = (v * mask.key_mask[:, None, :, None]).sum(2)
            count = mask.key_mask.sum(-1)
        torch.testing.assert_close(self.values.total, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(self.values.count[:, 0], count)
        return out

    return check


@pytest.mark.row(36, 37)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["llama", "gemma3n"])
def test_running_sum_in_every_mode(family, mode, monkeypatch):
    skip_what_stock_cannot(family, mode)
    monkeypatch.setattr(SiftState, "decode", checked_decode(SiftState.decode))
    model = build(family)
    with sift.hf.enabled(model, UNIFORM) as handle:
        MODES[mode](model)
    assert handle.stats().total.decode_calls > 0 or mode in ("assisted", "prompt_lookup")


class CoarseLayer(QuantizedLayer):
    """Keeps five bits of a number; the backends of quantized caches take more trouble."""

    def _quantize(self, tensor, axis):
        return (tensor * 4).round().clamp(-16, 15).to(torch.int8)

    def _dequantize(self, q_tensor):
        return q_tensor.float() / 4


@pytest.mark.row(36)
def test_running_sum_of_a_quantized_cache(model, monkeypatch):
    """Its values are others after the prompt, and again when the newest ones are quantized, too."""
    monkeypatch.setattr(SiftState, "decode", checked_decode(SiftState.decode))
    with sift.hf.enabled(model, UNIFORM) as handle:
        layers = [CoarseLayer(residual_length=4) for _ in range(model.config.num_hidden_layers)]
        generate(model, prompt(2, LONG), past_key_values=Cache(layers=layers))
        assert handle.stats().total.decode_calls == (NEW - 1) * len(layers)


@CONFIGS
def test_one_token_turn(model, config, monkeypatch):
    monkeypatch.setattr(SiftState, "decode", checked_decode(SiftState.decode))
    tokens = prompt(1, 129)
    with sift.hf.enabled(model, config) as handle, torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(tokens[:, :128], past_key_values=cache)
        _, logits = step_through(model, cache, tokens[:, 128:])
        assert handle.stats().total.decode_calls == NEW * 2
        if not BYPASSES_CHUNKS:
            _, chunked = generate(model, tokens, **CHUNKED)
            torch.testing.assert_close(chunked, logits, atol=1e-5, rtol=0)
            assert handle.stats().total.decode_calls == 2 * NEW * 2


@pytest.mark.row(36)
def test_copies_continue_alike(model):
    with sift.hf.enabled(model, QUANTILE), torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(prompt(1, LONG), past_key_values=cache)
        new = torch.tensor([[5]])
        copies = [copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))]
        _, expected = step_through(model, cache, new)
        for other in copies:
            assert isinstance(other, SiftingCache)
            _, logits = step_through(model, other, new)
            assert torch.equal(logits, expected)
        # Copies share nothing: going on with one leaves the others alone.
        states = [c.sift_state.layers[0] for c in (cache, *copies)]
        assert len({state.log_alpha.data_ptr() for state in states}) == 3


@pytest.mark.row(36, 37)
def test_crop_replays_alike(model):
    with sift.hf.enabled(model, QUANTILE), torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(prompt(1, LONG), past_key_values=cache)
        new = torch.tensor([[5]])
        _, expected = step_through(model, cache, new)
        cache.crop(-NEW)
        _, again = step_through(model, cache, new)
        torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


@pytest.mark.row(35)
@pytest.mark.parametrize("cache_class", ["dynamic", "static"])
def test_a_reset_cache_is_as_new(model, cache_class):
    other = prompt(1, LONG).flip(1)
    new = torch.tensor([[5]])
    with sift.hf.enabled(model, QUANTILE), torch.no_grad():
        fresh = model(other)
        _, expected = step_through(model, fresh.past_key_values, new)
        cache = DynamicCache(config=model.config)
        if cache_class == "static":
            cache = StaticCache(config=model.config, max_cache_len=LONG + NEW)
        for tokens in (prompt(1, LONG), other):
            cache.reset()
            model(tokens, past_key_values=cache)
            _, logits = step_through(model, cache, new)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.row(37)
@pytest.mark.filterwarnings("ignore:sift_attention. no decode step was sifted")
def test_crop_forgets_samples_of_rejected_tokens(model):
    with sift.hf.enabled(model, QUANTILE), torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(prompt(1, LONG), past_key_values=cache)
        lengths = cache.sift_state.layers[0]._calibration.lengths
        before = lengths.clone()
        model(prompt(1, 30), past_key_values=cache)
        assert not torch.equal(lengths, before)
        cache.crop(-30)
        assert torch.equal(lengths, before)


def test_interleaved_caches_and_threads(model):
    prompts = [prompt(1, LONG), prompt(1, LONG).flip(1)]
    with sift.hf.enabled(model, QUANTILE) as handle:
        expected = [generate(model, tokens)[1] for tokens in prompts]
        calls = handle.stats().total.decode_calls
        with torch.no_grad():
            caches = [DynamicCache(config=model.config) for _ in prompts]
            pairs = zip(prompts, caches, strict=True)
            last = [model(t, past_key_values=c).logits[:, -1] for t, c in pairs]
            for step in range(NEW):
                for i, cache in enumerate(caches):
                    torch.testing.assert_close(last[i], expected[i][step], atol=1e-5, rtol=0)
                    token = last[i].argmax(-1, keepdim=True)
                    last[i] = model(token, past_key_values=cache).logits[:, -1]
        handle.reset_stats()
        results: dict[int, torch.Tensor] = {}

        def work(i: int) -> None:
            results[i] = generate(model, prompts[i])[1]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i in range(2):
        torch.testing.assert_close(results[i], expected[i], atol=1e-5, rtol=0)
    assert calls == 2 * 2 * (NEW - 1)


@pytest.mark.row(36)
def test_beams_reorder_in_place(model, monkeypatch):
    seen: dict[SiftState, set[int]] = {}

    def decode(self, *args, **kwargs):
        seen.setdefault(self, set()).add(self.values.sums.data_ptr())
        return original(self, *args, **kwargs)

    original = SiftState.decode
    monkeypatch.setattr(SiftState, "decode", decode)
    with sift.hf.enabled(model, QUANTILE):
        dynamic = generate(model, prompt(2, LONG), num_beams=3)
        static = generate(model, prompt(2, LONG), num_beams=3, cache_implementation="static")
    assert all(len(addresses) == 1 for addresses in seen.values())
    torch.testing.assert_close(static[1], dynamic[1], atol=1e-5, rtol=0)


@pytest.mark.row(36)
def test_selected_and_repeated_rows_decode_alike(model):
    tokens = prompt(3, LONG)
    new = torch.tensor([[5], [6], [7]])
    with sift.hf.enabled(model, QUANTILE), torch.no_grad():

        def filled() -> DynamicCache:
            cache = DynamicCache(config=model.config)
            model(tokens, past_key_values=cache)
            return cache

        _, expected = step_through(model, filled(), new)
        cache = filled()
        rows = torch.tensor([2, 0])
        cache.batch_select_indices(rows)
        _, selected = step_through(model, cache, new[rows])
        torch.testing.assert_close(selected, expected[:, rows], atol=1e-5, rtol=0)
        cache = filled()
        cache.batch_repeat_interleave(2)
        _, repeated = step_through(model, cache, new.repeat_interleave(2, 0))
        torch.testing.assert_close(repeated, expected.repeat_interleave(2, 1), atol=1e-5, rtol=0)
