"""Sampling prompts and warm-up steps, and fitting the power law to them."""

from __future__ import annotations

import math

import pytest
import torch

import sift_attention as sift
from sequences import HQ, Sequence, calibrated
from sift_attention import reference
from sift_attention.calibration import LONGEST_SAMPLE, SHORTEST_SAMPLE, Calibration, sample_grid


@pytest.mark.parametrize("prompt_rows", [1, 8, 32, 100])
def test_sample_grid(prompt_rows):
    grid = sample_grid(prompt_rows)
    assert grid == sorted(set(grid))
    assert grid[0] == SHORTEST_SAMPLE
    assert LONGEST_SAMPLE / 4 < grid[-1] <= LONGEST_SAMPLE
    for shortest in (256, 1000, 40_000):
        rows = sum(shortest <= length < 4 * shortest for length in grid)
        assert abs(rows - prompt_rows) <= 1
    assert sample_grid(0) == []


@pytest.mark.parametrize("slope", [1.0, "fit"])
def test_prompt_fit_equals_the_reference(slope):
    sequence = Sequence(200)
    state = calibrated(slope=slope)
    sequence.prefill(state, 200)
    grid = [length for length in sample_grid(32) if length <= 200]
    assert len(grid) >= 32
    lengths = torch.tensor([grid])
    rows = sequence.q[:, :, lengths[0] - 1]
    quantiles = reference.score_quantile(rows, sequence.k, lengths, 0.8)
    law, ok = reference.fit_power_law(lengths, quantiles, None if slope == "fit" else slope)
    assert ok.all()
    torch.testing.assert_close(state.log_alpha, law.log_alpha, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state.beta, law.beta, atol=1e-4, rtol=1e-4)


def test_chunks_fit_as_one():
    sequence = Sequence(200, batch=2)
    once, chunks = calibrated(), calibrated()
    sequence.prefill(once, 200)
    for start in range(0, 200, 33):
        sequence.prefill(chunks, min(start + 33, 200), start)
    torch.testing.assert_close(chunks.log_alpha, once.log_alpha, atol=1e-5, rtol=1e-5)
    assert once.log_alpha.isfinite().all()
    torch.testing.assert_close(chunks.values.total, once.values.total)


def test_a_prompt_without_mask_in_a_larger_cache():
    """A static cache's first prompt: the keys behind it are not attended."""
    sequence = Sequence(200)
    once, padded = calibrated(), calibrated()
    sequence.prefill(once, 150)
    k, v = sequence.k.clone(), sequence.v.clone()
    k[:, :, 150:] = v[:, :, 150:] = math.nan
    padded.observe(sequence.q[:, :, :150], k, v)
    assert torch.equal(padded.log_alpha, once.log_alpha)
    torch.testing.assert_close(padded.values.total, once.values.total)


def test_warm_up_alone_is_exact_then_refused_or_fitted():
    sequence = Sequence(60)
    state = calibrated(prompt_rows=0, warmup_steps=8, slope="fit")
    sequence.prefill(state, 40)
    for position in range(40, 50):
        out = sequence.step(state, position)
        torch.testing.assert_close(out, sequence.exact(position), atol=1e-5, rtol=0)
    assert state.log_alpha.isneginf().all()  # 40 to 48 keys span too little for a slope
    assert state.counters.unfitted == HQ

    state = calibrated(prompt_rows=0, warmup_steps=8, slope=1.0)
    sequence.prefill(state, 40)
    for position in range(40, 48):
        out = sequence.step(state, position)
        torch.testing.assert_close(out, sequence.exact(position), atol=1e-5, rtol=0)
    assert state.log_alpha.isfinite().all()
    assert state.counters.unfitted == 0
    assert not torch.allclose(sequence.step(state, 48), sequence.exact(48), atol=1e-3)


def test_warm_up_joins_the_prompt():
    sequence = Sequence(170)
    state = calibrated(warmup_steps=4)
    sequence.prefill(state, 160)
    prompt_only = state.log_alpha.clone()
    for position in range(160, 164):
        sequence.step(state, position)
    grid = [length for length in sample_grid(32) if length <= 160]
    lengths = torch.tensor([[*grid, 161, 162, 163, 164]])
    quantiles = reference.score_quantile(sequence.q[:, :, lengths[0] - 1], sequence.k, lengths, 0.8)
    law, _ = reference.fit_power_law(lengths, quantiles, 1.0)
    torch.testing.assert_close(state.log_alpha, law.log_alpha, atol=1e-4, rtol=1e-4)
    assert not torch.equal(state.log_alpha, prompt_only)


@pytest.mark.row(37)
def test_crop_forgets_warm_up_steps_too():
    sequence = Sequence(170)
    state = calibrated(warmup_steps=4)
    sequence.prefill(state, 160)
    for position in range(160, 163):
        sequence.step(state, position)
    kept = state._calibration.lengths.max()
    assert kept == 163
    state.crop(2)
    assert state._calibration.lengths.max() == 161
    torch.testing.assert_close(sequence.step(state, 161), sequence.exact(161), atol=1e-5, rtol=0)
    torch.testing.assert_close(state.values.total, sequence.v[:, :, :162].sum(2))


def test_a_finished_fit_stays_while_others_are_found():
    config = sift.SiftConfig(threshold="quantile")
    calibration = Calibration(config, 1, HQ, torch.device("cpu"))
    calibration.lengths[0, :8] = torch.tensor([32, 40, 48, 64, 80, 96, 112, 128])
    calibration.quantiles[..., :8] = 2.0 / calibration.lengths[0, :8]
    calibration.quantiles[0, 1] = math.nan
    law = torch.full((2, 1, HQ), -math.inf)

    def fitted_heads(count: int, renew: bool) -> list[bool]:
        before = law.clone()
        calibration.fit(torch.tensor([count]), (law[0], law[1]), renew)
        return (law[0, 0] != before[0, 0]).tolist()

    assert fitted_heads(128, renew=True) == [True, False, True, True]
    assert law[0, 0].exp().tolist() == pytest.approx([2.0, 0.0, 2.0, 2.0])
    assert law[1, 0].tolist() == [1.0, -math.inf, 1.0, 1.0]
    calibration.quantiles[..., :8] = 3.0 / calibration.lengths[0, :8]
    assert fitted_heads(150, renew=False) == [False, True, False, False]
    calibration.quantiles[..., :8] = 4.0 / calibration.lengths[0, :8]
    assert not any(fitted_heads(250, renew=False))
    assert all(fitted_heads(300, renew=False))
