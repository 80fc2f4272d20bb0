"""SiftState without a model: thresholds, counters and what the cache does to it."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import sift_attention as sift
from sequences import HQ, Sequence, calibrated
from sift_attention import reference


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


@pytest.mark.row(37)
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


@pytest.mark.row(35)
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


@pytest.mark.row(36)
def test_rows_follow_the_cache_in_place():
    sequence = Sequence(160, batch=3)
    state = calibrated()
    sequence.prefill(state, 150)
    law, total = state.log_alpha.clone(), state.values.total.clone()
    addresses = [state.log_alpha.data_ptr(), state.values.sums.data_ptr()]
    rows = torch.tensor([2, 2, 0])
    state.reorder(rows)
    assert torch.equal(state.log_alpha, law[rows])
    assert torch.equal(state.values.total, total[rows])
    assert addresses == [state.log_alpha.data_ptr(), state.values.sums.data_ptr()]
    state.select(torch.tensor([True, False, True]))
    assert torch.equal(state.log_alpha, law[[2, 0]])
    state.repeat(2)
    assert torch.equal(state.log_alpha, law[[2, 2, 0, 0]])
    assert torch.equal(state.values.total, total[[2, 2, 0, 0]])
    rows = torch.tensor([2, 2, 0, 0])
    q, k, v = (x[rows] for x in (sequence.q, sequence.k, sequence.v))
    out = state.decode(q[:, :, 150], k[:, :, :151], v[:, :, :151])
    torch.testing.assert_close(out[0], out[1])
    # The samples moved, too: a prompt that doubles the sequence fits them to the right rows.
    sequences = [sequence, Sequence(310, batch=3)]
    q, k, v = (torch.cat([getattr(s, x) for s in sequences], 2)[rows] for x in "qkv")
    mask = torch.ones(310, 310, dtype=torch.bool).tril()[None, None, 151:]
    state.observe(q[:, :, 151:310], k[:, :, :310], v[:, :, :310], mask)
    new = calibrated()
    new.observe(q[:, :, :310], k[:, :, :310], v[:, :, :310])
    # The decoded row, at 151 keys, is not on the grid.
    torch.testing.assert_close(state.log_alpha, new.log_alpha)


@pytest.mark.row(36)
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


@pytest.mark.row(38)
def test_masks_of_other_shapes_are_refused():
    sequence = Sequence(30)
    state = sift.SiftState()
    for mask in (torch.ones(1, 1, 1, 29, dtype=torch.bool), torch.zeros(1, 1, 1, 30)):
        with pytest.raises(ValueError, match=r"SiftState: mask must be bool \(1, 1, 1, 30\), got"):
            sequence.step(state, 29, mask)


@pytest.mark.row(32)
@pytest.mark.parametrize("config", ["uniform", "warm-up"])
def test_steps_compile_as_a_whole(config):
    sequence = Sequence(190)
    mask = torch.zeros(1, 1, 1, 190, dtype=torch.bool)
    mask[..., :180] = True
    if config == "uniform":
        states = [sift.SiftState(sift.SiftConfig(c=1.0, min_keys=0)) for _ in range(2)]
    else:
        states = [calibrated(warmup_steps=3) for _ in range(2)]
    for state in states:
        state.observe(sequence.q[:, :, :180], sequence.k, sequence.v)

    @torch.compile(fullgraph=True, backend="eager")
    def step(q, mask):
        return states[0].decode(q, sequence.k, sequence.v, mask)

    for position in range(180, 190):
        mask[..., position] = True
        q = sequence.q[:, :, position]
        out = step(q, mask)
        torch.testing.assert_close(out, states[1].decode(q, sequence.k, sequence.v, mask))
    assert states[0].counters.compiled_calls == 10
    torch.testing.assert_close(states[0].log_alpha, states[1].log_alpha)
    if config == "warm-up":
        lengths = [state._calibration.lengths for state in states]
        assert torch.equal(*lengths)


def test_counters_leave_out_idle_rows():
    sequence = Sequence(60, batch=2)
    alone, both = (sift.SiftState(sift.SiftConfig(c=1.0, min_keys=0)) for _ in range(2))
    active = torch.tensor([False, True])
    sequence.prefill(both, 50)
    sequence.step(both, 50, active=active)
    q, k, v = (x[1:] for x in (sequence.q, sequence.k, sequence.v))
    alone.decode(q[:, :, 50], k[:, :, :51], v[:, :, :51])
    for counters in (both.counters, alone.counters):
        counters.fold()
    assert both.counters.rows_loaded == alone.counters.rows_loaded
    torch.testing.assert_close(both.counters.covered_mass, alone.counters.covered_mass)
    assert both.counters.keys_and_steps.tolist() == [51, 1]
    assert both.counters.calls == alone.counters.calls == 1
