"""What holds for decode whatever the inputs are."""

import dataclasses
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import sift_attention as sift
from cases import LAYOUTS, Call, Case, assert_same_path, dtypes, head_dims, make_call, tolerance
from oracle import KeySets, assert_matches_reference

pytestmark = pytest.mark.usefixtures("device")

HEADS = [(1, 1), (4, 1), (6, 2), (8, 8)]


@st.composite
def cases(draw, **fixed):
    num_q_heads, num_kv_heads = draw(st.sampled_from(HEADS))
    batch = draw(st.integers(1, 3))
    capacity = draw(st.integers(1, 300))
    drawn = {
        "batch": batch,
        "num_q_heads": num_q_heads,
        "num_kv_heads": num_kv_heads,
        "capacity": capacity,
        "head_dim": draw(st.sampled_from(head_dims()[:3])),
        "dtype": draw(st.sampled_from(dtypes())),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "masked": draw(st.booleans()),
        "seq_lens": draw(st.none() | st.tuples(*[st.integers(0, capacity)] * batch)),
        "law": draw(st.sampled_from(["exact", "uniform", "per_head", "above"])),
        "residual": draw(st.sampled_from(["mean", "renormalize", "none"])),
        "softcap": draw(st.sampled_from([0.0, 5.0])),
        "sinks": draw(st.booleans()),
        "sharpness": draw(st.sampled_from([0.3, 1.0, 4.0])),
        "block_size": draw(st.sampled_from([1, 5, 16])),
    }
    return Case(**{**drawn, **fixed})


SEEDS = st.integers(0, 2**31 - 1)


def is_ambiguous(call: Call) -> bool:
    """Whether rounding may decide which keys are loaded."""
    return KeySets(Call(call.q.double(), call.k.double(), call.v, call.law, call.options)).ambiguous


@given(cases(), SEEDS)
def test_matches_reference(case, seed):
    assert_matches_reference(make_call(case, seed))


@given(cases(law="exact"), SEEDS)
def test_threshold_zero_and_one_are_the_ends(case, seed):
    call = make_call(case, seed)
    exact, exact_stats = call.run()
    call.law = sift.PowerLaw(-200.0, 0.0)  # below every p that float32 tells from 0
    out, stats = call.run()
    if torch.equal(stats.num_loaded, exact_stats.num_loaded):
        assert_same_path(out, exact)
    call.law = sift.PowerLaw(0.0, 0.0)
    _, stats = call.run()
    assert torch.equal(stats.num_loaded, (exact_stats.num_loaded > 0).int())


@given(cases(), SEEDS)
def test_a_higher_threshold_loads_no_more(case, seed):
    call = make_call(case, seed)
    loaded, mass = math.inf, math.inf
    for log_alpha in (-math.inf, -2.0, 0.0, 1.0, 2.0, 4.0, 1000.0):
        call.law = sift.PowerLaw(log_alpha, 1.0)
        _, stats = call.run()
        assert (stats.num_loaded <= loaded).all()
        assert (stats.kept_mass <= mass).all()
        loaded, mass = stats.num_loaded, stats.kept_mass + 1e-5


@given(cases(layout="contiguous", seq_lens=None, masked=False), SEEDS)
def test_order_of_the_keys(case, seed):
    call = make_call(case, seed)
    assume(not is_ambiguous(call))
    out, stats = call.run()
    order = torch.randperm(case.capacity)
    call.k, call.v = call.k[:, :, order], call.v[:, :, order]
    permuted, permuted_stats = call.run()
    eps = torch.finfo(case.dtype).eps
    assert torch.equal(permuted_stats.num_loaded, stats.num_loaded)
    torch.testing.assert_close(permuted, out, atol=8 * eps, rtol=8 * eps)
    torch.testing.assert_close(permuted_stats.kept_mass, stats.kept_mass, atol=1e-5, rtol=1e-5)


@given(cases(layout="contiguous"), SEEDS, st.integers(1, 200), st.sampled_from([math.nan, 6e4]))
def test_slots_that_are_not_attended(case, seed, num_added, garbage):
    call = make_call(dataclasses.replace(case, seq_lens=(case.capacity,) * case.batch), seed)
    out, stats = call.run()
    tail = call.k.new_full((case.batch, case.num_kv_heads, num_added, case.head_dim), garbage)
    call.k, call.v = torch.cat([call.k, tail], dim=2), torch.cat([call.v, -tail], dim=2)
    if case.masked:
        mask = call.options["key_mask"]
        call.options["key_mask"] = torch.cat([mask, mask.new_ones(case.batch, num_added)], dim=1)
    appended, appended_stats = call.run()
    assert torch.equal(appended, out)
    for a, b in zip(appended_stats, stats, strict=True):
        assert torch.equal(a, b)


