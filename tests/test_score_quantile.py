"""The quantiles of attention rows against the reference."""

import itertools
import math

import pytest
import torch

import sift_attention as sift
from cases import DTYPES, LAYOUTS, best_dtype, make_score_quantile_args

pytestmark = pytest.mark.usefixtures("device")


def assert_matches_reference(arguments):
    got = sift.score_quantile(**arguments)
    double = {**arguments, "q": arguments["q"].double(), "k": arguments["k"].double()}
    expected = sift.reference.score_quantile(**double)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "layout", "masked", "sinks"),
    [
        *((*pair, True, False) for pair in itertools.product(DTYPES, LAYOUTS)),
        (None, "contiguous", False, False),
        (None, "paged", True, True),
    ],
)
@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.95, 1.0])
def test_matches_reference(dtype, layout, masked, sinks, quantile):
    arguments = make_score_quantile_args(layout, dtype, masked, sinks)
    assert_matches_reference({**arguments, "quantile": quantile})


@pytest.mark.parametrize("options", [{"scale": 0.5}, {"softcap": 2.0}])
def test_options(options):
    assert_matches_reference({**make_score_quantile_args("contiguous"), **options})


def test_rank_is_exact():
    """0.95 * 100 is 95, although 0.95 in float32 is less."""
    q = torch.zeros(1, 1, 1, 64, dtype=best_dtype())
    q[..., 0] = 1.0
    k = torch.zeros(1, 1, 101, 64, dtype=best_dtype())
    k[..., 0] = torch.randperm(101)
    got = sift.score_quantile(q, k, torch.tensor([[101]]).int(), 0.95, scale=0.1)
    expected = (0.1 * torch.arange(101.0)).softmax(0)[95]
    torch.testing.assert_close(got[0, 0, 0], expected)


def test_keeping_above_the_quantile_keeps_its_share():
    q, k, v = (torch.randn(2, 8, rows, 64, dtype=best_dtype()) for rows in (1, 1000, 1000))
    lengths = torch.full((2, 1), 1000, dtype=torch.int32)
    theta = sift.score_quantile(q, k, lengths, 0.95)[..., 0]
    law = sift.PowerLaw(theta.log(), 0.0)
    _, stats = sift.decode(q[:, :, 0], k, v, law, return_stats=True)
    assert (stats.num_loaded - 50).abs().max() <= 1


@pytest.mark.row(1)
def test_rows_without_a_sample():
    arguments = make_score_quantile_args("contiguous")
    lengths = arguments["lengths"]
    lengths[0, 1] = -3
    got = sift.score_quantile(**arguments)
    assert torch.equal(got.isnan(), (lengths <= 0)[:, None].expand_as(got))
    arguments["key_mask"] = torch.zeros(2, 130, dtype=torch.bool)
    assert sift.score_quantile(**arguments).isnan().all()


@pytest.mark.row(6)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nan_scores_come_out_as_nan(poison):
    arguments = make_score_quantile_args("contiguous", masked=False)
    arguments["q"][..., 0] = 1.0
    arguments["k"][0, 1, 20, 0] = poison  # seen by the rows of 40 and 80 keys
    got = sift.score_quantile(**arguments)
    expected = torch.zeros(2, 8, 6, dtype=torch.bool)
    expected[0, 4:, [3, 5]] = True
    expected[0, :, 4] = True  # no sample
    assert torch.equal(got.isnan(), expected)


@pytest.mark.row(6)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nan_sinks_come_out_as_nan(poison):
    arguments = make_score_quantile_args("contiguous", sinks=True)
    arguments["sinks"][5] = poison
    got = sift.score_quantile(**arguments)
    expected = sift.reference.score_quantile(**arguments)
    assert got[:, 5].isnan().all()
    torch.testing.assert_close(got, expected, equal_nan=True)


def make_long_args():
    """One tile of several thousand keys: threads share it by cutting it along the keys."""
    dtype = best_dtype()
    q, k = torch.randn(1, 4, 4, 64, dtype=dtype), torch.randn(1, 1, 5000, 64, dtype=dtype)
    lengths = torch.tensor([[5000, 0, 3000, 1]], dtype=torch.int32)
    return {"q": q, "k": k, "lengths": lengths, "quantile": 0.95}


@pytest.mark.parametrize("order", ["random", "rising", "falling", "equal"])
def test_long_rows(order):
    arguments = make_long_args()
    if order != "random":
        step = {"rising": 1e-3, "falling": -1e-3, "equal": 0.0}[order]
        arguments["k"] = torch.zeros_like(arguments["k"])
        arguments["k"][..., 0] = step * torch.arange(5000)
    assert_matches_reference(arguments)


@pytest.mark.row(28, 29)
@pytest.mark.cpu_only
@pytest.mark.parametrize("make_args", [lambda: make_score_quantile_args("paged"), make_long_args])
def test_threads_change_no_bit(make_args):
    arguments = make_args()
    torch.set_num_threads(1)
    expected = sift.score_quantile(**arguments)
    torch.set_num_threads(2)
    got = sift.score_quantile(**arguments)
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32))


@pytest.mark.row(2)
@pytest.mark.parametrize("shape", [(0, 8, 4), (2, 8, 0)])
def test_nothing_to_do(shape):
    batch, heads, rows = shape
    q = torch.randn(batch, heads, rows, 64, dtype=best_dtype())
    k = torch.randn(batch, 2, 10, 64, dtype=best_dtype())
    lengths = torch.ones(batch, rows, dtype=torch.int32)
    assert sift.score_quantile(q, k, lengths, 0.5).shape == shape
