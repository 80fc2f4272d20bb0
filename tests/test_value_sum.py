"""The running sum of value rows over many steps and under masks."""

from __future__ import annotations

import math

import pytest
import torch

from sequences import HK, D
from sift_attention.attended import AttendedKeys
from sift_attention.value_sum import ValueSum


def test_running_sum_over_many_steps():
    """Half a unit in the last place of float32; added in float32, 0.1 would be off by 2,400."""
    length = 100_000
    v = torch.randn(1, 1, length, 8)
    v[..., 0], v[..., 1], v[..., 2] = 0.1, 1.0 + 0.01 * v[..., 1], 1e4 * v[..., 2]
    values = ValueSum(1, 1, 8, v.device)
    for end in range(1, length + 1):
        values.add_newest(v[:, :, :end])
    exact = v.double().sum(2)
    rounding = 2**-24 * exact.abs() + length * 2**-53 * v.double().abs().sum(2)
    assert ((values.total - exact).abs() <= rounding).all()
    assert values.count.item() == length


@pytest.mark.row(37)
def test_running_sum_under_masks():
    """Left padding, a static capacity with NaN behind, and a row that pauses."""
    v = torch.randn(3, HK, 40, D)
    values = ValueSum(3, HK, D, v.device)
    mask = torch.zeros(3, 1, 1, 40, dtype=torch.bool)
    for row, start in enumerate((0, 5, 2)):
        mask[row, ..., start:20] = True

    def static(length: int) -> torch.Tensor:
        padded = v.clone()
        padded[:, :, length:] = math.nan
        padded[1, :, :5] = math.nan
        return padded

    def attended() -> AttendedKeys:
        return AttendedKeys(mask.clone(), 3, 1, 40, v.device)

    def expected() -> torch.Tensor:
        return (v * mask[:, 0, 0, None, :, None]).sum(2)

    assert values.add_attended(static(20), attended()) is None
    torch.testing.assert_close(values.total, expected())
    for length in range(21, 25):
        mask[..., length - 1] = True
        covered = values.add_attended(static(length), attended())
        assert covered.all()
        torch.testing.assert_close(values.total, expected())
    mask[[0, 2], ..., 24] = True
    assert values.add_attended(static(25), attended())[:, 0].tolist() == [True, False, True]
    mask[..., 25] = True
    assert values.add_attended(static(26), attended())[:, 0].tolist() == [True, False, True]
    torch.testing.assert_close(values.total[[0, 2]], expected()[[0, 2]])
    values.take(static(26), attended())
    torch.testing.assert_close(values.total, expected())
    mask[..., 26] = True
    assert values.add_attended(static(27), attended()).all()
