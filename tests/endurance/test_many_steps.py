"""100,000 decode steps on one cache: the sum of V stays exact to the rounding of float32.

The rows are added in float64, one after the other, and the sum is rounded to float32 once. With n
rows the additions err by at most n 2^-53 sum |v| (the classical bound of recursive summation), the
rounding by 2^-24 of the sum.
"""

from __future__ import annotations

import pytest
import torch
from scale import progress, scaled
from torch import Tensor

import sift_attention as sift
from sift_attention import reference
from sift_attention.hf.growing_layer import GrowingLayer

STEPS = scaled(100_000, 1000)
D = 32
LAW = {"c": 4.0, "min_keys": 0}


def draw_rows(count: int, dtype: torch.dtype) -> Tensor:
    """Value rows with channels that float32 sums badly: constant, biased, large, cancelling."""
    v = torch.randn(1, 1, count, D)
    v[..., 0] = 0.1
    v[..., 1] = 1.0 + 0.01 * v[..., 1]
    v[..., 2] *= 1e4
    v[..., 3] = 1000.0 * (-1.0) ** torch.arange(count) + 0.001
    return v.to(dtype)


def assert_exact(state: sift.SiftState, v: Tensor) -> None:
    exact, size = v.double().sum(2), v.double().abs().sum(2)
    bound = 2**-24 * exact.abs() + v.shape[2] * 2**-53 * size
    assert ((state.values.total - exact).abs() <= bound).all()
    assert state.values.count.unique().tolist() == [v.shape[2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_steps_on_a_growing_cache(dtype):
    layer, state = GrowingLayer(), sift.SiftState(sift.SiftConfig(**LAW))
    k, v = torch.randn(1, 1, STEPS, D).to(dtype), draw_rows(STEPS, dtype)
    q = torch.randn(1, 2, D).to(dtype)
    state.observe(q[:, :, None].expand(-1, -1, 10, -1), *layer.update(k[:, :, :10], v[:, :, :10]))
    for step in progress(range(10, STEPS), str(dtype)):
        row = slice(step, step + 1)
        out = state.decode(q, *layer.update(k[:, :, row], v[:, :, row]))
        if step % (STEPS // 10) == 0 or step == STEPS - 1:
            assert_exact(state, v[:, :, : step + 1])
    law = sift.PowerLaw.uniform(LAW["c"])
    expected = reference.decode(q, k, v, law, v_sum=v.double().sum(2))
    error = (out.double() - expected).abs()
    size = v.double().abs().amax((0, 1, 2))
    assert (error <= 4 * torch.finfo(dtype).eps * size + 1e-6 * size).all()


def test_steps_under_a_mask_on_a_static_cache():
    """The path of compiled steps; the second sequence begins with padding."""
    steps = STEPS // 5
    state = sift.SiftState(sift.SiftConfig(**LAW))
    k, v = torch.randn(1, 1, steps, D).expand(2, -1, -1, -1), draw_rows(steps, torch.float32)
    v = v.repeat(2, 1, 1, 1)
    mask = torch.zeros(2, 1, 1, steps, dtype=torch.bool)
    q = torch.randn(2, 2, D)
    mask[0, ..., :9] = mask[1, ..., 7:9] = True
    for step in progress(range(9, steps), "masked"):
        mask[..., step] = True
        state.decode(q, k, v, mask)
    exact = torch.stack([v[0].double().sum(1), v[1, :, 7:].double().sum(1)])
    size = v.double().abs().sum(2)
    assert (
        (state.values.total - exact).abs() <= 2**-24 * exact.abs() + steps * 2**-53 * size
    ).all()
    assert state.values.count[:, 0].tolist() == [steps, steps - 7]
