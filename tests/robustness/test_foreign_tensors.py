"""Tensors of other layouts, lazy ones, and values that only a look at the data can refuse."""

import math

import pytest
import torch

import sift_attention as sift
import sift_attention.ops
from cases import Case, make_call

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.row(17)
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_lazily_negated(name):
    call = make_call(Case(capacity=20))
    setattr(call, name, -getattr(call, name))
    expected, _ = call.run()
    setattr(call, name, torch._neg_view(-getattr(call, name)))
    assert getattr(call, name).is_neg()
    assert torch.equal(call.run()[0], expected)


@pytest.mark.row(17)
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.to_sparse(),
        lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
        lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype, device=x.device),
    ],
    ids=["sparse", "nested", "zero"],
)
def test_other_layouts_are_refused(name, convert):
    call = make_call(Case(capacity=20))
    setattr(call, name, convert(getattr(call, name)))
    with pytest.raises((NotImplementedError, RuntimeError, ValueError)):
        call.run()


@pytest.mark.row(20, 26)
def test_more_keys_than_64_bits_count():
    """2^50 keys per block times 2^14 blocks would be none at all."""
    q = torch.zeros(1, 1, 64, dtype=torch.float16)
    kv = q[:, :, None].expand(1, 2**50, 1, 64)
    table = torch.zeros(1, 2**14, dtype=torch.int32)
    sentence = (
        "k must hold at most 2147483647 keys per sequence, got 16384 blocks of 1125899906842624"
    )
    with pytest.raises(ValueError, match=f"^decode: {sentence}$"):
        sift.decode(q, kv, kv, block_table=table)
    with pytest.raises(ValueError, match=f"^score_quantile: {sentence}$"):
        sift.score_quantile(q[:, :, None], kv, table[:, :1], 0.5, block_table=table)


BAD_VALUES = [  # argument, index, value, sentence
    ("seq_lens", (1,), 1000, "seq_lens must be in [0, 144], got 1000 at (1,)"),
    ("seq_lens", (0,), -5, "seq_lens must be in [0, 144], got -5 at (0,)"),
    ("block_table", (1, 3), 21, "block_table must be -1 or in [0, 21), got 21 at (1, 3)"),
    ("block_table", (0, 8), -2, "block_table must be -1 or in [0, 21), got -2 at (0, 8)"),
    ("log_alpha", (0, 7), math.nan, "log_alpha must be below infinity, got nan at (0, 7)"),
    ("log_alpha", (1, 0), math.inf, "log_alpha must be below infinity, got inf at (1, 0)"),
    ("beta", (1, 1), -math.inf, "beta must be finite, got -inf at (1, 1)"),
]


@pytest.mark.row(12, 26)
@pytest.mark.parametrize(("name", "index", "value", "sentence"), BAD_VALUES)
def test_values_are_refused_on_request(monkeypatch, name, index, value, sentence):
    call = make_call(Case(layout="paged", seq_lens=(144, 77), law="per_head"))
    arguments = {**call.options, "log_alpha": call.law.log_alpha, "beta": call.law.beta}
    arguments["block_table"][1, 5:] = -1
    monkeypatch.setattr(sift_attention.ops, "ARE_CHECKED", True)
    call.run()
    arguments[name][index] = value
    with pytest.raises(ValueError, match="must be") as error:
        call.run()
    assert str(error.value) == f"decode: {sentence}"
    if name == "block_table":
        lengths = torch.ones(2, 1, dtype=torch.int32)
        with pytest.raises(ValueError, match="must be") as error:
            sift.score_quantile(
                call.q[:, :, None], call.k, lengths, 0.5, block_table=arguments[name]
            )
        assert str(error.value) == f"score_quantile: {sentence}"
    monkeypatch.setattr(sift_attention.ops, "ARE_CHECKED", False)
    call.run()