@given(cases(softcap=0.0, sinks=False, dtype=None), SEEDS, st.floats(-50.0, 50.0))
def test_a_constant_added_to_every_score(case, seed, constant):
    call = make_call(case, seed)
    call.k[..., 0] = 1.0
    call.q[..., 0] = 0.0
    assume(not is_ambiguous(call))
    _, stats = call.run()
    call.q[..., 0] = constant * math.sqrt(case.head_dim)
    constant = call.q[0, 0, 0].item() / math.sqrt(case.head_dim)  # as q's dtype holds it
    assume(not is_ambiguous(call))
    _, shifted = call.run()
    assert torch.equal(shifted.num_loaded, stats.num_loaded)
    torch.testing.assert_close(shifted.kept_mass, stats.kept_mass, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shifted.lse, stats.lse + constant, atol=1e-3, rtol=1e-5)


@given(cases(dtype=None), SEEDS, st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
def test_an_affine_map_of_the_values(case, seed, factor, offset):
    call = make_call(case, seed)
    out, stats = call.run()
    num_attended = call.attended().sum(dim=1)[:, None, None]
    call.v = factor * call.v + offset
    if "v_sum" in call.options:
        call.options["v_sum"] = factor * call.options["v_sum"] + offset * num_attended
    mapped, _ = call.run()
    if case.residual == "none" or case.sinks:
        assume(case.residual == "none")
        share = stats.kept_mass[..., None]
    else:
        share = (num_attended > 0).float()
    bound = 10.0 * tolerance(out.dtype)["atol"]  # V is rounded once more
    expected = factor * out + (offset * share).to(out.dtype)
    torch.testing.assert_close(mapped, expected, atol=bound, rtol=bound)


@given(cases(residual="renormalize", sinks=False, masked=False, dtype=None), SEEDS)
def test_renormalised_output_lies_among_the_values(case, seed):
    call = make_call(dataclasses.replace(case, layout="contiguous", seq_lens=None), seed)
    out, _ = call.run()
    v = call.v.repeat_interleave(case.num_q_heads // case.num_kv_heads, dim=1)
    slack = tolerance(out.dtype)["atol"] * (1.0 + v.abs().max())
    assert (out <= v.amax(dim=2) + slack).all()
    assert (out >= v.amin(dim=2) - slack).all()


@given(cases(), SEEDS)
def test_dropped_mass_bounds_the_error(case, seed):
    call = make_call(case, seed).with_options(residual="renormalize")
    out, stats = call.run()
    call.law = None
    exact, exact_stats = call.run()
    dropped = (exact_stats.kept_mass - stats.kept_mass).clamp(min=0.0)[..., None]
    attended = call.attended()[:, None, :, None]
    v = sift.reference.gather_rows(call.v, call.options.get("block_table")).float()
    highest = v.masked_fill(~attended, -math.inf).amax(dim=2)
    lowest = v.masked_fill(~attended, math.inf).amin(dim=2)
    spread = (highest - lowest).clamp(min=0.0)
    spread = spread.repeat_interleave(case.num_q_heads // case.num_kv_heads, dim=1)
    rounding = 1e-5 + 8 * torch.finfo(case.dtype).eps
    assert ((out - exact).abs().float() <= dropped * spread + rounding * (1.0 + spread)).all()


@given(cases(), SEEDS)
def test_a_batch_is_its_sequences(case, seed):
    call = make_call(case, seed)
    together, stats = call.run()
    order = torch.randperm(case.batch)
    paged = case.layout == "paged"
    options = {
        name: value[order] if isinstance(value, torch.Tensor) and name != "sinks" else value
        for name, value in call.options.items()
    }
    law = call.law
    if case.law == "per_head":
        law = sift.PowerLaw(law.log_alpha[order], law.beta[order])
    k, v = (rows if paged else rows[order] for rows in (call.k, call.v))
    permuted, permuted_stats = Call(call.q[order], k, v, law, options).run()
    assert torch.equal(permuted, together[order])
    for a, b in zip(permuted_stats, stats, strict=True):
        assert torch.equal(a, b[order])


@given(cases(law="exact"), SEEDS)
def test_grouped_heads_are_repeated_heads(case, seed):
    case = dataclasses.replace(case, layout="strided")
    call = make_call(case, seed)
    out, stats = call.run()
    group_size = case.num_q_heads // case.num_kv_heads
    call.k, call.v = (rows.repeat_interleave(group_size, dim=1) for rows in (call.k, call.v))
    if "v_sum" in call.options:
        call.options["v_sum"] = call.options["v_sum"].repeat_interleave(group_size, dim=1)
    repeated, repeated_stats = call.run()
    eps = torch.finfo(case.dtype).eps
    torch.testing.assert_close(repeated, out, atol=4 * eps, rtol=4 * eps)
    torch.testing.assert_close(repeated_stats.lse, stats.lse, atol=1e-5, rtol=1e-5)


@given(cases(masked=False, capacity=80, seq_lens=None), SEEDS)
def test_layouts_agree(case, seed):
    expected, stats = make_call(dataclasses.replace(case, layout="contiguous"), seed).run()
    for layout in ("strided", "paged"):
        out, layout_stats = make_call(dataclasses.replace(case, layout=layout), seed).run()
        assert torch.equal(out, expected)
        for a, b in zip(layout_stats, stats, strict=True):
            assert torch.equal(a, b)
