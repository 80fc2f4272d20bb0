"""The numbers of a cell, against values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from sift_attention.eval.decoded import Decoded, Reads
from sift_attention.eval.measure import compare, measure, traffic
from sift_attention.eval.tokens import Sample

HALF = [0.5, 0.25, 0.25]
SURE = [0.0, 1.0, 0.0]


def logits_of(*probabilities):
    return torch.tensor([probabilities]).log()


def test_comparison_by_hand():
    found = compare(
        logits_of(HALF, SURE), logits_of([0.25, 0.5, 0.25], HALF), torch.tensor([[1, 1]])
    )
    # 1/2 ln 2 + 1/4 ln 1/2 = 1/4 ln 2; and 1 * ln (1 / (1/4)) = 2 ln 2.
    torch.testing.assert_close(
        found.kl, torch.tensor([[0.25, 2.0]]).double() * math.log(2), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        found.nats, torch.tensor([[1.0, 2.0]]).double() * math.log(2), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        found.exact_nats, torch.tensor([[2.0, 0.0]]).double() * math.log(2), rtol=1e-6, atol=1e-9
    )
    assert found.exact_top1.tolist() == [[0, 1]]
    assert found.top1.tolist() == [[1, 0]]
    assert not found.agrees.any()


def test_a_nan_is_no_agreement():
    broken = logits_of(HALF).index_fill(2, torch.tensor([2]), math.nan)
    found = compare(broken, broken, torch.tensor([[0]]))
    assert found.kl.isnan().all()
    assert not found.agrees.any()


def test_traffic_by_hand():
    # One sequence, two steps with 10 and 20 keys, two key/value heads, one query head each.
    reads = Reads(
        v_rows=torch.tensor([[[1.0, 10.0], [2.0, 4.0]]]),
        k_rows=torch.tensor([[[10.0, 10.0], [20.0, 10.0]]]),
        dropped_mass=torch.tensor([[[0.4, 0.0], [0.2, 0.2]]]),
    )
    found = traffic(range(10, 30, 10), {3: reads})
    assert found["v_fraction"] == pytest.approx((0.1 + 1.0 + 0.1 + 0.2) / 4)
    assert found["kv_fraction"] == pytest.approx((0.55 + 1.0 + 0.55 + 0.35) / 4)
    assert found["dropped_mass"] == pytest.approx(0.2)
    assert found["sifted_calls"] == 3
    assert found["sifted_share"] == 0.75
    assert found["layers"] == [
        {
            "layer": 3,
            "v_fraction": pytest.approx(0.35),
            "dropped_mass": pytest.approx(0.2),
        }
    ]


def test_a_model_without_layers_that_sift_measures_nothing():
    found = traffic(range(10, 12), {})
    assert math.isnan(found["v_fraction"])
    assert found["layers"] == []


def decoded(logits, num_keys):
    full = torch.tensor(num_keys).float()[None, :, None]
    return Decoded(logits, num_keys, {0: Reads(full, full, torch.zeros_like(full))})


def test_only_answers_are_scored_and_told_apart_by_depth():
    # Tokens 0 ... 10, of which the steps 5 ... 10 predict 6 ... 10; answers at 6, 8 and 10.
    answers = np.isin(np.arange(11), [6, 8, 10])
    sources = np.where(answers, [-1] * 6 + [1, -1, 7, -1, -1], -1)
    sample = Sample(np.full(11, 1), np.ones(11, np.float32), answers, sources)
    exact = torch.zeros(1, 6, 2)
    exact[..., 1] = 1.0  # always right
    policy = exact.clone()
    policy[0, 0] = torch.tensor([1.0, 0.0])  # of token 6: wrong
    policy[0, 1] = torch.tensor([9.0, 0.0])  # of token 7, which is no answer
    found = measure([sample], exact, decoded(policy, range(6, 12)))
    assert found["num_tokens"] == found["num_answers"] == 3
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["exact"]["accuracy"] == 1.0
    wrong, right = math.log2(1 + math.e), math.log2(1 + 1 / math.e)
    assert found["bits_per_token"] == pytest.approx((wrong + 2 * right) / 3)
    assert found["exact"]["bits_per_token"] == pytest.approx(right)
    assert found["kl"] == pytest.approx((1 / (1 + 1 / math.e) - 1 / (1 + math.e)) / 3)
    # 1/6 is in the first fifth, 7/8 in the last; the answer at 10 has no single source.
    assert [part["num_answers"] for part in found["by_depth"]] == [1, 0, 0, 0, 1]
    assert [part["depth"] for part in found["by_depth"]] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert found["by_depth"][0]["accuracy"] == 0.0
    assert found["by_depth"][0]["exact_accuracy"] == 1.0
    assert found["by_depth"][4]["accuracy"] == 1.0
    assert math.isnan(found["by_depth"][1]["accuracy"])


def test_text_scores_every_prediction_in_eight_stretches_of_steps():
    nothing = np.zeros(48, np.bool_), np.full(48, -1)
    sample = Sample(np.zeros(48, np.int64), np.ones(48, np.float32), *nothing)
    exact = torch.zeros(1, 32, 2)
    policy = exact.clone()
    policy[0, 8] = torch.tensor([math.log(3), 0.0])  # 3/4 and 1/4
    found = measure([sample], exact, decoded(policy, range(17, 49)))
    assert found["num_tokens"] == 31
    assert math.isnan(found["accuracy"])
    assert [part["step"] for part in found["by_step"]] == list(range(0, 32, 4))
    moved = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert [part["kl"] for part in found["by_step"]] == pytest.approx(
        [0, 0, moved / 4, 0, 0, 0, 0, 0], abs=1e-7
    )
    assert found["kl"] == pytest.approx(moved / 31)
    assert {part["v_fraction"] for part in found["by_step"]} == {1.0}
