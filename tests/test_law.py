"""The power law as an argument, and the configuration."""

import dataclasses
import math
import pickle

import pytest
import torch

import sift_attention as sift


def test_uniform_law_is_a_multiple_of_uniform_attention():
    law = sift.PowerLaw.uniform(2.0)
    torch.testing.assert_close(
        law.theta(torch.tensor([4.0, 100.0, 3e5])),
        torch.tensor([0.5, 0.02, 2.0 / 3e5], dtype=torch.float64),
    )


def test_theta_of_a_law_per_head():
    law = sift.PowerLaw(torch.tensor([[0.0, -1.0], [-math.inf, 9.0]]), torch.tensor([[1.0], [0.5]]))
    theta = law.theta(torch.tensor([[10], [100]]))
    expected = torch.tensor([[0.1, math.exp(-1) / 10], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(theta, expected)


@pytest.mark.parametrize("law", [sift.PowerLaw.exact(), sift.PowerLaw.uniform(0.0)])
def test_exact_law(law):
    assert law.theta(1.0) == 0.0
    assert law.theta(1e6) == 0.0


def test_law_agrees_with_the_estimator():
    estimator = sift.PowerLawEstimator()
    for length in (100.0, 300.0, 900.0):
        estimator.add(length, 3.0 * length**-1.3)
    law = sift.PowerLaw(math.log(3.0), 1.3)
    assert law.theta(5000.0).item() == pytest.approx(estimator.predict(5000.0))


def test_law_is_frozen_and_pickles():
    law = sift.PowerLaw(torch.zeros(2, 4), 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        law.beta = 2.0
    copy = pickle.loads(pickle.dumps(law))
    assert torch.equal(copy.log_alpha, law.log_alpha)
    assert copy.beta == 1.0


def test_config_is_a_value():
    config = sift.SiftConfig(c=3.0, skip_layers=(0, 1))
    assert config == pickle.loads(pickle.dumps(config))
    assert hash(config) == hash(sift.SiftConfig(c=3.0, skip_layers=(0, 1)))
    assert sift.SiftConfig(slope="fit").slope == "fit"
