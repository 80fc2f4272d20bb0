"""Sequences with nothing to attend, one key, or less than that."""

import math

import pytest
import torch

import sift_attention as sift
from cases import DTYPES, RESIDUALS, Case, best_dtype, make_call, tolerance

pytestmark = pytest.mark.usefixtures("device")

LAWS = pytest.mark.parametrize("law", ["exact", "uniform", "above"])


def hide_first_sequence(call, how):
    """Leaves it no key, in one of three ways, and garbage in all that is its own."""
    if how == "length":
        call.options["seq_lens"] = torch.tensor([0, 128], dtype=torch.int32)
    elif how == "mask":
        call.options["key_mask"] = torch.tensor([[False], [True]]).expand(2, 128).contiguous()
    else:
        call.options["block_table"][0] = torch.tensor([-1, 10**9, -(2**31), 2**31 - 1] * 2)
    if how != "pages":
        call.k[0], call.v[0] = math.nan, math.inf
    if "v_sum" in call.options:
        call.options["v_sum"][0] = math.nan


@pytest.mark.row(1)
@LAWS
@pytest.mark.parametrize("how", ["length", "mask", "pages"])
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_without_keys(how, residual, sinks, law):
    layout = "paged" if how == "pages" else "contiguous"
    call = make_call(Case(capacity=128, residual=residual, sinks=sinks, law=law, layout=layout))
    expected, expected_stats = call.run()
    hide_first_sequence(call, how)
    for shape in ((2, 8, 64), (2, 8), (2, 2)):
        torch.full(shape, math.nan)  # what the results may begin with
    out, stats = call.run()
    assert (out[0] == 0).all()
    assert (stats.kept_mass[0] == 0).all()
    assert (stats.num_loaded[0] == 0).all()
    lse = call.options["sinks"] if sinks else torch.full((8,), -math.inf)
    torch.testing.assert_close(stats.lse[0], lse)
    torch.testing.assert_close(out[1], expected[1], **tolerance(out.dtype))
    assert torch.equal(stats.num_loaded[1], expected_stats.num_loaded[1])


@pytest.mark.row(2)
@pytest.mark.parametrize("layout", ["contiguous", "strided", "paged"])
@pytest.mark.parametrize(("batch", "capacity"), [(0, 5), (2, 0), (0, 0)])
def test_no_sequences_and_no_keys(batch, capacity, layout):
    out, stats = make_call(Case(batch=batch, capacity=capacity, layout=layout)).run()
    assert (out.shape, stats.lse.shape, stats.num_loaded.shape) == (
        (batch, 8, 64),
        (batch, 8),
        (batch, 2),
    )
    assert (out == 0).all()
    assert (stats.lse == -math.inf).all()
    assert (stats.num_loaded == 0).all()


@pytest.mark.row(2)
@pytest.mark.parametrize(
    ("num_blocks", "block_size", "max_blocks"), [(0, 4, 3), (5, 0, 3), (5, 4, 0)]
)
def test_no_pages(num_blocks, block_size, max_blocks):
    q = torch.ones(1, 4, 64, dtype=best_dtype())
    pages = torch.ones(num_blocks, block_size, 2, 64, dtype=best_dtype())
    table = torch.zeros(1, max_blocks, dtype=torch.int32)
    out, stats = sift.decode(q, pages, pages, block_table=table, return_stats=True)
    assert (out == 0).all()
    assert (stats.lse == -math.inf).all()
    lengths = torch.ones(1, 1, dtype=torch.int32)
    quantiles = sift.score_quantile(q[:, :, None], pages, lengths, 0.5, block_table=table)
    assert quantiles.isnan().all()


@pytest.mark.row(2)
@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0)])
def test_no_samples(shape):
    batch, _, num_samples = shape
    lengths = torch.ones(batch, num_samples, dtype=torch.int32)
    law, ok = sift.fit_power_law(lengths, torch.ones(shape))
    assert law.log_alpha.shape == law.beta.shape == ok.shape == shape[:2]
    assert not ok.any()
    assert (law.log_alpha == -math.inf).all()


@pytest.mark.row(3)
@LAWS
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_key(law, residual, dtype):
    call = make_call(Case(capacity=1, dtype=dtype, law=law, residual=residual, sharpness=5.0))
    out, stats = call.run()
    torch.testing.assert_close(out, call.v[:, :, 0].repeat_interleave(4, dim=1))
    torch.testing.assert_close(stats.kept_mass, torch.ones(2, 8))
    assert (stats.num_loaded == 1).all()


@pytest.mark.row(4)
@LAWS
@pytest.mark.parametrize("residual", RESIDUALS)
def test_scores_of_minus_infinity_are_like_no_keys(residual, law):
    call = make_call(Case(residual=residual, law=law, num_q_heads=2, num_kv_heads=2))
    call.q[:, 0], call.k[:, 0] = 1.0, -math.inf
    out, stats = call.run()
    assert (out[:, 0] == 0).all()
    assert (stats.lse[:, 0] == -math.inf).all()
    assert (stats.kept_mass[:, 0] == 0).all()
    assert (stats.num_loaded[:, 0] == 0).all()
    assert (stats.num_loaded[:, 1] > 0).all()


@pytest.mark.row(4)
@pytest.mark.parametrize("law", ["exact", "uniform"])
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_without_finite_scores_beside_one_with(law, residual, dtype):
    call = make_call(Case(law=law, residual=residual, num_q_heads=2, num_kv_heads=1, dtype=dtype))
    call.k[..., 0] = -1e30
    call.q[:, :, 0] = torch.tensor([1e30, 0.0])  # -1e60 is -inf in float32
    out, stats = call.run()
    assert (out[:, 0] == 0).all()
    assert (stats.lse[:, 0] == -math.inf).all()
    assert (stats.kept_mass[:, 0] == 0).all()
    call.q = call.q[:, 1:]
    alone, alone_stats = call.run()
    torch.testing.assert_close(out[:, 1:], alone, **tolerance(dtype))
    assert torch.equal(stats.num_loaded, alone_stats.num_loaded)
