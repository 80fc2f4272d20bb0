"""Bad arguments: the error, and its one sentence."""

import math

import pytest
import torch

import sift_attention as sift
from bad_calls import BAD_CALLS, GOOD_CALLS
from cases import Case, make_call

on_every_device = pytest.mark.usefixtures("device")


@on_every_device
@pytest.mark.parametrize("op", GOOD_CALLS)
@pytest.mark.parametrize("layout", ["contiguous", "paged"])
def test_good_calls_are_good(op, layout):
    getattr(torch.ops.sift_attention, op).default(**GOOD_CALLS[op](layout))


@pytest.mark.row(17, 20, 21, 22)
@on_every_device
@pytest.mark.parametrize("bad", BAD_CALLS, ids=str)
def test_bad_calls(bad):
    with pytest.raises(bad.error) as python:
        bad.python()
    with pytest.raises(RuntimeError) as operator:
        bad.operator()
    assert str(python.value) == bad.sentence_here()
    assert str(operator.value) == bad.sentence_here()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"residual": 3}, "decode: residual must be 0 (mean), 1 (renormalize) or 2 (none), got 3"),
        (
            {"log_alpha": torch.zeros(2, 1)},
            "decode: log_alpha must have shape [B, HQ] = (2, 8), got (2, 1)",
        ),
        (
            {"beta": torch.zeros(8, 2).T},
            "decode: beta must be contiguous, got strides (1, 2)",
        ),
        (
            {"v_sum": torch.zeros(2, 64, 2).mT},
            "decode: v_sum must be contiguous, got strides (128, 1, 2)",
        ),
        (
            {"sinks": torch.zeros(16)[::2]},
            "decode: sinks must be contiguous, got strides (2,)",
        ),
    ],
)
def test_what_only_the_operator_asks_for(change, sentence):
    with pytest.raises(RuntimeError) as error:
        torch.ops.sift_attention.decode.default(**{**GOOD_CALLS["decode"]("contiguous"), **change})
    assert str(error.value) == sentence


@pytest.mark.row(23)
@pytest.mark.parametrize("op", GOOD_CALLS)
def test_tensors_on_several_devices(op):
    """By the fake, which PyTorch runs where one tensor is on meta, and by the kernel."""
    good = GOOD_CALLS[op]("contiguous")
    first, *others = (name for name, value in good.items() if isinstance(value, torch.Tensor))
    on_cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    operator = getattr(torch.ops.sift_attention, op).default
    for name in others:
        arguments = {**good, name: good[name].to("meta")}
        message = f"^{op}: {name} must be on the device of {first} = cpu, got meta$"
        with pytest.raises(RuntimeError, match=message):
            operator(**arguments)
        with pytest.raises(RuntimeError, match=message):
            operator.redispatch(on_cpu, **arguments)
    with pytest.raises(ValueError, match=r"^decode: k must be on the device of q = cpu, got meta$"):
        sift.decode(torch.zeros(1, 1, 32), *torch.zeros(2, 1, 1, 1, 32, device="meta"))


@on_every_device
def test_what_only_python_asks_for():
    call = make_call(Case())
    with pytest.raises(ValueError, match=r'"renormalize" or "none", got \'median\'$'):
        call.with_options(residual="median").run()
    call.law = sift.PowerLaw(torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match=r"log_alpha must be broadcastable to .* = \(2, 8\), got"):
        call.run()
    call.law = 2.0
    with pytest.raises(TypeError, match="law must be a PowerLaw or None, got float"):
        call.run()
    with pytest.raises(TypeError, match="decode: q must be a Tensor, got list"):
        sift.decode([1.0], call.k, call.v)


@on_every_device
def test_python_copies_what_the_operator_wants_contiguous():
    call = make_call(Case(sinks=True, law="per_head"))
    expected, _ = call.run()
    call.options["sinks"] = call.options["sinks"].repeat_interleave(2)[::2]
    call.options["v_sum"] = call.options["v_sum"].mT.contiguous().mT
    call.law = sift.PowerLaw(call.law.log_alpha.T.contiguous().T, call.law.beta)
    assert torch.equal(call.run()[0], expected)


@pytest.mark.row(12)
@pytest.mark.parametrize("c", [-1.0, math.inf, math.nan])
def test_uniform_law(c):
    with pytest.raises(ValueError, match=f"c must be finite and not negative, got {c}"):
        sift.PowerLaw.uniform(c)


@pytest.mark.row(12)
@pytest.mark.parametrize(
    ("log_alpha", "beta"), [(math.nan, 1.0), (math.inf, 1.0), (0.0, math.nan), (0.0, -math.inf)]
)
def test_law_of_bad_numbers(log_alpha, beta):
    with pytest.raises(
        ValueError, match=r"^PowerLaw: (log_alpha|beta) must be .*, got -?(nan|inf)$"
    ):
        sift.PowerLaw(log_alpha, beta)


@pytest.mark.parametrize("field", list(sift.SiftConfig.__dataclass_fields__))
def test_config(field):
    bad = {
        "threshold": "topk",
        "c": -2.0,
        "quantile": 1.0,
        "slope": "steep",
        "prompt_rows": -1,
        "warmup_steps": -1,
        "residual": "median",
        "min_keys": -1,
        "skip_layers": (-1,),
    }[field]
    with pytest.raises(ValueError, match=f"^SiftConfig: {field} must be .*, got "):
        sift.SiftConfig(**{field: bad})
