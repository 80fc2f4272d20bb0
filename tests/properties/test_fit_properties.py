"""What holds for fit_power_law and the estimator whatever the samples are."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hits import count_hits, expects
from hypothesis import given
from hypothesis import strategies as st
from making import Draw
from strategies import SEEDS

import sift_attention as sift

pytestmark = pytest.mark.usefixtures("device")

SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Samples:
    """The structure of one fit."""

    batch: int
    num_heads: int
    num_rows: int
    longest: int
    num_absent: int  # samples of length 0
    has_ints: bool
    true_beta: float
    noise: float
    beta: float | None
    odd_one: float | None  # a quantile that one head has instead


def draw_samples(random):
    num_rows = random.choice((3, 0, 1, 2, 4, 32, 40))
    return Samples(
        batch=random.choice((1, 2, 3)),
        num_heads=random.choice((1, 3)),
        num_rows=num_rows,
        longest=random.choice((1000, 1, 3, 10, 1000, 100_000)),
        num_absent=min(random.choice((0, 0, 1, 40)), num_rows),
        has_ints=random.choice((True, False)),
        true_beta=random.choice((1.0, 0.0, 0.5, 1.5, -0.5, -1.5)),
        noise=random.choice((0.0, 0.3, 3.0)),
        beta=random.choice((None, 1.0, None, 0.0, 0.7)),
        odd_one=random.choice((None, None, 0.0, 1.0, math.nan, -0.1, 1.5, math.inf)),
    )


CLASSES = (
    "fitted",
    "refused",
    "a head refused beside one fitted",
    "slope given",
    "too few samples",
    "lengths too close",
    "rising",
    "absent samples",
    "bad sample",
    "underflow",
)


def fit_property(test):
    return expects(*CLASSES)(given(st.randoms().map(draw_samples), SEEDS)(test))


def make_samples(samples, seed):
    """Lengths [B, R] and quantiles [B, HQ, R]."""
    draw = Draw(seed)
    shape = (samples.batch, samples.num_rows)
    lengths = 1 + draw.below(samples.longest, *shape)
    for b in range(samples.batch):
        lengths[b, draw.order(samples.num_rows)[: samples.num_absent]] = 0
    noise = samples.noise * draw.normal(samples.batch, samples.num_heads, samples.num_rows)
    log_lengths = lengths.clamp(min=1).float().log()[:, None]
    quantiles = (noise - 2.0 - samples.true_beta * log_lengths).exp().clamp(max=1.0)
    if samples.odd_one is not None and samples.num_rows > 0:
        quantiles[-1, -1, 0] = samples.odd_one
    count_classes(samples, lengths, quantiles)
    return lengths.int() if samples.has_ints else lengths.float(), quantiles


def count_classes(samples, lengths, quantiles):
    _, ok = sift.fit_power_law(lengths.int(), quantiles, samples.beta)
    counts = (lengths > 0).sum(1)
    longest = lengths.amax(1) if samples.num_rows > 0 else counts
    shortest = lengths.masked_fill(lengths == 0, 2**30).amin(1) if samples.num_rows > 0 else counts
    spans = longest >= 4 * shortest
    valid = ((quantiles >= 0.0) & (quantiles <= 1.0)).all(-1)
    is_rising = ((counts >= 3) & spans)[:, None] & valid & ~ok & (samples.beta is None)
    count_hits(
        {
            "fitted": ok.any(),
            "refused": (~ok).any(),
            "a head refused beside one fitted": (ok.any(1) & ~ok.all(1)).any(),
            "slope given": samples.beta is not None,
            "too few samples": (counts < 3).any(),
            "lengths too close": ((counts >= 3) & ~spans).any(),
            "rising": is_rising,
            "absent samples": (lengths == 0).any(),
            "bad sample": ~valid,
            "underflow": (quantiles == 0.0).any(),
        }
    )


def fit_in_numpy(lengths, quantiles, beta):
    """One head: (log_alpha, beta), or None where a fit is refused."""
    present = lengths != 0
    x, y = lengths[present].astype(np.float64), quantiles[present].astype(np.float64)
    if len(x) < 3 or not ((y >= 0.0) & (y <= 1.0)).all():
        return None
    log_x, log_y = np.log(x), np.log(np.maximum(y, SMALLEST))
    if beta is not None:
        return float(np.mean(log_y + beta * log_x)), beta
    if x.max() < 4.0 * x.min():
        return None
    matrix = np.stack([np.ones_like(log_x), -log_x], axis=1)
    (log_alpha, slope), *_ = np.linalg.lstsq(matrix, log_y, rcond=None)
    return (log_alpha, slope) if slope >= -1e-12 else None


@fit_property
def test_equals_least_squares_in_numpy(samples, seed):
    lengths, quantiles = make_samples(samples, seed)
    law, ok = sift.fit_power_law(lengths, quantiles, samples.beta)
    for b in range(samples.batch):
        for h in range(samples.num_heads):
            head = lengths[b].cpu().numpy(), quantiles[b, h].cpu().numpy()
            expected = fit_in_numpy(*head, samples.beta)
            if expected is not None and abs(expected[1]) < 1e-6 and samples.beta is None:
                continue  # rounding decides whether the threshold rises
            assert ok[b, h].item() == (expected is not None)
            expected = expected or (-math.inf, 0.0)
            assert law.log_alpha[b, h].item() == pytest.approx(expected[0], rel=1e-5, abs=1e-4)
            assert law.beta[b, h].item() == pytest.approx(expected[1], rel=1e-5, abs=1e-5)


@fit_property
def test_rows_and_heads_are_fitted_alone(samples, seed):
    lengths, quantiles = make_samples(samples, seed)
    law, ok = sift.fit_power_law(lengths, quantiles, samples.beta)
    rows, heads = Draw(seed).order(samples.batch), Draw(seed).order(samples.num_heads)
    moved, moved_ok = sift.fit_power_law(lengths[rows], quantiles[rows][:, heads], samples.beta)
    assert torch.equal(moved.log_alpha, law.log_alpha[rows][:, heads])
    assert torch.equal(moved.beta, law.beta[rows][:, heads])
    assert torch.equal(moved_ok, ok[rows][:, heads])


@fit_property
def test_absent_samples_may_lie_anywhere_and_hold_anything(samples, seed):
    lengths, quantiles = make_samples(samples, seed)
    law, ok = sift.fit_power_law(lengths, quantiles, samples.beta)
    columns = Draw(seed).order(samples.num_rows + 5)[: samples.num_rows].sort().values
    wider = lengths.new_zeros(samples.batch, samples.num_rows + 5)
    wider[:, columns] = lengths
    filled = quantiles.new_full((*quantiles.shape[:2], samples.num_rows + 5), math.nan)
    filled[..., columns] = quantiles
    got, got_ok = sift.fit_power_law(wider, filled, samples.beta)
    assert torch.equal(got.log_alpha, law.log_alpha)
    assert torch.equal(got.beta, law.beta)
    assert torch.equal(got_ok, ok)


@fit_property
def test_the_order_of_the_samples(samples, seed):
    lengths, quantiles = make_samples(samples, seed)
    law, ok = sift.fit_power_law(lengths, quantiles, samples.beta)
    order = Draw(seed).order(samples.num_rows)
    got, got_ok = sift.fit_power_law(lengths[:, order], quantiles[..., order], samples.beta)
    decided = (law.beta.abs() > 1e-6) & (got.beta.abs() > 1e-6) | (ok == got_ok)
    assert decided.all() or samples.beta is None
    both = ok & got_ok
    torch.testing.assert_close(got.log_alpha[both], law.log_alpha[both], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.beta[both], law.beta[both], atol=1e-5, rtol=1e-5)


@fit_property
def test_higher_quantiles_raise_the_threshold(samples, seed):
    """Each sample by its own factor, with the slope given; all by one factor, with it fitted."""
    lengths, quantiles = make_samples(samples, seed)
    draw = Draw(seed)
    factor = draw.normal(*quantiles.shape).exp().clamp(max=1.0)
    if samples.beta is None:
        factor = torch.full_like(quantiles, 0.25)
    law, ok = sift.fit_power_law(lengths, quantiles, samples.beta)
    lower, lower_ok = sift.fit_power_law(lengths, quantiles * factor, samples.beta)
    both = ok & lower_ok
    assert (lower.log_alpha[both] <= law.log_alpha[both] + 1e-6).all()
    if samples.beta is None:
        normal = (quantiles >= 4.0 * SMALLEST).all(-1) & both
        moved = lower.log_alpha[normal] - law.log_alpha[normal]
        torch.testing.assert_close(moved, torch.full_like(moved, -math.log(4.0)), atol=1e-4, rtol=0)
        torch.testing.assert_close(lower.beta[normal], law.beta[normal], atol=1e-5, rtol=1e-5)


@fit_property
def test_the_estimator_fits_the_same(samples, seed):
    """Sample by sample, and after samples that came and went."""
    lengths, quantiles = make_samples(samples, seed)
    law, ok = sift.fit_power_law(lengths, quantiles, samples.beta)
    for b, h in [(0, 0), (samples.batch - 1, samples.num_heads - 1)]:
        estimator = sift.PowerLawEstimator(samples.beta)
        pairs = zip(lengths[b].tolist(), quantiles[b, h].tolist(), strict=True)
        pairs = [(length, quantile) for length, quantile in pairs if length != 0]
        if not all(0.0 <= quantile <= 1.0 for _, quantile in pairs):
            with pytest.raises(ValueError, match=r"quantile must be in \[0, 1\]"):
                [estimator.add(*pair) for pair in pairs]
            assert not ok[b, h]
            continue
        for pair in pairs:
            estimator.add(*pair)
            estimator.add(pair[0] + 200_000, 0.5)
        estimator.drop_longer_than(200_000)
        fit = estimator.fit()
        assert fit.ok == ok[b, h].item()
        assert torch.tensor(fit.log_alpha, dtype=torch.float32) == law.log_alpha[b, h]
        assert torch.tensor(fit.beta, dtype=torch.float32) == law.beta[b, h]
        assert fit.num_samples == len(estimator) == len(pairs)
