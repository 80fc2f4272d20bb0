"""A SiftState that is reused, cropped, handed the wrong tensors, or whose step fails."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import sift_attention as sift
from sequences import HK, HQ, D, Sequence, calibrated
from sift_attention import ops, reference

CONFIGS = pytest.mark.parametrize(
    "config",
    [
        {"threshold": "uniform", "c": 1.0},
        {"threshold": "uniform", "c": 1.0, "warmup_steps": 3},
        {},
        {"warmup_steps": 3},
        {"warmup_steps": 3, "prompt_rows": 0},
    ],
    ids=["uniform", "uniform warm-up", "quantile", "quantile warm-up", "warm-up alone"],
)


def made(config: dict[str, Any]) -> sift.SiftState:
    settings = {"threshold": "quantile", "quantile": 0.8, "min_keys": 0, **config}
    return sift.SiftState(sift.SiftConfig(**settings))


def masked_prefill(state: sift.SiftState, sequence: Sequence, end: int, padding: list[int]) -> None:
    """A prompt in a buffer as long as the sequence, row b padded by padding[b] on the left."""
    length = sequence.k.shape[2]
    keys = torch.arange(length)
    causal = keys <= torch.arange(end)[:, None]
    mask = causal & (keys >= torch.tensor(padding)[:, None, None])
    state.observe(sequence.q[:, :, :end], sequence.k, sequence.v, mask[:, None])


def masked_step(state: sift.SiftState, sequence: Sequence, position: int, padding: list[int]):
    keys = torch.arange(sequence.k.shape[2])
    mask = (keys <= position) & (keys >= torch.tensor(padding)[:, None])
    return state.decode(sequence.q[:, :, position], sequence.k, sequence.v, mask[:, None, None])


def tensors(state: sift.SiftState) -> list[Tensor]:
    """Copies of all that later steps depend on."""
    parts = [state, state.values, *([state._calibration] if state._calibration else [])]
    found = [getattr(part, name) for part in parts for name in part.ROW_TENSORS]
    return [tensor.clone() for tensor in [*found, state._step]]


@pytest.mark.row(14, 35)
@CONFIGS
@pytest.mark.parametrize("prompt", ["plain", "masked", "by the token"])
def test_a_state_reused_without_a_reset_is_as_new(config, prompt):
    old, sequence, padding = Sequence(400, 2), Sequence(180, 2), [0, 20]
    used, new = made(config), made(config)
    old.prefill(used, 390)
    for position in range(390, 400):
        old.step(used, position)
    for state in (used, new):
        outs = []
        if prompt == "masked":
            masked_prefill(state, sequence, 170, padding)
            outs += [masked_step(state, sequence, i, padding) for i in range(170, 180)]
        else:
            start = 0
            if prompt == "plain":
                sequence.prefill(state, 170)
                start = 170
            outs += [sequence.step(state, i) for i in range(start, 180)]
        result = torch.stack(outs)
        if state is used:
            expected = result
    assert torch.equal(result, expected)
    assert torch.equal(used.log_alpha, new.log_alpha)


@pytest.mark.row(35, 37)
def test_one_of_two_sequences_begins_anew():
    """A slot of the batch is given to another sequence, the other one goes on."""
    sequence, other = Sequence(500, 2), Sequence(500, 2)
    state, alone = calibrated(), calibrated()
    masked_prefill(state, sequence, 300, [0, 0])
    masked_step(state, sequence, 300, [0, 0])
    law = state.log_alpha.clone()
    length = 150
    k, v = sequence.k.clone(), sequence.v.clone()
    k[1, :, :length], v[1, :, :length] = other.k[1, :, :length], other.v[1, :, :length]
    keys, rows = torch.arange(500), torch.arange(length)[:, None]
    mask = torch.stack([keys <= rows + 301, keys <= rows])[:, None]
    q = torch.cat([sequence.q[:1, :, 301 : 301 + length], other.q[1:, :, :length]])
    state.observe(q, k, v, mask)
    alone.observe(other.q[1:, :, :length], other.k[1:, :, :length], other.v[1:, :, :length])
    assert torch.equal(state.log_alpha[0], law[0])
    torch.testing.assert_close(state.log_alpha[1], alone.log_alpha[0])


@pytest.mark.row(37)
@CONFIGS
@pytest.mark.parametrize("left", [169, 120, 60, 20])
def test_cropped_below_the_fit(config, left):
    """As if only what is left had been read; exact where that is too little for a fit."""
    sequence = Sequence(400, 2)
    state, fresh = made(config), made(config)
    sequence.prefill(state, 170)
    for position in range(170, 175):
        sequence.step(state, position)
    state.crop(175 - left)
    sequence.prefill(fresh, left)
    torch.testing.assert_close(state.log_alpha, fresh.log_alpha)
    is_exact = state.log_alpha.isneginf().all()
    assert is_exact == ("threshold" not in config and (left < 32 or "prompt_rows" in config))
    if is_exact:
        torch.testing.assert_close(
            sequence.step(state, left), sequence.exact(left), atol=1e-5, rtol=0
        )
        state.crop(1)
    sequence.prefill(state, 350, left)
    sequence.prefill(fresh, 350, left)
    torch.testing.assert_close(state.log_alpha, fresh.log_alpha)
    torch.testing.assert_close(state.values.total, sequence.v[:, :, :350].sum(2))


@pytest.mark.row(37)
def test_crops_refuse_negative_numbers():
    state = calibrated()
    Sequence(40).prefill(state, 40)
    with pytest.raises(ValueError, match=r"^SiftState.crop: num_keys must not be negative, got -3"):
        state.crop(-3)


WRONG = {
    "one sequence": (
        lambda q, k, v: (q[:1], k[:1], v[:1]),
        rf"state's \[B, HQ, HK, D\] = \(2, {HQ}, {HK}, {D}\), got \(1, {HQ}, {HK}, {D}\)$",
    ),
    "more sequences": (
        lambda q, k, v: (
            q.repeat(2, *[1] * (q.dim() - 1)),
            k.repeat(2, 1, 1, 1),
            v.repeat(2, 1, 1, 1),
        ),
        rf"= \(2, {HQ}, {HK}, {D}\), got \(4, {HQ}, {HK}, {D}\)$",
    ),
    "heads of q": (
        lambda q, k, v: (q[:, :2], k, v),
        rf"= \(2, {HQ}, {HK}, {D}\), got \(2, 2, {HK}, {D}\)$",
    ),
    "heads of k": (
        lambda q, k, v: (q, k[:, :1], v[:, :1]),
        rf"= \(2, {HQ}, {HK}, {D}\), got \(2, {HQ}, 1, {D}\)$",
    ),
    "ratio of heads": (
        lambda q, k, v: (q[:, :3], k, v),
        "the heads of q must be a positive multiple of the heads of k, got 3 and 2$",
    ),
    "head size": (
        lambda q, k, v: (q, k, v[..., :16]),
        rf"= \(2, {HQ}, {HK}, {D}\), got \(2, {HQ}, {HK}, 16\)$",
    ),
    "batch of k": (
        lambda q, k, v: (q, k[:1], v),
        r"k and v must have shape \[B, HK, N, D\] with the batch of q, got \(1, ",
    ),
    "rank of v": (
        lambda q, k, v: (q, k, v[:, :, :, 0]),
        r"k and v must have shape \[B, HK, N, D\] with the batch of q, got ",
    ),
    "device": (
        lambda q, k, v: (q.to("meta"), k.to("meta"), v.to("meta")),
        "q must be on the state's device cpu, got meta$",
    ),
}


@pytest.mark.row(21, 23, 38)
@pytest.mark.parametrize("wrong", WRONG)
@CONFIGS
def test_tensors_of_another_batch_are_refused(config, wrong):
    change, sentence = WRONG[wrong]
    sequence = Sequence(180, 2)
    state = made(config)
    sequence.prefill(state, 150)
    before = tensors(state)
    rows = [each[:, :, :151] for each in (sequence.q, sequence.k, sequence.v)]
    with pytest.raises(ValueError, match=rf"^SiftState: .*{sentence}"):
        state.observe(*change(*rows))
    with pytest.raises(ValueError, match=rf"^SiftState: .*{sentence}"):
        state.decode(*change(rows[0][:, :, -1], *rows[1:]))
    assert all(map(torch.equal, tensors(state), before))
    untouched = made(config)
    sequence.prefill(untouched, 150)
    for position in range(150, 160):
        assert torch.equal(sequence.step(state, position), sequence.step(untouched, position))


@pytest.mark.row(38)
def test_a_new_state_refuses_and_stays_new():
    sequence = Sequence(40)
    state = calibrated()
    for call in (state.observe, lambda q, k, v: state.decode(q[:, :, -1], k, v)):
        with pytest.raises(ValueError, match="positive multiple of the heads of k, got 3 and 2"):
            call(sequence.q[:, :3], sequence.k, sequence.v)
    assert not state.is_allocated


@pytest.mark.row(40)
@CONFIGS
@pytest.mark.parametrize("masked", [False, True])
def test_a_step_that_runs_out_of_memory_can_be_repeated(config, masked, monkeypatch):
    sequence = Sequence(180, 2)
    state, untroubled = made(config), made(config)

    def step(each: sift.SiftState, position: int) -> Tensor:
        if masked:
            return masked_step(each, sequence, position, [0, 9])
        return sequence.step(each, position)

    def fail(*args):
        raise torch.OutOfMemoryError

    for each in (state, untroubled):
        if masked:
            masked_prefill(each, sequence, 160, [0, 9])
        else:
            sequence.prefill(each, 160)
    for position in range(160, 170):
        with monkeypatch.context() as patch:
            patch.setattr(ops, "call", fail)
            with pytest.raises(torch.OutOfMemoryError):
                step(state, position)
        assert torch.equal(step(state, position), step(untroubled, position))
    assert all(map(torch.equal, tensors(state), tensors(untroubled)))
    assert state.counters.calls == untroubled.counters.calls


@pytest.mark.row(36)
@CONFIGS
def test_beams_fork_swap_and_merge(config):
    """Beam search over copies of one prompt: every beam is what decoding its tokens alone gives."""
    sequence, batch = Sequence(200, 1), 3
    state = made(config)
    sequence.prefill(state, 150)
    state.repeat(batch)
    q, k, v = (x.repeat(batch, 1, 1, 1) for x in (sequence.q, sequence.k, sequence.v))
    q[:, :, 150:], k[:, :, 150:], v[:, :, 150:] = (
        torch.randn_like(x[:, :, 150:]) for x in (q, k, v)
    )
    generator = torch.Generator().manual_seed(1)
    for position in range(150, 170):
        out = state.decode(q[:, :, position], k[:, :, : position + 1], v[:, :, : position + 1])
        for beam in range(batch):
            alone = made(config)
            rows = [x[beam : beam + 1] for x in (q, k, v)]
            alone.observe(*(x[:, :, :150] for x in rows))
            for i in range(150, position + 1):
                last = alone.decode(
                    rows[0][:, :, i], rows[1][:, :, : i + 1], rows[2][:, :, : i + 1]
                )
            torch.testing.assert_close(out[beam], last[0], atol=1e-5, rtol=1e-5)
        order = torch.randint(batch, (batch,), generator=generator)
        state.reorder(order)
        q, k, v = (
            torch.cat([x[order, :, : position + 1], x[:, :, position + 1 :]], 2) for x in (q, k, v)
        )


@pytest.mark.row(37)
def test_a_dense_prompt_that_the_state_did_not_see():
    """The sum is taken anew, even in a buffer whose length tells nothing."""
    sequence = Sequence(40)
    state = sift.SiftState(sift.SiftConfig(c=1.0, min_keys=0))
    masked_prefill(state, sequence, 20, [0])
    masked_step(state, sequence, 20, [0])
    other = copy.deepcopy(sequence)
    other.v[:, :, 19:21] = 7.0  # two tokens taken back, two others read past the state
    state.skip("mask", other.q[:, :, 19:21], other.v)
    out = masked_step(state, other, 21, [0])
    expected = reference.decode(
        other.q[:, :, 21],
        other.k[:, :, :22],
        other.v[:, :, :22],
        sift.PowerLaw.uniform(1.0),
        v_sum=other.v[:, :, :22].sum(2),
    )
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
