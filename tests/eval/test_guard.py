"""The guard: tasks that the exact model fails are refused, with the reason in words."""

import math

import numpy as np
import pytest

from sift_attention.eval.guard import order0_entropy, refusal


@pytest.mark.parametrize(
    ("tokens", "bits"),
    [
        ([7, 7, 7], 0.0),
        ([1, 2, 3, 4], 2.0),
        ([9, 9, 5, 6], 1.5),  # 1/2 * 1 + 2 * 1/4 * 2
        ([[0, 0, 0, 0], [0, 0, 0, 300]], 7 / 8 * math.log2(8 / 7) + 3 / 8),
    ],
)
def test_order0_entropy_by_hand(tokens, bits):
    entropy = order0_entropy(np.array(tokens))
    assert entropy == pytest.approx(bits)
    assert math.copysign(1, entropy) == 1


def test_answers_decide_where_there_are_any():
    assert refusal(0.9, 99.0, 1.0) is None
    assert refusal(0.8999, 0.1, 1.0) == "exact accuracy 89.9 %"
    assert refusal(0.71, 0.1, 1.0) == "exact accuracy 71.0 %"
    assert refusal(0.71, 99.0, 1.0, min_accuracy=0.7) is None
    assert refusal(0.0, 0.1, 1.0) == "exact accuracy 0.0 %"


def test_text_must_beat_the_entropy_of_its_tokens():
    text = math.nan
    assert refusal(text, 1.8, 4.5) is None
    assert refusal(text, 4.5, 4.5) == "exact 4.50 bits per token, order-0 entropy 4.50"
    assert refusal(text, 7.312, 4.8) == "exact 7.31 bits per token, order-0 entropy 4.80"
    assert refusal(text, math.nan, 4.8) == "exact nan bits per token, order-0 entropy 4.80"
    assert refusal(text, 1.8, 4.5, min_accuracy=1.0) is None
