"""A SiftState under torch.compile and in PyTorch's other modes, and over a million keys."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

import sift_attention as sift
from sequences import HK, HQ, D, Sequence, calibrated
from sift_attention import reference

UNIFORM = sift.SiftConfig(c=1.0, min_keys=0)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.row(14, 32)
@pytest.mark.parametrize("config", ["uniform", "warm-up"])
@pytest.mark.parametrize("masked", [False, True])
def test_64_growing_steps_compile_twice_at_most(config, masked):
    sequence = Sequence(220, 2)
    states = [calibrated(warmup_steps=3) for _ in range(2)]
    if config == "uniform":
        states = [sift.SiftState(UNIFORM) for _ in range(2)]
    for state in states:
        sequence.prefill(state, 150)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    def step(q, k, v, mask):
        return states[0].decode(q, k, v, mask)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for position in range(150, 214):
        q = sequence.q[:, :, position]
        k, v = sequence.k[:, :, : position + 1], sequence.v[:, :, : position + 1]
        mask = None
        if masked:
            mask = torch.arange(position + 1) >= torch.tensor([[0], [7]])
            mask = mask[:, None, None]
        out = compiled(q, k, v, mask)
        torch.testing.assert_close(out, states[1].decode(q, k, v, mask), atol=1e-5, rtol=1e-5)
    assert 1 <= len(graphs) <= 2
    for name in ("log_alpha", "beta"):
        torch.testing.assert_close(*(getattr(state, name) for state in states))
    assert states[0].counters.compiled_calls == states[1].counters.calls == 64


@pytest.mark.row(33, 38)
def test_shapes_without_numbers():
    with FakeTensorMode():
        sequence, state = Sequence(40, 2), calibrated()
        sequence.prefill(state, 35)
        assert sequence.step(state, 35).shape == (2, HQ, D)
    with torch.device("meta"):
        sequence, state = Sequence(40, 2), sift.SiftState(UNIFORM)
    sequence.prefill(state, 30)
    out = sequence.step(state, 30)
    assert out.is_meta
    assert out.shape == (2, HQ, D)
    with pytest.raises(ValueError, match=r"^SiftState: q must be on the state's device meta, got"):
        Sequence(40, 2).step(state, 31)


@pytest.mark.row(33)
def test_vmap_is_refused():
    """A state belongs to one batch; what it would have to add to its sums is several."""
    sequence = Sequence(40, 2)
    state = sift.SiftState(UNIFORM)
    sequence.prefill(state, 30)
    total = state.values.total
    many = [torch.stack([x] * 3) for x in (sequence.q[:, :, 30], sequence.k, sequence.v)]
    with pytest.raises(RuntimeError):
        torch.func.vmap(lambda q, k, v: state.decode(q, k[:, :, :31], v[:, :, :31]))(*many)
    assert torch.equal(state.values.total, total)
    expected = sift.SiftState(UNIFORM)
    sequence.prefill(expected, 30)
    assert torch.equal(sequence.step(state, 30), sequence.step(expected, 30))


@pytest.mark.row(31)
def test_gradients_are_refused_and_leave_the_state_alone():
    sequence = Sequence(40, 2)
    state, expected = sift.SiftState(UNIFORM), sift.SiftState(UNIFORM)
    for each in (state, expected):
        sequence.prefill(each, 30)
    q = sequence.q[:, :, 30].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="gradients are not supported"):
        state.decode(q, sequence.k[:, :, :31], sequence.v[:, :, :31])
    assert torch.equal(sequence.step(state, 30), sequence.step(expected, 30))


@pytest.mark.row(33)
def test_autocast_changes_nothing():
    sequence = Sequence(40, 2)
    state, expected = sift.SiftState(UNIFORM), sift.SiftState(UNIFORM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sequence.prefill(state, 30)
        out = sequence.step(state, 30)
    sequence.prefill(expected, 30)
    assert torch.equal(out, sequence.step(expected, 30))


@pytest.mark.row(14)
def test_a_million_keys():
    """theta = c / S at S = 1e6 and one more: three keys stand out, the rest has the mean value."""
    length = 1_000_001
    k, v = torch.zeros(1, 1, length, D), torch.zeros(1, 1, length, D)
    best = torch.tensor([5, 777_777, 1_000_000])
    k[0, 0, best, 0] = 1.0
    v[0, 0, :, 1] = 1.0
    v[0, 0, best, 2] = torch.tensor([1.0, 2.0, 4.0])
    q = torch.zeros(1, 2, D)
    q[..., 0] = math.sqrt(D) * math.log(100.0)  # 100 times the probability of the others
    state = sift.SiftState(sift.SiftConfig(c=50.0))
    state.observe(q[:, :, None], k[:, :, :-1], v[:, :, :-1])
    out = state.decode(q, k, v)
    denominator = (length - 3) + 300.0
    state.counters.fold()
    assert state.counters.rows_loaded == 3
    assert out[0, 0, 1].item() == pytest.approx(1.0, rel=1e-6)
    kept, mean = 700.0 / denominator, 7.0 / length
    expected = kept + (1.0 - 300.0 / denominator) * mean
    assert out[0, 0, 2].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.row(1, 14, 27)
def test_steps_without_keys_leave_a_sequence_as_it_was():
    """They join neither its sum nor, with a length of 0, the fit of its warm-up."""
    sequence = Sequence(200, 2)
    sequence.k[1, :, :160] = sequence.v[1, :, :160] = math.nan
    state, alone = calibrated(warmup_steps=8), calibrated(warmup_steps=8)
    uniform = sift.SiftState(UNIFORM)
    keys = torch.arange(200)
    for position in range(150, 170):
        mask = torch.stack([keys <= position, (keys <= position) & (keys >= 160)])[:, None, None]
        q = sequence.q[:, :, position]
        out = state.decode(q, sequence.k, sequence.v, mask)
        rows = [x[:1] for x in (q, sequence.k, sequence.v)]
        torch.testing.assert_close(out[:1], alone.decode(*rows, mask[:1]))
        sifted = uniform.decode(q, sequence.k, sequence.v, mask)[1:]
        if position < 160:
            assert not out[1].any()
            assert not state.values.total[1].any()
            assert state.log_alpha[1].isneginf().all()
            assert not sifted.any()
        else:
            part = [x[1:, :, 160 : position + 1] for x in (sequence.k, sequence.v)]
            law, v_sum = sift.PowerLaw.uniform(1.0), part[1].sum(2)
            expected = reference.decode(q[1:], *part, law, v_sum=v_sum)
            torch.testing.assert_close(sifted, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state.log_alpha[0], alone.log_alpha[0])
    assert state.log_alpha[0].isfinite().all()


@pytest.mark.row(2)
def test_no_sequences():
    """An empty batch, as after the last row of a batch was dropped."""
    for state in (sift.SiftState(UNIFORM), calibrated(warmup_steps=1)):
        sequence = Sequence(60, 2)
        sequence.prefill(state, 50)
        state.select(torch.zeros(0, dtype=torch.int64))
        nobody = Sequence(60, 0)
        assert nobody.step(state, 50).shape == (0, HQ, D)
        nobody.prefill(state, 60, 51)
        assert state.values.total.shape == (0, HK, D)


@pytest.mark.row(39)
def test_thresholds_follow_the_length_when_keys_change_in_place():
    sequence = Sequence(80)
    state = sift.SiftState(sift.SiftConfig(c=1.5, min_keys=0))
    mask = torch.ones(80, 80, dtype=torch.bool).tril()[None, None]
    state.observe(sequence.q, sequence.k, sequence.v, mask)
    for length in (60, 61, 40, 41):  # overwritten from some place on, then read on
        sequence.k[:, :, length - 1 :] = torch.randn(1, HK, 81 - length, D)
        sequence.v[:, :, length - 1 :] = torch.randn(1, HK, 81 - length, D)
        part = [x[:, :, :length] for x in (sequence.q, sequence.k, sequence.v)]
        if length in (60, 40):
            state.observe(*part, mask[:, :, :length, :length])
            continue
        expected = reference.decode(
            part[0][:, :, -1],
            *part[1:],
            sift.PowerLaw.uniform(1.5),
            v_sum=part[2].sum(2),
        )
        out = state.decode(part[0][:, :, -1], *part[1:])
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
