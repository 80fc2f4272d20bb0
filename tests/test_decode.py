"""What decode computes."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import sift_attention as sift
from cases import (
    CASES,
    DTYPES,
    HEAD_DIMS,
    RESIDUALS,
    Case,
    assert_same_path,
    make_call,
    tolerance,
)
from oracle import assert_matches_reference

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case):
    assert_matches_reference(make_call(case))


@pytest.mark.row(10)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("law", [None, sift.PowerLaw.exact(), sift.PowerLaw.uniform(0.0)])
def test_keeping_all_is_dense_attention(dtype, law):
    q, k, v = (torch.randn(2, heads, 300, 64, dtype=dtype) for heads in (8, 2, 2))
    q = q[:, :, 0]
    out, stats = sift.decode(q, k, v, law, return_stats=True)
    dense = scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)[:, :, 0]
    torch.testing.assert_close(out, dense, **tolerance(dtype))
    assert (stats.num_loaded == 300).all()
    torch.testing.assert_close(stats.kept_mass, torch.ones(2, 8))


@pytest.mark.row(10)
@pytest.mark.parametrize("sinks", [False, True])
def test_loading_all_has_the_same_bits_for_every_law_and_residual(sinks):
    call = make_call(Case(sinks=sinks, law="exact", residual="mean"))
    exact, _ = call.run()
    call.law = sift.PowerLaw(-50.0, 0.0)  # positive, but below every p
    for residual in RESIDUALS:
        out, stats = call.with_options(residual=residual).run()
        assert (stats.num_loaded == 130).all()
        assert_same_path(out, exact)


def test_loading_all_leaves_nothing_to_the_residual():
    call = make_call(Case(law="exact"))
    expected, _ = call.run()
    v_sum = torch.full_like(call.options["v_sum"], math.nan)
    assert torch.equal(call.with_options(v_sum=v_sum).run()[0], expected)


@pytest.mark.row(10)
def test_exact_law_loads_keys_whose_probability_underflows():
    call = make_call(Case(law="exact", sharpness=300.0))
    _, stats = call.run()
    assert (stats.num_loaded == 130).all()


@pytest.mark.row(9, 13)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_law_above_every_p_loads_the_largest_key(head_dim):
    call = make_call(Case(law="above", residual="none", num_kv_heads=8, head_dim=head_dim))
    out, stats = call.run()
    scores = (call.q.double()[:, :, None] @ call.k.double().mT)[:, :, 0] / math.sqrt(head_dim)
    largest, index = scores.softmax(-1).max(dim=-1)
    row = call.v.gather(2, index[..., None, None].expand(-1, -1, 1, head_dim))[:, :, 0]
    assert (stats.num_loaded == 1).all()
    torch.testing.assert_close(stats.kept_mass, largest.float())
    expected = (largest[..., None] * row).to(out.dtype)
    torch.testing.assert_close(out, expected, **tolerance(out.dtype))


@pytest.mark.row(9)
def test_renormalised_single_key_is_its_value_row():
    call = make_call(Case(law="above", residual="renormalize", num_q_heads=2))
    out, _ = call.run()
    rows, close = call.v.reshape(-1, 64), tolerance(out.dtype)
    assert all(torch.isclose(row, rows, **close).all(dim=-1).any() for row in out.reshape(-1, 64))


@pytest.mark.row(11)
def test_ties_load_the_first_attended_key():
    call = make_call(Case(sharpness=0.0, masked=True, residual="none"))
    call.options["key_mask"] = call.options["key_mask"].clone()
    call.options["key_mask"][:, 0] = False
    out, stats = call.run()
    num_attended = call.attended().sum(1)[:, None, None]
    assert (stats.num_loaded == 1).all()
    expected = call.v[:, :, 2].repeat_interleave(4, 1) / num_attended
    torch.testing.assert_close(out, expected, **tolerance(out.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_kept_set(dtype):
    """A one-hot V shows each loaded key with its probability."""
    call = make_call(Case(dtype=dtype, capacity=256, head_dim=256, residual="none"))
    call.v = torch.eye(256, dtype=dtype).expand(2, 2, 256, 256)
    out, stats = call.run()
    p = (call.q[:, :, None].double() @ call.k.double().repeat_interleave(4, 1).mT / 16.0).softmax(
        -1
    )
    p = p[:, :, 0]
    seen = (out > 0).reshape(2, 2, 4, 256)
    wanted = (p > 1.5 / 256).reshape(2, 2, 4, 256).any(dim=2)
    assert torch.equal(seen.any(dim=2), wanted)
    assert torch.equal(stats.num_loaded.long(), wanted.sum(-1))
    loaded = wanted.repeat_interleave(4, dim=1)
    torch.testing.assert_close(out.double(), p * loaded, atol=1e-6, rtol=4 * torch.finfo(dtype).eps)


def test_a_row_that_one_head_wants_serves_the_whole_group():
    call = make_call(Case(num_q_heads=2, num_kv_heads=1, residual="none"))
    log_alpha = torch.tensor([[-math.inf, 0.0]]).expand(2, 2)
    call.law = sift.PowerLaw(log_alpha, 0.0)  # head 0 wants all, head 1 nothing
    out, stats = call.run()
    call.law = None
    exact, _ = call.run()
    assert torch.equal(out, exact)
    assert (stats.num_loaded == 130).all()


@pytest.mark.parametrize("sinks", [False, True])
def test_lse_does_not_depend_on_the_law(sinks):
    call = make_call(Case(sinks=sinks, law="exact"))
    _, exact = call.run()
    for law in (sift.PowerLaw.uniform(2.0), sift.PowerLaw(0.0, 0.0)):
        call.law = law
        _, stats = call.run()
        assert_same_path(stats.lse, exact.lse)


@pytest.mark.row(14, 27)
def test_length_is_the_number_of_attended_keys():
    call = make_call(Case(masked=True, seq_lens=(100, 37)))
    length = call.attended().sum(1)[:, None].float()
    expected = call.run()
    call.law = sift.PowerLaw((1.5 / length).log().expand(2, 8), 0.0)
    for got, want in zip(call.run()[1], expected[1], strict=True):
        torch.testing.assert_close(got, want)


def test_laws_broadcast():
    call = make_call(Case(law="per_head"))
    log_alpha, beta = call.law.log_alpha[:1], call.law.beta[:, :1]
    call.law = sift.PowerLaw(log_alpha.expand(2, 8).contiguous(), beta.expand(2, 8).contiguous())
    expected, _ = call.run()
    for law in (
        sift.PowerLaw(log_alpha, beta),
        sift.PowerLaw(log_alpha[0], beta.expand(2, 8)),
    ):
        call.law = law
        assert torch.equal(call.run()[0], expected)


@pytest.mark.row(13)
@pytest.mark.parametrize("law", [sift.PowerLaw(1e30, 0.0), sift.PowerLaw(5.0, -3.0)])
def test_theta_is_clamped_to_one(law):
    call = make_call(Case(law="above"))
    expected, _ = call.run()
    call.law = law
    assert torch.equal(call.run()[0], expected)


@pytest.mark.row(12)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_nan_law_keeps_all(residual):
    call = make_call(Case(law="exact", residual=residual))
    expected, _ = call.run()
    call.law = sift.PowerLaw(torch.tensor(math.nan), 1.0)
    assert_same_path(call.run()[0], expected)


@pytest.mark.row(26)
@pytest.mark.parametrize("seq_lens", [(0, -5), (130, 1000)])
def test_lengths_are_clamped(seq_lens):
    call = make_call(Case(seq_lens=tuple(min(max(n, 0), 130) for n in seq_lens)))
    expected = call.run()
    got = call.with_options(seq_lens=torch.tensor(seq_lens, dtype=torch.int32)).run()
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1].lse, expected[1].lse)
