"""Sifting that drops rows: the result depends on the sequence, not on how it is decoded."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from modes import MODES, NEW, generate, prompt, skip_what_stock_cannot, step_through
from tiny_models import VERSION, build
from transformers import AttentionMaskInterface, DynamicCache, StaticCache

import sift_attention as sift
from sift_attention.hf.cache import SiftingCache
from sift_attention.state import SiftState

LONG = 140  # enough for a fit
CHUNKED = {"prefill_chunk_size": 32}
# transformers 4.57 reads chunks past the model's hooks: no calibration.
BYPASSES_CHUNKS = VERSION.major < 5
UNIFORM = sift.SiftConfig(c=1.0, min_keys=0)
QUANTILE = sift.SiftConfig(threshold="quantile", quantile=0.5, min_keys=0)
CONFIGS = pytest.mark.parametrize(
    "config",
    [
        UNIFORM,
        sift.SiftConfig(c=1.0, min_keys=0, residual="renormalize"),
        QUANTILE,
        sift.SiftConfig(threshold="quantile", quantile=0.5, slope="fit", min_keys=0),
        sift.SiftConfig(threshold="quantile", quantile=0.5, min_keys=0, warmup_steps=3),
    ],
    ids=["uniform", "renormalize", "quantile", "slope", "warmup"],
)


@pytest.fixture(scope="module")
def model():
    return build("llama")


def ragged() -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """A left-padded batch of three, and its rows alone."""
    tokens = prompt(3, LONG)
    mask = torch.ones_like(tokens)
    for row, padding in enumerate((5, 0, 1)):
        mask[row, :padding] = 0
    rows = [tokens[b, mask[b] == 1][None] for b in range(3)]
    return {"input_ids": tokens.masked_fill(mask == 0, 0), "attention_mask": mask}, rows


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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["llama", "gemma3n"])
def test_running_sum_in_every_mode(family, mode, monkeypatch):
    skip_what_stock_cannot(family, mode)
    monkeypatch.setattr(SiftState, "decode", checked_decode(SiftState.decode))
    model = build(family)
    with sift.hf.enabled(model, UNIFORM) as handle:
        MODES[mode](model)
    assert handle.stats().total.decode_calls > 0 or mode in ("assisted", "prompt_lookup")


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


@pytest.mark.skipif(not BYPASSES_CHUNKS, reason="chunks reach the model's hooks")
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}])
def test_bypassed_chunks_leave_the_heads_exact(model, options):
    _, expected = generate(model, prompt(1, LONG))
    with sift.hf.enabled(model, QUANTILE) as handle:
        _, logits = generate(model, prompt(1, LONG), **CHUNKED, **options)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert handle.stats().total.decode_calls == 2 * NEW  # the last prompt token, too


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


def test_crop_and_reset_replay_alike(model):
    with sift.hf.enabled(model, QUANTILE), torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(prompt(1, LONG), past_key_values=cache)
        new = torch.tensor([[5]])
        _, expected = step_through(model, cache, new)
        cache.crop(-NEW)
        _, again = step_through(model, cache, new)
        torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)
        static = StaticCache(config=model.config, max_cache_len=LONG + NEW)
        for reused in (cache, static, static):
            reused.reset()
            model(prompt(1, LONG), past_key_values=reused)
            _, again = step_through(model, reused, new)
            torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


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


def test_beams_reorder_in_place(model, monkeypatch):
    seen: dict[int, set[int]] = {}

    def decode(self, *args, **kwargs):
        seen.setdefault(id(self), set()).add(self.values.total.data_ptr())
        return original(self, *args, **kwargs)

    original = SiftState.decode
    monkeypatch.setattr(SiftState, "decode", decode)
    with sift.hf.enabled(model, QUANTILE):
        dynamic = generate(model, prompt(2, LONG), num_beams=3)
        static = generate(model, prompt(2, LONG), num_beams=3, cache_implementation="static")
    assert all(len(addresses) == 1 for addresses in seen.values())
    torch.testing.assert_close(static[1], dynamic[1], atol=1e-5, rtol=0)


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
