"""Laws at their limits, lengths at theirs, and inputs that change between calls."""

import math

import pytest
import torch

import sift_attention as sift
from cases import RESIDUALS, Case, assert_same_path, best_dtype, make_call
from test_decode_bits import assert_same_bits

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.row(11)
@pytest.mark.cpu_only  # CUDA compares logarithms, which round in another way
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_keys", [1, 2, 3, 64, 1000, 1025, 50_001])
def test_a_key_at_the_threshold_is_not_loaded(num_keys, num_threads):
    """p = 1 / S = theta: nothing passes, so the first of the equals is loaded."""
    torch.set_num_threads(num_threads)
    q, v = torch.zeros(1, 2, 32), torch.randn(1, 1, num_keys, 32)
    k = torch.ones(1, 1, 1, 32).expand(1, 1, num_keys, 32)
    for c, num_loaded in [(1.0, 1), (0.999, num_keys), (1.001, 1)]:
        law = sift.PowerLaw.uniform(c)
        out, stats = sift.decode(q, k, v, law, residual="none", return_stats=True)
        assert stats.num_loaded.item() == num_loaded
        if num_loaded == 1:
            torch.testing.assert_close(out[0, 0], v[0, 0, 0] / num_keys)


KEEPS_ALL = [(math.nan, 1.0), (0.0, math.nan), (math.inf, math.inf), (0.0, math.inf)]
KEEPS_ONE = [(math.inf, 1.0), (1e30, 0.0), (0.0, -math.inf), (3e38, -3e38)]


@pytest.mark.row(12, 13)
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize(
    ("log_alpha", "beta", "num_loaded"),
    [*((*law, 130) for law in KEEPS_ALL), *((*law, 1) for law in KEEPS_ONE)],
)
def test_one_group_with_a_law_of_no_numbers(log_alpha, beta, num_loaded, residual):
    """NaN keeps all, theta is clamped to 1, and the other groups notice nothing."""
    call = make_call(Case(law="per_head", residual=residual))
    others, other_stats = call.run()
    call.law.log_alpha[0, :4], call.law.beta[0, :4] = log_alpha, beta
    out, stats = call.run()
    assert stats.num_loaded[0, 0] == num_loaded
    call.law = sift.PowerLaw(-math.inf if num_loaded > 1 else 0.0, 0.0)
    expected, _ = call.run()
    if num_loaded > 1:
        assert_same_path(out[0, :4], expected[0, :4])
    else:
        assert torch.equal(out[0, :4], expected[0, :4])
    assert torch.equal(out[0, 4:], others[0, 4:])
    assert torch.equal(out[1], others[1])
    assert torch.equal(stats.num_loaded.view(-1)[1:], other_stats.num_loaded.view(-1)[1:])


@pytest.mark.row(12)
@pytest.mark.parametrize("quantile", [1.0, 0.25, 0.0])
@pytest.mark.parametrize("beta", [None, 0.0])
def test_a_fit_of_equal_quantiles_is_flat(quantile, beta):
    """Zero counts as the smallest normal number, of which the logarithm is finite."""
    lengths = torch.tensor([[100, 200, 400, 800]], dtype=torch.int32)
    law, ok = sift.fit_power_law(lengths, torch.full((1, 2, 4), quantile), beta)
    assert ok.all()
    torch.testing.assert_close(law.beta, torch.zeros(1, 2), atol=1e-6, rtol=0.0)
    theta = max(quantile, torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(
        law.theta(500.0).float(), torch.full((1, 2), theta), atol=0, rtol=1e-4
    )


@pytest.mark.row(12)
def test_a_fit_of_one_head_without_a_sample_leaves_the_others_theirs():
    lengths = torch.tensor([[100, 200, 400, 800]], dtype=torch.int32)
    quantiles = (2.0 / lengths)[:, None].repeat(1, 3, 1)
    expected, _ = sift.fit_power_law(lengths, quantiles)
    quantiles[0, 1, 2] = math.nan
    law, ok = sift.fit_power_law(lengths, quantiles)
    assert ok.tolist() == [[True, False, True]]
    assert law.log_alpha[0, 1] == -math.inf
    assert torch.equal(law.log_alpha[0, ::2], expected.log_alpha[0, ::2])


@pytest.mark.row(14)
@pytest.mark.parametrize("c", [0.5, 2.0])
def test_lengths_from_one_to_a_million(c):
    """Every key is the same, so above 1 / S none of them passes, and below it all do."""
    lengths = torch.tensor([1, 2, 1000, 1_000_000], dtype=torch.int32)
    q = torch.full((4, 2, 64), 0.125, dtype=best_dtype())
    v = torch.randn(4, 1, 1, 64).to(best_dtype())
    k = torch.ones_like(v).expand(4, 1, 1_000_000, 64)
    law = sift.PowerLaw.uniform(c)
    out, stats = sift.decode(
        q, k, v.expand_as(k), law, seq_lens=lengths, scale=1.0, return_stats=True
    )
    torch.testing.assert_close(out, v[:, 0].expand(4, 2, 64), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(stats.lse, (8.0 + lengths.log())[:, None].expand(4, 2))
    assert torch.equal(stats.num_loaded[:, 0], lengths if c < 1.0 else torch.ones_like(lengths))
    torch.testing.assert_close(stats.kept_mass, (stats.num_loaded / lengths[:, None]).expand(4, 2))


@pytest.mark.row(39)
@pytest.mark.parametrize("layout", ["strided", "paged"])
def test_inputs_that_change_in_place(layout):
    """Nothing is remembered from the call before, not even of the same tensors."""
    case = {"layout": layout, "law": "per_head", "masked": True, "sinks": True, "batch": 3}
    call = make_call(Case(**case, seq_lens=(130, 77, 5)))
    for seed, seq_lens in enumerate([(1, 130, 0), (99, 98, 97), (130, 130, 130)], start=1):
        call.run()
        other = make_call(Case(**case, seq_lens=seq_lens), seed=seed)
        for tensor, changed in [(call.q, other.q), (call.k, other.k), (call.v, other.v)]:
            tensor.copy_(changed)
        for name, changed in other.options.items():
            if isinstance(changed, torch.Tensor) and name != "key_mask":  # an expanded one
                call.options[name].copy_(changed)
        call.law.log_alpha.copy_(other.law.log_alpha)
        call.law.beta.copy_(other.law.beta)
        assert_same_bits(call.run(), other.run())
