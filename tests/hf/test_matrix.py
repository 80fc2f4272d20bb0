"""Every model family in every mode: exact sifting gives the stock model's tokens and logits."""

from __future__ import annotations

import functools

import pytest
import torch
from modes import MODES, Result, skip_what_stock_cannot
from tiny_models import FAMILIES, build
from transformers import PreTrainedModel

import sift_attention as sift


@functools.cache
def stock_model(name: str) -> PreTrainedModel:
    return build(name)


@functools.cache
def stock_result(name: str, mode: str) -> Result:
    return MODES[mode](stock_model(name))


class StepCounter:
    """Counts the forwards of a model with a single query token."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.steps = 0
        self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model, args, kwargs) -> None:
        tokens = args[0] if args else kwargs["input_ids"]
        self.steps += tokens.shape[1] == 1

    def remove(self) -> None:
        self._hook.remove()


@pytest.fixture
def counted():
    counters = []

    def count(model: PreTrainedModel) -> StepCounter:
        counters.append(StepCounter(model))
        return counters[-1]

    yield count
    for counter in counters:
        counter.remove()


@pytest.mark.row(36)
@pytest.mark.filterwarnings("ignore:sift_attention. no decode step was sifted")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_sifting_equals_stock(family, mode, counted):
    skip_what_stock_cannot(family, mode)
    tokens, logits = stock_result(family, mode)
    model = stock_model(family)
    counter = counted(model)
    with sift.hf.enabled(model, sift.SiftConfig(c=0)) as handle:
        sifted_tokens, sifted_logits = MODES[mode](model)
    total = handle.stats().total
    torch.testing.assert_close(sifted_logits, logits, atol=1e-5, rtol=0)
    assert torch.equal(sifted_tokens, tokens)
    assert counter.steps > 0 or mode in ("assisted", "prompt_lookup")
    assert total.decode_calls == counter.steps * FAMILIES[family].full_layers
    assert set(total.dense_calls) <= {"sliding window"}
    assert total.rows_loaded == total.keys
    assert total.dropped_mass == pytest.approx(0.0, abs=1e-6)
