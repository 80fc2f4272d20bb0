"""Predicted quantiles against rows whose quantiles are known."""

import pytest
import torch

from sift_attention import SiftConfig
from sift_attention.eval.policies import Rows
from sift_attention.eval.quantiles import predicted_quantiles


def rows_of(q, k, layer=0, head=0):
    return Rows(q, k, torch.randn_like(k), num_steps=512, scale=1.0, layer=layer, head=head)


def test_equal_scores_follow_the_law_one_over_s():
    found = predicted_quantiles({(2, 1): [rows_of(torch.zeros(4, 1024, 32), torch.randn(1024, 32),
                                                  layer=2, head=1)]})  # fmt: skip
    assert {row["layer"] for row in found} == {2}
    assert {row["head"] for row in found} == {4, 5, 6, 7}  # the second group of four
    assert {row["length"] for row in found} >= {513, 1024}
    for row in found:
        assert row["true"] == pytest.approx(1 / row["length"], rel=1e-5)
        assert row["predicted"] == pytest.approx(1 / row["length"], rel=1e-4)
        assert row["beta"] == 1.0


@pytest.mark.parametrize("slope", [1.0, "fit"])
def test_true_quantiles_are_those_of_the_probabilities(slope):
    rows = rows_of(torch.randn(2, 1024, 32), torch.randn(1024, 32))
    config = SiftConfig(threshold="quantile", quantile=0.9, slope=slope)
    found = predicted_quantiles({(0, 0): [rows]}, config)
    assert len(found) == 2 * 8
    for row in found:
        p = rows.p[row["head"], row["length"] - rows.start - 1, : row["length"]]
        expected = torch.quantile(p, 0.9, interpolation="lower")
        assert row["true"] == pytest.approx(float(expected), rel=1e-5)
    for first, last in ((found[0], found[7]), (found[8], found[15])):
        shrunk = (last["length"] / first["length"]) ** -first["beta"]
        assert last["predicted"] == pytest.approx(first["predicted"] * shrunk)
