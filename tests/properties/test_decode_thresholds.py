"""What a threshold decides, whatever it is and whatever the scores are."""

import dataclasses
import math

import pytest
import torch
from hits import decode_property
from making import kept_rows, plain

import sift_attention as sift
from cases import assert_same_path

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.row(11)
@decode_property()
def test_the_loaded_rows_are_those_above_the_threshold(call, keys):
    """No key outside the band of rounding may be loaded or left out against the law."""
    kept = kept_rows(plain(call))
    assert not (keys.sure & ~kept).any()
    assert not (kept & ~keys.sure & ~keys.maybe).any()
    _, stats = call.run()
    assert torch.equal(kept.sum(-1).int(), stats.num_loaded)


@pytest.mark.row(10)
@decode_property(law=("zero", "nan"))
def test_a_threshold_of_zero_is_exact_attention(call):
    out, stats = call.run()
    call.law = None
    exact, exact_stats = call.run()
    assert_same_path(out, exact)
    assert_same_path(stats.lse, exact_stats.lse)
    assert_same_path(stats.kept_mass, exact_stats.kept_mass)
    assert torch.equal(stats.num_loaded, exact_stats.num_loaded)


@pytest.mark.row(9, 13)
@decode_property(law="one")
def test_a_threshold_above_every_p_loads_one_row(call):
    out, stats = call.run()
    call.law = None
    _, exact_stats = call.run()
    assert torch.equal(stats.num_loaded, (exact_stats.num_loaded > 0).int())
    call.law = sift.PowerLaw(torch.tensor(math.inf), 0.0)
    infinite, infinite_stats = call.run()
    assert torch.equal(infinite, out)
    assert torch.equal(infinite_stats.kept_mass, stats.kept_mass)


@decode_property(law=("c = 1.5", "per head", "mixed", "at a key"))
def test_a_higher_threshold_keeps_no_more(case, call):
    law = call.law
    loaded, mass = math.inf, math.inf
    for step in (-6.0, -2.0, -0.5, 0.0, 0.5, 2.0, 6.0, 200.0):
        call.law = sift.PowerLaw(law.log_alpha + step, law.beta)
        _, stats = call.run()
        assert (stats.num_loaded <= loaded).all()
        # Where no key passes, thresholds that differ by head may make way for a key that more
        # heads like.
        comparable = stats.num_loaded.repeat_interleave(case.group_size, 1) > 1
        comparable |= case.law == "c = 1.5"
        assert ((stats.kept_mass <= mass) | ~comparable).all()
        loaded, mass = stats.num_loaded, stats.kept_mass + 1e-5


@decode_property()
def test_dropped_keys_weigh_no_more_than_the_threshold(case, call, keys):
    _, stats = call.run()
    _, exact_stats = dataclasses.replace(call, law=None).run()
    dropped = exact_stats.kept_mass - stats.kept_mass
    count = call.attended().sum(1)
    num_dropped = (count[:, None] - stats.num_loaded).repeat_interleave(case.group_size, 1)
    theta = (call.law or sift.PowerLaw.exact()).theta(count[:, None]).nan_to_num(0.0)
    passes = keys.passing.any(-1).repeat_interleave(case.group_size, 1)
    bound = num_dropped * theta * keys.eps.exp() + 1e-5 + keys.eps
    assert ((dropped <= bound) | ~passes).all()
