"""The reference itself: against PyTorch where it is dense, and by hand where it is not."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import sift_attention as sift
from sift_attention.reference import decode, score_quantile


def test_dense():
    q, k, v = (torch.randn(3, heads, 50, 16, dtype=torch.float64) for heads in (6, 2, 2))
    mask = torch.rand(3, 50) < 0.7
    out, stats = decode(q[:, :, 0], k, v, key_mask=mask, scale=0.3, return_stats=True)
    dense = scaled_dot_product_attention(
        q[:, :, :1], k, v, mask[:, None, None], scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(out, dense[:, :, 0])
    scores = 0.3 * (q[:, :, :1] @ k.repeat_interleave(3, 1).mT)[:, :, 0]
    lse = scores.masked_fill(~mask[:, None], -math.inf).logsumexp(-1)
    torch.testing.assert_close(stats.lse, lse)
    assert torch.equal(stats.num_loaded, mask.sum(1, keepdim=True).expand(3, 2).int())


def by_hand(residual, sinks=None, v_sum=None):
    """One head, keys of probability 1/2, 1/4, 1/8, 1/8 (halved by a sink as large as all keys)."""
    q = torch.ones(1, 1, 1, dtype=torch.float64)
    k = torch.tensor([8.0, 4.0, 2.0, 2.0], dtype=torch.float64).log().reshape(1, 1, 4, 1)
    v = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64).reshape(1, 1, 4, 1)
    law = sift.PowerLaw(math.log(0.6 if sinks is None else 0.3), 0.5)  # theta: 0.3, or 0.15
    options = {"residual": residual, "sinks": sinks, "v_sum": v_sum}
    out, stats = decode(q, k, v, law, scale=1.0, **options, return_stats=True)
    return out.item(), stats.kept_mass.item(), stats.num_loaded.item()


def test_sifted_by_hand():
    v_sum = torch.tensor([[[1111.0]]])
    assert by_hand("none") == pytest.approx((0.5, 0.5, 1))
    assert by_hand("renormalize") == pytest.approx((1.0, 0.5, 1))
    assert by_hand("mean", v_sum=v_sum) == pytest.approx((0.5 + 0.5 * 1111.0 / 4, 0.5, 1))


def test_sinks_by_hand():
    sink, v_sum = torch.tensor([16.0], dtype=torch.float64).log(), torch.tensor([[[1111.0]]])
    for residual, expected in [("none", 0.25), ("renormalize", 0.5), ("mean", 0.25 + 1111.0 / 16)]:
        assert by_hand(residual, sink, v_sum) == pytest.approx((expected, 0.25, 1))


def test_quantiles_by_hand():
    q = torch.ones(1, 1, 5, 1, dtype=torch.float64)
    k = torch.tensor([8.0, 4.0, 2.0, 2.0], dtype=torch.float64).log().reshape(1, 1, 4, 1)
    lengths = torch.tensor([[0, 1, 2, 3, 4]])
    got = score_quantile(q, k, lengths, 0.5, scale=1.0)[0, 0]
    expected = torch.tensor([math.nan, 1.0, 1 / 3, 2 / 7, 1 / 8], dtype=torch.float64)
    torch.testing.assert_close(got, expected, equal_nan=True)
