"""NaN, infinity and the far ends of float32, in scores and in values."""

import math

import pytest
import torch

import sift_attention as sift
from cases import RESIDUALS, Case, make_call, tolerance

pytestmark = pytest.mark.usefixtures("device")

LAWS = pytest.mark.parametrize("law", ["exact", "uniform", "above"])
POISON = pytest.mark.parametrize("poison", [math.nan, math.inf])


@pytest.mark.row(5)
@pytest.mark.parametrize("law", [None, sift.PowerLaw.uniform(1.2), sift.PowerLaw(0.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "scores",
    [
        [-1e5, -1e5 + 1.0, -1e5 - 3.0],
        [-1e30, -1e30, -math.inf],
        [-3e38, -3e38, -3.2e38],
        [-3e38, 3e38, 0.0],
        [3e38, 3e38, 3e38, -3e38],
        [0.0, -86.0, -88.0, -104.0, -200.0],
        [-3.3e38] * 5,
    ],
    ids=str,
)
def test_extreme_scores(scores, dtype, law):
    """A one-hot V shows each loaded key with its probability."""
    num_keys = len(scores)
    q, k = torch.zeros(1, 1, 64, dtype=dtype), torch.zeros(1, 1, num_keys, 64, dtype=dtype)
    q[..., 0], k[0, 0, :, 0] = 1.0, torch.tensor(scores)
    v = torch.eye(64, dtype=dtype)[None, None, :num_keys]
    out, stats = sift.decode(q, k, v, law, scale=1.0, residual="none", return_stats=True)
    scores = k[0, 0, :, 0].double()
    p = scores.softmax(0)
    theta = 0.0 if law is None else law.theta(num_keys).item()
    loaded = (p > theta) | ((law is None) & (scores > -math.inf))
    if not loaded.any():
        loaded[p.argmax()] = True
    expected = torch.where(loaded, p, 0.0)
    torch.testing.assert_close(out[0, 0, :num_keys].double(), expected, **tolerance(dtype))
    torch.testing.assert_close(stats.lse[0, 0].double(), scores.logsumexp(0), atol=2e-4, rtol=1e-6)
    torch.testing.assert_close(stats.kept_mass[0, 0].double(), expected.sum(), atol=1e-6, rtol=1e-5)
    assert loaded[p > 1e-30].sum() <= stats.num_loaded <= num_keys
    call = {"scale": 1.0, "residual": "none"}
    reference = sift.reference.decode(q.double(), k.double(), v.double(), law, **call)
    torch.testing.assert_close(reference[0, 0, :num_keys], expected)


@pytest.mark.row(6)
@LAWS
@POISON
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("where", ["q", "k"])
def test_nan_scores_come_out_as_nan(residual, poison, where, law):
    call = make_call(Case(residual=residual, sharpness=2.0, law=law))
    clean, _ = call.run()
    poisoned = torch.zeros(2, 8, dtype=torch.bool)
    if where == "q":
        call.q[0, 5, 3] = math.nan
        poisoned[0, 5] = True
        untouched = torch.ones(2, 8, dtype=torch.bool)
        untouched[0, 4:] = False  # the group loads more rows
    else:
        call.q[0, 4:, 3] = 1.0
        clean, _ = call.run()
        call.k[0, 1, 77, 3] = poison
        poisoned[0, 4:] = True
        untouched = ~poisoned
    out, stats = call.run()
    assert torch.equal(out.isnan().all(-1), poisoned)
    assert torch.equal(stats.lse.isnan(), poisoned)
    assert torch.equal(stats.kept_mass.isnan(), poisoned)
    assert torch.equal(out[untouched], clean[untouched])


@pytest.mark.row(6)
@LAWS
@pytest.mark.parametrize("bits", [0x7F81, 0x7FC0, -0x40, -0x1])
def test_every_kind_of_nan(bits, law):
    """Quiet, signalling, negative."""
    call = make_call(Case(dtype=torch.bfloat16, law=law))
    call.k.view(torch.int16)[1, 0, 129, 7] = bits
    assert call.k[1, 0, 129, 7].isnan()
    out, stats = call.run()
    assert out[1, :4].isnan().all()
    assert stats.lse[1, :4].isnan().all()
    assert not out[0].isnan().any()


@pytest.mark.row(6)
@LAWS
@POISON
@pytest.mark.parametrize("residual", RESIDUALS)
def test_nan_sinks_come_out_as_nan(law, poison, residual):
    call = make_call(Case(law=law, residual=residual, sinks=True))
    call.options["sinks"][5] = poison
    out, stats = call.run()
    expected, expected_stats = call.run(sift.reference.decode)
    poisoned = torch.zeros(2, 8, dtype=torch.bool)
    poisoned[:, 5] = True
    assert torch.equal(out.isnan().all(-1), poisoned)
    torch.testing.assert_close(out, expected, equal_nan=True, **tolerance(out.dtype))
    torch.testing.assert_close(stats.lse, expected_stats.lse, equal_nan=True)
    torch.testing.assert_close(stats.kept_mass, expected_stats.kept_mass, equal_nan=True)


@pytest.mark.row(6)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_softcapped_scores(poison):
    """tanh makes the cap of an infinite score; NaN stays NaN."""
    call = make_call(Case(softcap=5.0, capacity=1, residual="none", num_q_heads=2))
    call.q[..., 3], call.k[..., 3] = 1.0, poison
    out, stats = call.run()
    if math.isnan(poison):
        assert out.isnan().all()
        assert stats.lse.isnan().all()
    else:
        torch.testing.assert_close(stats.lse, torch.full((2, 2), math.copysign(5.0, poison)))
        torch.testing.assert_close(out, call.v[:, :, 0])


@pytest.mark.row(7)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("residual", ["renormalize", "none"])
def test_nan_values_matter_only_when_loaded(residual, poison):
    call = make_call(Case(residual=residual, num_q_heads=2, sharpness=3.0))
    clean, _ = call.run()
    p = (call.q[:, :, None] @ call.k.mT)[:, :, 0]
    call.v[0, 0, p[0, 0].argmin()] = poison
    assert torch.equal(call.run()[0], clean)
    call.v[0, 0, p[0, 0].argmax()] = poison
    out, _ = call.run()
    assert not out[0, 0].isfinite().any()
    assert torch.equal(out[0, 1], clean[0, 1])
