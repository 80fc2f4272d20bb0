"""What decode does not see in the keys: their order, slots not attended, equal shifts of scores."""

import math

import pytest
import torch
from hits import decode_property
from making import Draw, kept_rows, key_sets, lay_out, plain

from cases import assert_same_bits
from oracle import assert_same_bits_on_the_cpu, assert_same_result

pytestmark = pytest.mark.usefixtures("device")


def assert_same_kept_rows(kept, expected, keys):
    """Except for those whose probability lies so near the threshold that rounding decides."""
    assert not ((kept != expected) & ~keys.maybe).any()


@decode_property()
def test_the_order_of_the_keys(case, call, keys, seed):
    call = plain(call)
    kept, expected = kept_rows(call), call.run()
    order = Draw(seed).order(case.capacity)
    call.k, call.v = call.k[:, :, order], call.v[:, :, order]
    call.options["key_mask"] = call.options["key_mask"][:, order]
    assert_same_kept_rows(kept_rows(call).index_select(2, order.argsort()), kept, keys)
    assert_same_result(call.run(), expected, keys)


GARBAGE = {
    "num_added": (1, 2, 7, 64, 200),
    "garbage": (math.nan, math.inf, 1e30, -6e4),
}


def full(shape, garbage, dtype):
    """Where a dtype ends earlier, its infinity."""
    return torch.full(shape, garbage).to(dtype)


@pytest.mark.row(8)
@decode_property(GARBAGE, shared=None)
def test_slots_behind_the_length(case, call, seed, num_added, garbage):
    """In a paged cache: behind the last page that is attended, mapped to any page."""
    expected = call.run()
    batch, capacity = len(case.lengths), case.capacity
    if "seq_lens" not in call.options:
        call.options["seq_lens"] = torch.full((batch,), capacity, dtype=torch.int32)
    if case.block_size is None:
        tail = full((batch, case.num_kv_heads, num_added, case.head_dim), garbage, case.dtype)
        call.k = lay_out(torch.cat([call.k, tail], dim=2), case.k_view)
        call.v = lay_out(torch.cat([call.v, -tail], dim=2), case.v_view)
    else:
        table = call.options["block_table"]
        ids = Draw(seed).below(len(call.k) + 2, batch, num_added) - 1
        call.options["block_table"] = torch.cat([table, ids.int()], dim=1)
        num_added *= case.block_size
    if "key_mask" in call.options:
        mask = call.options["key_mask"]
        call.options["key_mask"] = torch.cat([mask, mask.new_ones(batch, num_added)], dim=1)
    assert_same_bits(call.run(), expected)


@pytest.mark.row(8, 27)
@decode_property(GARBAGE)
def test_masked_slots_anywhere(case, call, keys, seed, num_added, garbage):
    call = plain(call)
    expected = call.run()
    batch, capacity = len(case.lengths), case.capacity
    slots = Draw(seed).order(capacity + num_added)[:capacity].sort().values
    mask = torch.zeros(batch, capacity + num_added, dtype=torch.bool)
    mask[:, slots] = call.options["key_mask"]
    call.options["key_mask"] = mask
    for name in ("k", "v"):
        rows = getattr(call, name)
        shape = (batch, case.num_kv_heads, capacity + num_added, case.head_dim)
        spread = full(shape, garbage, case.dtype)
        spread[:, :, slots] = rows
        setattr(call, name, spread)
    assert_same_bits_on_the_cpu(call.run(), expected, keys)


FINITE = ("normal", "flat", "ties", "spiky")


@decode_property(
    {"constant": (1.0, 0.125, -3.0, 50.0, -1000.0)}, scores=FINITE, softcap=0.0, sinks=None
)
def test_a_constant_added_to_every_score(case, call, constant):
    call = plain(call)
    call.k[..., 0] = 1.0
    call.q[..., 0] = 0.0
    keys, kept, (_, stats) = key_sets(call), kept_rows(call), call.run()
    call.q[..., 0] = constant
    scale = case.scale or 1.0 / math.sqrt(case.head_dim)
    shift = call.q[..., 0].float() * scale  # as q's dtype holds it
    keys.maybe |= key_sets(call).maybe
    assert_same_kept_rows(kept_rows(call), kept, keys)
    _, shifted = call.run()
    torch.testing.assert_close(shifted.lse, stats.lse + shift, atol=1e-3, rtol=1e-5)


@decode_property({"factor": (1.0, -0.125, 3.0, -50.0, 1000.0)}, scores=FINITE)
def test_a_vector_orthogonal_to_every_key(call, factor):
    call = plain(call)
    call.k[..., 1] = call.k[..., 0]
    call.q[..., :2] = 0.0
    keys, kept, (_, stats) = key_sets(call), kept_rows(call), call.run()
    call.q[..., 0], call.q[..., 1] = factor, -factor
    added_keys = key_sets(call)
    keys.maybe |= added_keys.maybe
    assert_same_kept_rows(kept_rows(call), kept, keys)
    _, added = call.run()
    torch.testing.assert_close(added.lse, stats.lse, atol=1e-3, rtol=1e-5)
