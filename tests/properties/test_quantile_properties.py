"""What holds for score_quantile whatever the inputs are."""

import math

import numpy as np
import pytest
import torch
from hits import decode_property
from making import Draw, all_bytes, lay_out, plain

import sift_attention as sift
from oracle import rounding_of_scores

pytestmark = pytest.mark.usefixtures("device")

QUANTILES = {"quantile": (0.5, 0.0, 1.0, 1 / 3, 0.95, 0.999)}
NUM_ROWS = 3


def property_of_quantiles(**fixed):
    return decode_property(QUANTILES, law="exact", residual="none", **fixed)


def make_arguments(case, call, seed, quantile):
    """The keys of a decode call, seen by rows that are its query and multiples of it."""
    draw = Draw(seed)
    q = call.q[:, :, None] * torch.tensor([1.0, 0.5, 2.0])[:, None].to(case.dtype)
    lengths = draw.below(case.capacity + 3, len(case.lengths), NUM_ROWS) - 1
    options = {name: x for name, x in call.options.items() if name not in ("residual", "seq_lens")}
    if "seq_lens" in call.options:
        options["key_mask"] = call.attended()
    q = lay_out(q, case.q_view)
    return {"q": q, "k": call.k, "lengths": lengths.int(), "quantile": quantile, **options}


def assert_same_bits(got, expected):
    assert torch.equal(got.view(torch.int32), expected.contiguous().view(torch.int32))


def take(arguments, **index):
    """The arguments with some rows of the batch, or some of the query rows."""
    taken = dict(arguments)
    if "batch" in index:
        for name in ("q", "k", "lengths", "key_mask", "block_table"):
            if name in taken and not (name == "k" and "block_table" in taken):
                taken[name] = taken[name][index["batch"]]
    if "rows" in index:
        taken["q"] = taken["q"][:, :, index["rows"]]
        taken["lengths"] = taken["lengths"][:, index["rows"]]
    return taken


@property_of_quantiles()
def test_equals_a_sort_in_numpy(case, call, seed, quantile):
    """One head of each example."""
    arguments = make_arguments(case, call, seed, quantile)
    got = sift.score_quantile(**arguments).cpu().numpy()
    attended, call = call.attended().cpu().numpy(), plain(call)
    b, h = seed % len(case.lengths), seed % case.num_q_heads
    k = call.k[b, h // case.group_size].double().cpu().numpy()[attended[b]]
    scale = case.scale or 1.0 / math.sqrt(case.head_dim)
    for r in range(NUM_ROWS):
        seen = k[: max(int(arguments["lengths"][b, r]), 0)]
        if len(seen) == 0:
            assert np.isnan(got[b, h, r])
            continue
        q = arguments["q"][b, h, r].double().cpu().numpy()
        scores = scale * (seen @ q)
        if case.softcap > 0.0:
            scores = case.softcap * np.tanh(scores / case.softcap)
        sink = float(call.options["sinks"][h]) if case.sinks is not None else -math.inf
        lse = np.logaddexp(np.logaddexp.reduce(scores), sink)
        with np.errstate(invalid="ignore"):
            p = np.exp(np.sort(scores) - lse) if lse > -math.inf else np.zeros(len(scores))
        expected = p[math.floor(quantile * (len(scores) - 1))]
        magnitude = scale * (np.abs(np.where(np.isinf(seen), 0.0, seen)) @ np.abs(q)).max()
        close = 2.0 * rounding_of_scores(magnitude, case.head_dim)
        np.testing.assert_allclose(got[b, h, r], expected, rtol=close, atol=1e-37)


@property_of_quantiles()
def test_a_higher_quantile_is_no_less(case, call, seed, quantile):
    arguments = make_arguments(case, call, seed, quantile)
    previous = -math.inf
    for higher in (0.0, 0.1, 0.5, 0.9, 0.99, 1.0):
        got = sift.score_quantile(**{**arguments, "quantile": higher}).nan_to_num(-1.0)
        assert (got >= previous).all()
        previous = got


@property_of_quantiles()
def test_a_batch_is_its_rows(case, call, seed, quantile):
    arguments = make_arguments(case, call, seed, quantile)
    together = sift.score_quantile(**arguments)
    order = Draw(seed).order(len(case.lengths))
    assert_same_bits(sift.score_quantile(**take(arguments, batch=order)), together[order])
    for r in range(NUM_ROWS):
        one = slice(r, r + 1)
        assert_same_bits(sift.score_quantile(**take(arguments, rows=one)), together[:, :, one])


@property_of_quantiles()
def test_where_it_lies_in_memory(case, call, seed, quantile):
    arguments = make_arguments(case, call, seed, quantile)
    call = plain(call)
    packed = {**arguments, "q": arguments["q"].contiguous(), "k": call.k}
    packed.pop("block_table", None)
    packed["key_mask"] = call.options["key_mask"]
    assert_same_bits(sift.score_quantile(**arguments), sift.score_quantile(**packed))


@property_of_quantiles()
def test_inputs_are_only_read(case, call, seed, quantile):
    arguments = make_arguments(case, call, seed, quantile)
    stored = [all_bytes(x) for x in arguments.values() if isinstance(x, torch.Tensor)]
    before = [x.clone() for x in stored]
    sift.score_quantile(**arguments)
    assert all(map(torch.equal, stored, before))
