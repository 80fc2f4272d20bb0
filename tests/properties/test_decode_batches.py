"""What must not matter to decode: batch mates, groups of heads, where things lie in memory."""

import pytest
import torch
from hits import decode_property
from making import Draw, all_bytes, kept_rows, plain

import sift_attention as sift
from cases import Call, assert_same_bits, tolerance
from oracle import assert_same_bits_on_the_cpu

pytestmark = pytest.mark.usefixtures("device")


def take_sequences(call, rows):
    """The call of some sequences of a batch."""
    options = {
        name: value[rows] if isinstance(value, torch.Tensor) and name != "sinks" else value
        for name, value in call.options.items()
    }
    law = call.law
    if law is not None and isinstance(law.log_alpha, torch.Tensor):
        beta = law.beta[rows] if isinstance(law.beta, torch.Tensor) else law.beta
        law = sift.PowerLaw(law.log_alpha[rows], beta)
    k, v = (x if "block_table" in options else x[rows] for x in (call.k, call.v))
    return Call(call.q[rows], k, v, law, options)


@pytest.mark.row(28)
@decode_property()
def test_a_batch_is_its_sequences(case, call, seed):
    together = call.run()
    order = Draw(seed).order(len(case.lengths))
    assert_same_bits(take_sequences(call, order).run(), together, order)
    for b in range(len(case.lengths)):
        one = slice(b, b + 1)
        assert_same_bits(take_sequences(call, one).run(), together, one)


@pytest.mark.row(17, 18, 19)
@decode_property()
def test_where_it_lies_in_memory(call, keys):
    """Views of any strides, pages in any order and the same numbers packed and masked."""
    assert_same_bits_on_the_cpu(call.run(), plain(call).run(), keys)


@decode_property(
    rare={"borderline", "nothing passes"}, law=("exact", "c = 0.25", "tiny"), sinks=None
)
def test_a_group_of_heads_loads_what_each_would(case, call, keys):
    """As heads with keys and values of their own; here, some key passes for each of them."""
    call = plain(call)
    out, stats = call.run()
    kept = kept_rows(call)
    call.k, call.v = (x.repeat_interleave(case.group_size, 1) for x in (call.k, call.v))
    if "v_sum" in call.options:
        call.options["v_sum"] = call.options["v_sum"].repeat_interleave(case.group_size, 1)
    own, own_stats = call.run()
    own_kept = kept_rows(call).unflatten(1, (case.num_kv_heads, -1)).any(2)
    assert not ((own_kept != kept) & ~keys.maybe).any()
    torch.testing.assert_close(own_stats.lse, stats.lse, atol=1e-5, rtol=1e-5)
    if case.law == "exact":
        torch.testing.assert_close(own, out, **tolerance(case.dtype))


@decode_property()
def test_inputs_are_only_read(call):
    law = call.law or sift.PowerLaw.exact()
    values = [call.q, call.k, call.v, law.log_alpha, law.beta, *call.options.values()]
    stored = [all_bytes(x) for x in values if isinstance(x, torch.Tensor)]
    before = [x.clone() for x in stored]
    call.run()
    assert all(map(torch.equal, stored, before))
