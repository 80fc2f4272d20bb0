"""The fit over tensors against the reference."""

import math

import pytest
import torch

import sift_attention as sift
from cases import best_dtype

pytestmark = pytest.mark.usefixtures("device")


def assert_matches_reference(lengths, quantiles, beta=None):
    law, ok = sift.fit_power_law(lengths, quantiles, beta)
    expected, expected_ok = sift.reference.fit_power_law(lengths, quantiles, beta)
    assert torch.equal(ok, expected_ok)
    torch.testing.assert_close(law.log_alpha, expected.log_alpha, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(law.beta, expected.beta, atol=1e-5, rtol=1e-5)
    return law, ok


@pytest.mark.parametrize("beta", [None, 1.0, 0.0])
@pytest.mark.parametrize("has_ints", [True, False])
def test_recovers_a_law(beta, has_ints):
    lengths = torch.tensor([[10, 20, 0, 90, 400], [1, 2, 4, 8, 0]])
    lengths = lengths.int() if has_ints else lengths.float()
    true_beta = torch.tensor([[0.5, 1.5], [0.7, 1.2]]) if beta is None else torch.full((2, 2), beta)
    true_log_alpha = torch.tensor([[-3.0, -1.0], [-0.5, -4.0]])
    log_lengths = lengths.clamp(min=1).float().log()[:, None]
    quantiles = (true_log_alpha[..., None] - true_beta[..., None] * log_lengths).exp()
    law, ok = assert_matches_reference(lengths, quantiles, beta)
    assert ok.all()
    torch.testing.assert_close(law.log_alpha, true_log_alpha, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(law.beta, true_beta, atol=1e-4, rtol=1e-4)


@pytest.mark.row(12)
@pytest.mark.parametrize(
    ("lengths", "quantiles", "beta"),
    [
        pytest.param([100, 300], [0.1, 0.01], None, id="too few samples"),
        pytest.param([100, 300, 0], [0.1, 0.01, 0.01], None, id="too few present"),
        pytest.param([100, 300], [0.1, 0.01], 1.0, id="too few samples, slope fixed"),
        pytest.param([100, 300, 399], [0.1, 0.01, 0.01], None, id="lengths too close"),
        pytest.param([100, 300, 400], [0.1, 0.2, 0.3], None, id="rising"),
        pytest.param([100, 300, 400], [0.1, math.nan, 0.01], None, id="nan"),
        pytest.param([100, 300, 400], [0.1, math.nan, 0.01], 1.0, id="nan, slope fixed"),
        pytest.param([100, 300, 400], [0.1, -0.1, 0.01], None, id="negative"),
        pytest.param([100, 300, 400], [1.1, 0.1, 0.01], None, id="above 1"),
        pytest.param([100, -300, 400], [0.1, 0.1, 0.01], None, id="negative length"),
        pytest.param([], [], None, id="nothing"),
    ],
)
def test_a_refused_head_stays_exact(lengths, quantiles, beta):
    good = [0.1] * len(quantiles) if beta is not None else quantiles[::-1]
    lengths = torch.tensor([lengths], dtype=torch.int32)
    law, ok = assert_matches_reference(lengths, torch.tensor([[quantiles, good]]), beta)
    assert not ok[0, 0]
    assert law.log_alpha[0, 0] == -math.inf
    assert law.beta[0, 0] == 0.0


@pytest.mark.row(12)
def test_an_absent_sample_may_hold_anything():
    lengths = torch.tensor([[100, 0, 400, 1600]], dtype=torch.int32)
    quantiles = 2.0 / lengths.clamp(min=1).float()[:, None]
    expected, _ = sift.fit_power_law(lengths, quantiles)
    quantiles[..., 1] = math.nan
    law, ok = assert_matches_reference(lengths, quantiles)
    assert ok.all()
    assert torch.equal(law.log_alpha, expected.log_alpha)


@pytest.mark.row(12)
def test_underflow_counts_as_the_smallest_float():
    lengths = torch.tensor([[100, 400, 1600]], dtype=torch.int32)
    quantiles = torch.tensor([[[1e-3, 1e-4, 0.0]]])
    law, ok = assert_matches_reference(lengths, quantiles)
    assert ok.all()
    assert law.theta(1600.0).item() > 0.0


def test_from_the_prompt_to_the_law():
    """Scores of random keys: keeping the upper 5 % at other lengths, too."""
    dtype = best_dtype()
    q, k = torch.randn(1, 4, 32, 64, dtype=dtype), torch.randn(1, 2, 4000, 64, dtype=dtype)
    lengths = torch.logspace(math.log10(100), math.log10(1000), 32).int()[None]
    law, ok = sift.fit_power_law(lengths, sift.score_quantile(q, k, lengths, 0.95))
    assert ok.all()
    _, stats = sift.decode(q[:, :, 0], k, k, law, return_stats=True)
    assert ((stats.num_loaded > 0.05 * 4000) & (stats.num_loaded < 0.3 * 4000)).all()
