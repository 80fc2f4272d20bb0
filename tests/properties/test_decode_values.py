"""What decode makes of the value rows."""

import math

import pytest
import torch
from hits import decode_property
from making import Draw, kept_rows, plain

from cases import tolerance
from oracle import assert_matches_reference

pytestmark = pytest.mark.usefixtures("device")


@decode_property()
def test_matches_reference(call):
    assert_matches_reference(call)


SMALL_INTEGERS = (0, 1, -1, 2, 3, -5, 8)


@decode_property({"factor": SMALL_INTEGERS, "offset": SMALL_INTEGERS}, shared=(None, "heads"))
def test_an_affine_map_of_the_values(case, call, seed, factor, offset):
    """Of small integers, which every dtype holds."""
    call = plain(call)
    attended = call.attended()[:, None, :, None]
    call.v = (Draw(seed).below(17, *call.v.shape) - 8.0).to(case.dtype)
    if case.residual == "mean":
        call.options["v_sum"] = (call.v * attended).sum(2).float()
    out, stats = call.run()
    call.v = factor * call.v + offset
    if case.residual == "mean":
        call.options["v_sum"] = (call.v.float() * attended).sum(2)
    mapped, _ = call.run()
    share = stats.kept_mass[..., None]
    if case.residual != "none":
        # The mass of all keys, which is what the sink leaves. Where float32 takes the loaded rows
        # of a group to have no mass for a head, there is nothing to renormalise.
        left = 1.0 - (call.options["sinks"] - stats.lse).exp() if case.sinks is not None else 1.0
        has_share = stats.lse > -math.inf
        if case.residual == "renormalize":
            has_share &= stats.kept_mass > 0.0
        share = torch.where(has_share, left, 0.0)[..., None]
    expected = factor * out.float() + offset * share
    bound = tolerance(case.dtype)["atol"] * (1.0 + 8.0 * abs(factor) + abs(offset))
    torch.testing.assert_close(mapped.float(), expected, atol=bound, rtol=0.0)


@decode_property(residual="renormalize", sinks=None)
def test_renormalised_output_lies_among_the_loaded_values(case, call):
    call = plain(call)
    out, _ = call.run()
    kept = kept_rows(call)[..., None]
    highest = call.v.float().masked_fill(~kept, -math.inf)
    lowest = call.v.float().masked_fill(~kept, math.inf)
    if case.capacity == 0 or not kept.any():
        assert (out == 0.0).all()
        return
    has_rows = kept.any(2).repeat_interleave(case.group_size, 1)
    highest, lowest = (
        x.repeat_interleave(case.group_size, 1) for x in (highest.amax(2), lowest.amin(2))
    )
    slack = tolerance(case.dtype)["atol"] * (1.0 + call.v.float().nan_to_num(0.0).abs().max())
    inside = (out <= highest + slack) & (out >= lowest - slack)
    assert (inside | ~has_rows | (out == 0.0).all(-1, keepdim=True)).all()


@decode_property()
def test_dropped_mass_bounds_the_error(case, call):
    """By the spread of V, or by its largest number where nothing stands in for dropped rows."""
    out, stats = call.run()
    call.law = None
    exact, exact_stats = call.run()
    call = plain(call)
    dropped = (exact_stats.kept_mass - stats.kept_mass).clamp(min=0.0)[..., None]
    attended = call.attended()[:, None, :, None]
    v = call.v.float()
    if case.capacity == 0:
        return
    if case.residual == "none":
        width = v.nan_to_num(0.0).abs().amax(2)
    else:
        highest = v.masked_fill(~attended, -math.inf).amax(2)
        width = (highest - v.masked_fill(~attended, math.inf).amin(2)).clamp(min=0.0)
    width = width.repeat_interleave(case.group_size, 1)
    rounding = 1e-5 + 8 * torch.finfo(case.dtype).eps
    bound = dropped * width + rounding * (1.0 + width)
    assert ((out - exact).abs().float() <= bound).all()
