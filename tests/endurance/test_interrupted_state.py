"""A SiftState that is interrupted anywhere serves a second try with the same bits."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from interrupts import Interrupter, alarms, count_moments
from scale import progress, scaled
from torch import Tensor

import sift_attention as sift
from sequences import Sequence, calibrated
from sift_attention import reference

STRIDE = scaled(1, 2)  # between interruptions
LAST = 170

T = TypeVar("T")


def uniform() -> sift.SiftState:
    return sift.SiftState(sift.SiftConfig(c=1.0, min_keys=0))


def bits(state: sift.SiftState) -> list[Tensor]:
    """All that later calls depend on."""
    tensors = [state.log_alpha, state.beta, state.values.sums, state.values.count]
    calibration = state._calibration
    if calibration is not None:
        tensors += [calibration.lengths, calibration.quantiles, calibration.fitted]
        tensors.append(calibration.fitted_count)
    return [tensor.clone() for tensor in tensors]


def interrupted_everywhere(
    state: sift.SiftState, call: Callable[[sift.SiftState], object], name: str
) -> list[sift.SiftState]:
    """Copies of a state whose call was interrupted, each at another moment."""
    num_moments = count_moments(lambda: call(copy.deepcopy(state)))
    copies = []
    for moment in progress(range(0, num_moments, STRIDE), name):
        copies.append(copy.deepcopy(state))
        assert Interrupter(moment).run(lambda: call(copies[-1]))
    return copies


def prompts(sequence: Sequence) -> list[tuple[sift.SiftState, int, int]]:
    """A new state and one that decodes already, and the rows of the prompt to come."""
    used = calibrated()
    sequence.prefill(used, 60)
    sequence.step(used, 60)
    sequence.step(used, 61)
    return [(calibrated(), 0, 160), (used, 62, 160)]


def test_a_repeated_prompt_gives_the_same_bits():
    sequence = Sequence(LAST, batch=2)
    for state, start, end in prompts(sequence):
        expected = copy.deepcopy(state)
        sequence.prefill(expected, end, start)
        assert expected.log_alpha.isfinite().all()
        after = bits(expected)
        outs = [sequence.step(expected, position) for position in range(end, LAST)]
        for other in interrupted_everywhere(
            state, lambda s, start=start, end=end: sequence.prefill(s, end, start), "prompts"
        ):
            sequence.prefill(other, end, start)
            assert all(map(torch.equal, bits(other), after))
            for position, out in zip(range(end, LAST), outs, strict=True):
                assert torch.equal(sequence.step(other, position), out)


def test_steps_after_a_lost_prompt_follow_a_whole_law():
    """Nobody tries again: the law is the old one, the new one or none, and the sum is right."""
    sequence = Sequence(LAST)
    for state, start, end in prompts(sequence):
        new = copy.deepcopy(state)
        sequence.prefill(new, end, start)
        laws = [sift.PowerLaw(new.log_alpha, new.beta), sift.PowerLaw.exact()]
        if state.is_allocated:
            laws.append(sift.PowerLaw(state.log_alpha, state.beta))
        k, v = sequence.k[:, :, : end + 1], sequence.v[:, :, : end + 1]
        allowed = [
            reference.decode(sequence.q[:, :, end], k, v, law, v_sum=v.sum(2)) for law in laws
        ]
        for other in interrupted_everywhere(
            state, lambda s, start=start, end=end: sequence.prefill(s, end, start), "lost prompts"
        ):
            out = sequence.step(other, end)
            assert min((out - each).abs().max() for each in allowed) < 1e-5


@pytest.mark.row(40)
@pytest.mark.parametrize("masked", [False, True])
def test_a_repeated_step_gives_the_same_bits(masked):
    sequence = Sequence(40, batch=2)
    mask = None
    if masked:  # a buffer of 40 slots
        mask = torch.zeros(2, 1, 1, 40, dtype=torch.bool)
        mask[0, ..., :31] = mask[1, ..., 4:31] = True

    def step(state: sift.SiftState) -> Tensor:
        return sequence.step(state, 39 if masked else 30, mask)

    state = uniform()
    if masked:
        mask[..., 30] = False
        sequence.step(state, 39, mask.clone())
        mask[..., 30] = True
    else:
        sequence.prefill(state, 30)
    expected = copy.deepcopy(state)
    out = step(expected)
    for other in interrupted_everywhere(state, step, "steps"):
        assert torch.equal(step(other), out)
        assert all(map(torch.equal, bits(other), bits(expected)))


@pytest.mark.row(40)
def test_signals_at_any_time_leave_the_bits_of_a_sequence_without():
    num_interrupts = 0

    def insist(call: Callable[[], T], set_alarm: Callable[[float], object]) -> T:
        """Patience doubles, so that a slow machine gets there, too."""
        nonlocal num_interrupts
        seconds = random.uniform(1e-5, 3e-4)
        while True:
            set_alarm(seconds)
            try:
                return call()
            except KeyboardInterrupt:
                num_interrupts += 1
                seconds *= 2

    sequence = Sequence(LAST)
    expected = calibrated()
    sequence.prefill(expected, 150)
    outs = [sequence.step(expected, position) for position in range(150, LAST)]
    rounds = scaled(2000, 20)
    with alarms() as set_alarm:
        for _ in progress(range(rounds), "signals"):
            state = calibrated()
            insist(lambda state=state: sequence.prefill(state, 150), set_alarm)
            for position, out in zip(range(150, LAST), outs, strict=True):
                again = insist(lambda s=state, at=position: sequence.step(s, at), set_alarm)
                assert torch.equal(again, out)
            set_alarm(0)
            assert all(map(torch.equal, bits(state), bits(expected)))
    assert num_interrupts > rounds


def test_a_refused_step_leaves_the_warm_up_as_it_was():
    sequence = Sequence(LAST)
    states = [calibrated(warmup_steps=3) for _ in range(2)]
    for state in states:
        sequence.prefill(state, 150)
    mask = torch.ones(1, 1, 1, 151, dtype=torch.bool)
    for wrong in ({"sinks": torch.zeros(3)}, {"softcap": -1.0}, {"scale": float("nan")}):
        for each in (None, mask):
            with pytest.raises((ValueError, TypeError)):
                sequence.step(states[0], 150, each, **wrong)
    for position in range(150, LAST):
        assert torch.equal(*(sequence.step(state, position) for state in states))
    assert all(map(torch.equal, *map(bits, states)))
    assert states[0].counters.calls == states[1].counters.calls == LAST - 150
