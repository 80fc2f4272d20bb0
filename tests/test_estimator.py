"""The power-law estimator as Python sees it; tests/cpp/test_power_law.cpp has the arithmetic."""

import math

import numpy as np
import pytest

from sift_attention.estimator import PowerLawEstimator


def estimator_of(lengths, quantiles, **options):
    estimator = PowerLawEstimator(**options)
    for length, quantile in zip(lengths, quantiles, strict=True):
        estimator.add(length, quantile)
    return estimator


def test_recovers_what_numpy_fits():
    rng = np.random.default_rng(3)
    lengths = np.geomspace(100, 20000, 40)
    quantiles = np.minimum(1.0, 0.4 * lengths**-1.1 * np.exp(0.2 * rng.normal(size=40)))
    fit = estimator_of(lengths, quantiles).fit()
    slope, intercept = np.polyfit(np.log(lengths), np.log(quantiles), 1)
    correlation = np.corrcoef(np.log(lengths), np.log(quantiles))[0, 1]
    assert fit.ok
    assert fit.status == "ok"
    assert fit.beta == pytest.approx(-slope, rel=1e-9)
    assert fit.log_alpha == pytest.approx(intercept, rel=1e-9)
    assert fit.r_squared == pytest.approx(correlation**2, rel=1e-9)
    assert fit.num_samples == 40
    assert fit.length_range == pytest.approx((100, 20000))


def test_given_slope_fits_the_scale_alone():
    estimator = estimator_of([500, 500, 500], [0.002, 0.004, 0.008], beta=1.0)
    assert estimator.fit().beta == 1.0
    assert estimator.predict(1000) == pytest.approx(0.002)


def test_prediction_is_a_probability():
    estimator = estimator_of([1000, 10000, 100000], [0.9, 0.09, 0.009])
    assert estimator.predict(1) == 1.0
    assert 0.0 <= estimator.predict(1e300) < 1e-12


@pytest.mark.parametrize(
    ("lengths", "quantiles", "status", "message"),
    [
        ([], [], "too few samples", "there are 0 samples, a fit needs 3"),
        (
            [700, 800, 930],
            [3e-3, 2e-3, 1e-3],
            "the lengths span too little",
            "the lengths span 1.32857x (from 700 to 930), a fit of the slope needs 4x",
        ),
        (
            [100, 1000, 10000],
            [1e-3, 2e-3, 4e-3],
            "the threshold rises with the length",
            "the quantiles rise with the length (beta would be -0.30103), a threshold must not",
        ),
    ],
)
def test_a_refused_fit_says_why_and_keeps_every_key(lengths, quantiles, status, message):
    estimator = estimator_of(lengths, quantiles)
    fit = estimator.fit()
    assert not fit.ok
    assert (fit.status, fit.message) == (status, message)
    assert (fit.log_alpha, fit.beta) == (-math.inf, 0.0)
    assert estimator.predict(2000) == 0.0


def test_options_relax_the_refusals():
    samples = ([700, 930], [2e-3, 1e-3])
    assert not estimator_of(*samples, min_samples=2).fit().ok
    assert estimator_of(*samples, min_samples=2, min_length_ratio=1.2).fit().ok


def test_samples_come_and_go():
    estimator = estimator_of([100, 1000, 10000, 20000], [1e-2, 1e-3, 1e-4, 1.0])
    estimator.drop_longer_than(10000)
    assert len(estimator) == estimator.num_samples == 3
    assert estimator.fit().beta == pytest.approx(1.0)
    assert repr(estimator) == "PowerLawEstimator(3 samples)"
    estimator.clear()
    assert len(estimator) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda e: e.add(0, 0.1),
            "PowerLawEstimator.add: length must be a finite number of at least 1, got 0",
        ),
        (
            lambda e: e.add(math.inf, 0.1),
            "PowerLawEstimator.add: length must be a finite number of at least 1, got inf",
        ),
        (
            lambda e: e.add(10, math.nan),
            "PowerLawEstimator.add: quantile must be in [0, 1], got nan",
        ),
        (lambda e: e.add(10, 95), "PowerLawEstimator.add: quantile must be in [0, 1], got 95"),
        (lambda e: e.predict(0), "PowerLawEstimator.predict: length must be at least 1, got 0"),
        (
            lambda e: e.drop_longer_than(math.nan),
            "PowerLawEstimator.drop_longer_than: length must be a number, got nan",
        ),
        (
            lambda e: PowerLawEstimator(beta=-1),
            "PowerLawEstimator: beta must be a finite number of at least 0, got -1",
        ),
        (
            lambda e: PowerLawEstimator(min_samples=-4),
            "PowerLawEstimator: min_samples must be at least 1, got -4",
        ),
        (
            lambda e: PowerLawEstimator(min_length_ratio=1),
            "PowerLawEstimator: min_length_ratio must be a finite number above 1, got 1",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    estimator = estimator_of([100], [0.1])
    with pytest.raises(ValueError, match="must be") as error:
        call(estimator)
    assert str(error.value) == message
    assert len(estimator) == 1
