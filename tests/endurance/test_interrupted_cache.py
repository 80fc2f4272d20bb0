"""A cache whose forward is interrupted anywhere can be used anew, or says that it cannot be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from configurations import LONG, QUANTILE, UNIFORM
from interrupts import Interrupter, count_moments
from modes import NEW, generate, prompt
from packaging.version import Version
from random_requests import BreakingCriteria, BrokenOffError
from scale import progress, scaled
from tiny_models import VERSION, build
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

import sift_attention as sift

DENSE, FINE, COARSE = (scaled(1, step) for step in (1, 7, 29))  # between interruptions
STEPS = 3

pytestmark = pytest.mark.filterwarnings("ignore:sift_attention. no decode step was sifted")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("llama")


def new_cache(model: PreTrainedModel, kind: str) -> DynamicCache | StaticCache:
    if kind == "dynamic":
        return DynamicCache(config=model.config)
    return StaticCache(config=model.config, max_cache_len=2 * LONG + 3 * STEPS)


def read(model: PreTrainedModel, cache: DynamicCache | StaticCache, tokens: Tensor) -> Tensor:
    """Logits of a prompt, and of a few tokens after it."""
    logits = [model(tokens, past_key_values=cache).logits[:, -1]]
    for token in range(3, 3 + STEPS):
        new = torch.full((tokens.shape[0], 1), token)
        logits.append(model(new, past_key_values=cache).logits[:, -1])
    return torch.stack(logits)


def lengths(cache: DynamicCache | StaticCache) -> set[int]:
    return {int(layer.get_seq_length()) for layer in cache.layers}


def interrupted_everywhere(
    make: Callable[[], DynamicCache | StaticCache],
    call: Callable[[DynamicCache | StaticCache], object],
    name: str,
    stride: int = FINE,
) -> Iterator[DynamicCache | StaticCache]:
    """Caches whose call was interrupted, each at another moment."""
    whole = make()
    num_moments = count_moments(lambda: call(whole))
    for moment in progress(range(0, num_moments, stride), name):
        cache = make()
        assert Interrupter(moment).run(lambda cache=cache: call(cache))
        yield cache


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_reset_cache_reads_the_prompt_as_a_new_one(model, kind):
    tokens = prompt(2, LONG)
    with sift.hf.enabled(model, QUANTILE), torch.no_grad():
        expected = read(model, new_cache(model, kind), tokens)
        for cache in interrupted_everywhere(
            lambda: new_cache(model, kind),
            lambda c: model(tokens, past_key_values=c),
            f"reset {kind}",
            COARSE,
        ):
            cache.reset()
            assert torch.equal(read(model, cache, tokens), expected)


@pytest.mark.row(37, 38)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_torn_cache_is_refused(model, kind):
    """Without a reset a forward gives the bits of whole layers, or none."""
    first, second = prompt(1, 40), prompt(1, 30).flip(1)

    def half_full() -> DynamicCache | StaticCache:
        cache = new_cache(model, kind)
        model(first, past_key_values=cache)
        return cache

    outcomes = set()
    with sift.hf.enabled(model, UNIFORM), torch.no_grad():
        expected = {40: read(model, half_full(), second)}  # by the keys before it
        twice = half_full()
        model(second, past_key_values=twice)
        expected[70] = read(model, twice, second)
        for cache in interrupted_everywhere(
            half_full, lambda c: model(second, past_key_values=c), f"torn {kind}"
        ):
            before = lengths(cache)
            outcomes.add(tuple(sorted(before)))
            if len(before) > 1:
                with pytest.raises(ValueError, match="got 40 to 70 tokens after a forward that"):
                    read(model, cache, second)
                cache.reset()
                assert lengths(cache) == {0}
                model(first, past_key_values=cache)
                before = {40}
            again = read(model, cache, second)
            torch.testing.assert_close(again, expected[before.pop()], atol=1e-5, rtol=0)
    assert outcomes == {(40,), (40, 70), (70,)}


@pytest.mark.skipif(Version("5.18") <= VERSION, reason="crop takes no length to crop to any more")
def test_a_torn_cache_is_whole_again_after_a_crop(model):
    """The samples of the first chunk stay, and so does the fit of both."""
    tokens = prompt(2, LONG)

    def half_full() -> DynamicCache | StaticCache:
        cache = DynamicCache(config=model.config)
        model(tokens[:, :90], past_key_values=cache)
        return cache

    with sift.hf.enabled(model, QUANTILE), torch.no_grad():
        expected = read(model, half_full(), tokens[:, 90:])
        for cache in interrupted_everywhere(
            half_full, lambda c: model(tokens[:, 90:], past_key_values=c), "cropped", COARSE
        ):
            cache.crop(90)
            assert torch.equal(read(model, cache, tokens[:, 90:]), expected)


def test_a_generation_that_was_broken_off_goes_on(model):
    tokens = prompt(2, LONG)
    with sift.hf.enabled(model, QUANTILE), torch.no_grad():
        sequences, expected = generate(model, tokens)
        for calls in range(1, NEW):
            cache = DynamicCache(config=model.config)
            with pytest.raises(BrokenOffError):
                generate(
                    model,
                    tokens,
                    past_key_values=cache,
                    stopping_criteria=[BreakingCriteria(calls)],
                )
            for position in range(LONG + calls - 1, LONG + NEW - 1):
                assert lengths(cache) == {position}
                new = sequences[:, position : position + 1]
                logits = model(new, past_key_values=cache).logits[:, -1]
                assert torch.equal(logits, expected[position - LONG + 1])


@pytest.mark.row(36)
@pytest.mark.parametrize("change", ["reorder_cache", "batch_select_indices", "crop", "reset"])
def test_states_follow_an_interrupted_change_whole_or_not_at_all(model, change):
    """As in a cache that never had states: uniform laws need nothing else."""
    tokens, new = prompt(2, 40), torch.tensor([[5], [6]])
    arguments = {"crop": (-3,), "reset": ()}.get(change, (torch.tensor([1, 0]),))

    with sift.hf.enabled(model, UNIFORM), torch.no_grad():
        filled = new_cache(model, "dynamic")
        model(tokens, past_key_values=filled)
        for cache in interrupted_everywhere(
            lambda: copy.deepcopy(filled),
            lambda c: getattr(c, change)(*arguments),
            change,
            DENSE,
        ):
            if len(lengths(cache)) > 1:
                continue
            fresh = new_cache(model, "dynamic")
            for layer_idx, layer in enumerate(cache.layers):
                fresh.update(layer.keys.clone(), layer.values.clone(), layer_idx)
            logits = [model(new, past_key_values=c).logits for c in (cache, fresh)]
            torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
