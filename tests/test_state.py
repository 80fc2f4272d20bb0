"""SiftState without a model: sums, thresholds, calibration and what the cache does to them."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import sift_attention as sift
from sift_attention import reference
from sift_attention.attended import AttendedKeys
from sift_attention.calibration import LONGEST_SAMPLE, SHORTEST_SAMPLE, sample_grid
from sift_attention.value_sum import ValueSum

HQ, HK, D = 4, 2, 32


class Sequence:
    """Random q, k and v of a whole sequence; positions are fed in order."""

    def __init__(self, length: int, batch: int = 1) -> None:
        self.q = 3.0 * torch.randn(batch, HQ, length, D)
        self.k = torch.randn(batch, HK, length, D)
        self.v = torch.randn(batch, HK, length, D)

    def prefill(self, state: sift.SiftState, end: int, start: int = 0) -> None:
        mask = None
        if start > 0:
            mask = torch.ones(end, end, dtype=torch.bool).tril()[None, None, start:]
        state.observe(self.q[:, :, start:end], self.k[:, :, :end], self.v[:, :, :end], mask)

    def step(self, state: sift.SiftState, position: int, mask=None, **options) -> torch.Tensor:
        end = position + 1
        q, k, v = self.q[:, :, position], self.k[:, :, :end], self.v[:, :, :end]
        return state.decode(q, k, v, mask, **options)

    def exact(self, position: int) -> torch.Tensor:
        end = position + 1
        return reference.decode(self.q[:, :, position], self.k[:, :, :end], self.v[:, :, :end])


@pytest.mark.parametrize("residual", ["mean", "renormalize", "none"])
def test_uniform_law_equals_the_reference(residual):
    sequence = Sequence(60, batch=2)
    state = sift.SiftState(sift.SiftConfig(c=1.5, min_keys=0, residual=residual))
    sequence.prefill(state, 50)
    for position in range(50, 60):
        end = position + 1
        expected = reference.decode(
            sequence.q[:, :, position],
            sequence.k[:, :, :end],
            sequence.v[:, :, :end],
            sift.PowerLaw.uniform(1.5),
            v_sum=sequence.v[:, :, :end].sum(2),
            residual=residual,
        )
        out = sequence.step(state, position)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_min_keys():
    sequence = Sequence(30)
    state = sift.SiftState(sift.SiftConfig(c=2.0, min_keys=26))
    sequence.prefill(state, 20)
    for position in range(20, 30):
        is_exact = torch.allclose(
            sequence.step(state, position), sequence.exact(position), atol=1e-5
        )
        assert is_exact == (position + 1 < 26)


def test_default_configuration_is_exact_for_short_sequences():
    sequence = Sequence(12)
    state = sift.SiftState()
    sequence.prefill(state, 10)
    torch.testing.assert_close(sequence.step(state, 10), sequence.exact(10))
    assert state.counters.calls == 1


def test_running_sum_over_many_steps():
    length = 100_000
    v = torch.randn(1, 1, length, 8)
    values = ValueSum(1, 1, 8, v.device)
    for end in range(1, length + 1):
        values.add_newest(v[:, :, :end])
    error = (values.total - v.double().sum(2)).abs().max()
    assert error < length * 2**-24 * v.abs().max()
    assert values.count.item() == length


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


def test_a_row_whose_keys_are_not_followed_decodes_exactly():
    sequence = Sequence(30, batch=2)
    state = sift.SiftState(sift.SiftConfig(c=2.0, min_keys=0))
    mask = torch.zeros(2, 1, 1, 30, dtype=torch.bool)
    mask[..., :20] = True
    capacity = (sequence.q[:, :, 20], sequence.k, sequence.v)
    state.decode(*capacity, mask.clone())
    mask[0, ..., 20] = mask[1, ..., 20:22] = True  # the second row gains two keys
    out = state.decode(*capacity, mask.clone())
    exact = reference.decode(*capacity, key_mask=mask[:, 0, 0])
    torch.testing.assert_close(out[1], exact[1], atol=1e-5, rtol=0)
    assert not torch.allclose(out[0], exact[0], atol=1e-3)


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


def calibrated(**options) -> sift.SiftState:
    options = {"quantile": 0.8, "min_keys": 0, **options}
    return sift.SiftState(sift.SiftConfig(threshold="quantile", **options))


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


def test_reset_equals_new():
    first, second = Sequence(180), Sequence(180)
    state, new = calibrated(warmup_steps=2), calibrated(warmup_steps=2)
    first.prefill(state, 170)
    for position in range(170, 175):
        first.step(state, position)
    state.reset()
    for each in (state, new):
        second.prefill(each, 150)
    for position in range(150, 155):
        assert torch.equal(second.step(state, position), second.step(new, position))


def test_rows_follow_the_cache_in_place():
    sequence = Sequence(160, batch=3)
    state = calibrated()
    sequence.prefill(state, 150)
    law, total = state.log_alpha.clone(), state.values.total.clone()
    addresses = [state.log_alpha.data_ptr(), state.values.total.data_ptr()]
    rows = torch.tensor([2, 2, 0])
    state.reorder(rows)
    assert torch.equal(state.log_alpha, law[rows])
    assert torch.equal(state.values.total, total[rows])
    assert addresses == [state.log_alpha.data_ptr(), state.values.total.data_ptr()]
    state.select(torch.tensor([True, False, True]))
    assert torch.equal(state.log_alpha, law[[2, 0]])
    state.repeat(2)
    assert torch.equal(state.log_alpha, law[[2, 2, 0, 0]])
    assert torch.equal(state.values.total, total[[2, 2, 0, 0]])
    rows = torch.tensor([2, 2, 0, 0])
    q, k, v = (x[rows] for x in (sequence.q, sequence.k, sequence.v))
    out = state.decode(q[:, :, 150], k[:, :, :151], v[:, :, :151])
    torch.testing.assert_close(out[0], out[1])


def test_a_copy_goes_its_own_way():
    sequence = Sequence(160)
    state = calibrated()
    sequence.prefill(state, 150)
    other = copy.deepcopy(state)
    expected = sequence.step(state, 150)
    other.reset()
    assert not torch.equal(state.log_alpha, other.log_alpha)
    sequence.prefill(other, 150)
    assert torch.equal(sequence.step(other, 150), expected)


def test_softcap_and_sinks():
    sequence = Sequence(60)
    sinks = torch.randn(HQ)
    state = sift.SiftState(sift.SiftConfig(c=2.0, min_keys=0))
    options = {"softcap": 2.0, "sinks": sinks, "scale": 0.3}
    sequence.prefill(state, 50)
    expected, stats = reference.decode(
        sequence.q[:, :, 50],
        sequence.k[:, :, :51],
        sequence.v[:, :, :51],
        sift.PowerLaw.uniform(2.0),
        v_sum=sequence.v[:, :, :51].sum(2),
        return_stats=True,
        **options,
    )
    out = sequence.step(state, 50, **{**options, "sinks": sinks.double()})
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    state.counters.fold()
    covered = stats.kept_mass.double() + (sinks.double() - stats.lse.double()).exp()
    torch.testing.assert_close(state.counters.covered_mass, covered.sum(), atol=1e-5, rtol=1e-5)


def test_an_infinite_value_reaches_the_mean_residual():
    sequence = Sequence(60)
    sequence.v[:, 0, 10, 3] = math.inf
    state = sift.SiftState(sift.SiftConfig(c=4.0, min_keys=0))
    sequence.prefill(state, 50)
    out = sequence.step(state, 50)
    assert not out[0, 0, 3].isfinite()
    assert out[0, 2:].isfinite().all()


def test_layouts_without_a_unit_stride_are_copied():
    sequence = Sequence(60)
    state, strided = (sift.SiftState(sift.SiftConfig(c=1.0, min_keys=0)) for _ in range(2))
    expected = sequence.step(state, 50)
    k, v = (x[:, :, :51].mT.contiguous().mT for x in (sequence.k, sequence.v))
    torch.testing.assert_close(strided.decode(sequence.q[:, :, 50], k, v), expected)


def test_counters_fold_and_reset():
    sequence = Sequence(120, batch=2)
    state = sift.SiftState(sift.SiftConfig(c=1.0, min_keys=0))
    sequence.prefill(state, 20)
    loaded = 0
    for position in range(20, 120):
        end = position + 1
        _, stats = reference.decode(
            sequence.q[:, :, position],
            sequence.k[:, :, :end],
            sequence.v[:, :, :end],
            sift.PowerLaw.uniform(1.0),
            return_stats=True,
        )
        loaded += stats.num_loaded.sum().item()
        sequence.step(state, position)
    counters = state.counters
    counters.fold()
    assert counters.calls == 100
    assert counters.keys == 2 * sum(range(21, 121))
    assert counters.rows_loaded == loaded
    counters.reset()
    counters.fold()
    assert counters.calls == counters.keys == counters.rows_loaded == 0


def test_masks_of_other_shapes_are_refused():
    sequence = Sequence(30)
    state = sift.SiftState()
    for mask in (torch.ones(1, 1, 1, 29, dtype=torch.bool), torch.zeros(1, 1, 1, 30)):
        with pytest.raises(ValueError, match=r"SiftState: mask must be boolean \(1, 1, 1, 30\)"):
            sequence.step(state, 29, mask)


def test_steps_compile_as_a_whole():
    sequence = Sequence(60)
    mask = torch.zeros(1, 1, 1, 60, dtype=torch.bool)
    states = [sift.SiftState(sift.SiftConfig(c=1.0, min_keys=0)) for _ in range(2)]
    for state in states:
        state.observe(sequence.q[:, :, :50], sequence.k, sequence.v)

    @torch.compile(fullgraph=True, backend="eager")
    def step(q, mask):
        return states[0].decode(q, sequence.k, sequence.v, mask)

    mask[..., :50] = True
    for position in range(50, 60):
        mask[..., position] = True
        q = sequence.q[:, :, position]
        out = step(q, mask)
        torch.testing.assert_close(out, states[1].decode(q, sequence.k, sequence.v, mask))
    assert states[0].counters.compiled_calls == 10
