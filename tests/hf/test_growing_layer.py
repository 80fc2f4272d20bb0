"""The cache layer that grows in place behaves as the stock one that copies."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from tiny_models import build
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

import sift_attention as sift
from sift_attention.hf import growing_layer, huge_pages
from sift_attention.hf.cache import GrowingLayer, SiftingCache, adopt
from sift_attention.hf.stats import Totals


def rows(count: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 2, count, 8), torch.randn(batch, 2, count, 8)


@pytest.fixture
def both():
    """The stock layer and ours, to be driven alike."""
    return DynamicLayer(), GrowingLayer()


def update(both, count: int, batch: int = 2) -> None:
    k, v = rows(count, batch)
    results = [layer.update(k, v) for layer in both]
    for stock, ours in zip(*results, strict=True):
        assert torch.equal(stock, ours)


def same(both) -> None:
    stock, ours = both
    assert torch.equal(stock.keys, ours.keys)
    assert torch.equal(stock.values, ours.values)
    assert stock.get_seq_length() == ours.get_seq_length()


def test_growth_keeps_the_buffer(both):
    addresses = []
    for count in (1, 300, *[1] * 300):
        update(both, count)
        addresses.append(both[1].keys.data_ptr())
    assert len(set(addresses)) <= 4
    assert both[1].keys.shape == (2, 2, 601, 8)
    assert both[1].keys.stride(3) == 1


@pytest.mark.row(36)
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.crop(-3),
        lambda layer: layer.reorder_cache(torch.tensor([1, 1])),
        lambda layer: layer.batch_select_indices(torch.tensor([-1])),
        lambda layer: layer.batch_repeat_interleave(2),
    ],
    ids=["crop", "reorder", "select", "repeat"],
)
def test_changes_and_growth(both, change):
    update(both, 10)
    for count in (1, 2, 1):
        for layer in both:
            change(layer)
        same(both)
        update(both, count, batch=both[0].keys.shape[0])
        same(both)


def test_a_crop_does_not_bring_back_replaced_buffers(both):
    update(both, 10)
    for layer in both:
        layer.reorder_cache(torch.tensor([1, 0]))
        layer.crop(-2)
    update(both, 1)
    same(both)


@pytest.mark.row(36)
def test_copies_do_not_share_rows_that_come_later(both):
    update(both, 10)
    ours = both[1]
    copies = [copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    before = ours.keys.clone()
    k, v = rows(1)
    ours.update(k, v)
    for other in copies:
        assert torch.equal(other.keys, before)
        other_k, other_v = rows(1)
        other.update(other_k, other_v)
        assert torch.equal(other.keys, torch.cat([before, other_k], 2))
    assert torch.equal(ours.keys, torch.cat([before, k], 2))


@pytest.mark.row(36)
@pytest.mark.parametrize(
    "change",
    [lambda layer: layer.crop(-4), lambda layer: layer.reorder_cache(torch.tensor([1, 0]))],
    ids=["crop", "reorder"],
)
def test_tensors_that_someone_holds_stay_as_they_are(both, change):
    """A search that goes back to an earlier branch puts its keys and values back."""
    update(both, 10)
    update(both, 1)
    ours = both[1]
    held = ours.keys, ours.values
    before = [rows.clone() for rows in held]
    change(ours)
    ours.update(*rows(3))
    assert all(map(torch.equal, held, before))
    ours.keys, ours.values = held
    k, v = rows(1)
    assert torch.equal(ours.update(k, v)[1], torch.cat([before[1], v], 2))


@pytest.mark.row(36)
def test_replaced_tensors_are_kept(both):
    update(both, 10)
    for layer in both:
        layer.values = 2.0 * layer.values
    update(both, 1)
    for layer in both:
        layer.keys = layer.keys.flip(2)
    update(both, 1)
    same(both)


@pytest.mark.row(38)
@pytest.mark.parametrize("held_rows", [10, 256], ids=["room", "full"])
@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 2, 1, 8), (1, 2, 1, 8)],
        [(4, 2, 1, 8), (4, 2, 1, 8)],
        [(2, 1, 1, 8), (2, 1, 1, 8)],
        [(2, 2, 1, 1), (2, 2, 1, 8)],
    ],
    ids=["one sequence", "more sequences", "heads", "head size"],
)
def test_rows_of_another_shape_are_refused(both, shapes, held_rows):
    update(both, held_rows)
    for layer in both:
        with pytest.raises(RuntimeError, match="Sizes of tensors must match except in dimension 2"):
            layer.update(*map(torch.randn, shapes))
    same(both)
    update(both, 1)


@pytest.mark.row(38)
def test_rows_of_another_dtype_are_not_rounded(both):
    first = [row.bfloat16() for row in rows(10)]
    for layer in both:
        layer.update(*first)
    update(both, 1)
    update(both, 2)
    assert both[1].keys.dtype == torch.float32


@pytest.mark.row(40)
@pytest.mark.parametrize("failing", [0, 1])
def test_out_of_memory_while_growing(both, failing, monkeypatch):
    update(both, 256)
    same(both)
    calls = []

    def out_of_memory(*args):
        calls.append(args)
        if len(calls) == failing + 1:
            raise torch.OutOfMemoryError
        return huge_pages.empty(*args)

    with monkeypatch.context() as patch:
        patch.setattr(growing_layer, "huge_pages", SimpleNamespace(empty=out_of_memory))
        with pytest.raises(torch.OutOfMemoryError):
            both[1].update(*rows(300))
    update(both, 1)
    update(both, 300)
    same(both)


def test_a_reset_layer_is_empty(both):
    ours = both[1]
    update(both, 10)
    ours.reset()
    assert ours.get_seq_length() == 0
    k, v = rows(3, batch=5)
    assert torch.equal(ours.update(k, v)[0], k)


def test_gradients_flow(both):
    update(both, 4)
    k, v = (row.requires_grad_() for row in rows(2))
    for layer in both:
        keys, values = layer.update(k, v)
        (keys.sum() + 2 * values.sum()).backward()
    assert torch.equal(k.grad, torch.full_like(k, 2.0))
    assert torch.equal(v.grad, torch.full_like(v, 4.0))
    both[1].update(*rows(1))


@pytest.mark.row(33)
def test_inference_mode_then_no_grad(both):
    with torch.inference_mode():
        update(both, 4)
        update(both, 1)
    with torch.no_grad():
        both[1].update(*rows(1))
    assert both[1].get_seq_length() == 6


def test_adoption_swaps_only_plain_dynamic_layers():
    model = build("gemma3")
    cache = DynamicCache(config=model.config)
    state = adopt(cache, sift.SiftConfig(), Totals())
    sliding, full = cache.layers
    assert type(full) is GrowingLayer
    assert not isinstance(sliding, GrowingLayer)
    assert state.sliding == {0}
    assert isinstance(cache, DynamicCache)
    assert isinstance(cache, SiftingCache)
    assert type(cache).__name__ == "SiftDynamicCache"
    lazy = DynamicCache()
    adopt(lazy, sift.SiftConfig(), Totals())
    lazy.update(*rows(1), 0)
    assert type(lazy.layers[0]) is GrowingLayer


def test_the_library_keeps_its_own_layers():
    assert type(DynamicCache(config=build("llama").config).layers[0]) is DynamicLayer
