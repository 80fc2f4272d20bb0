"""How the operators live with PyTorch: fakes, compilation, export, gradients."""

import itertools
import random

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import sift_attention as sift
from cases import DTYPES, LAYOUTS, Case, make_call, make_score_quantile_args, strided_copy

OPS = torch.ops.sift_attention


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def decode_args(case: Case) -> tuple[tuple, dict]:
    call = make_call(case)
    options = dict(call.options)
    options["residual"] = {"mean": 0, "renormalize": 1, "none": 2}[options["residual"]]
    law = call.law or sift.PowerLaw.exact()
    log_alpha, beta = (
        torch.as_tensor(factor).expand(case.batch, case.num_q_heads).contiguous()
        for factor in (law.log_alpha, law.beta)
    )
    return (call.q, call.k, call.v, log_alpha, beta, 0.125), options


OPCHECK_CASES = [
    *(
        Case(dtype=dtype, layout=layout, batch=1)
        for dtype, layout in itertools.product(DTYPES, LAYOUTS)
    ),
    Case(residual="renormalize"),
    Case(residual="none", law="exact"),
    Case(seq_lens=(130, 7)),
    Case(masked=True, layout="strided"),
    Case(softcap=5.0),
    Case(sinks=True),
    Case(seq_lens=(130, 0), masked=True, softcap=5.0, sinks=True, layout="paged"),
]


on_every_device = pytest.mark.usefixtures("device")


@on_every_device
@pytest.mark.parametrize("case", OPCHECK_CASES, ids=str)
def test_opcheck_decode(case):
    args, options = decode_args(case)
    clean = {
        name: value.nan_to_num(0.0) if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }
    q, k, v, *rest = args
    if case.layout == "strided":
        k, v = (strided_copy(rows.nan_to_num(0.0)) for rows in (k, v))
    else:
        k, v = k.nan_to_num(0.0), v.nan_to_num(0.0)
    torch.library.opcheck(OPS.decode.default, (q, k, v, *rest), clean)


@on_every_device
@pytest.mark.parametrize(
    ("layout", "dtype", "options"),
    [
        *((layout, dtype, {}) for dtype in DTYPES for layout in LAYOUTS),
        ("contiguous", None, {"masked": False}),
        ("contiguous", None, {"sinks": True}),
    ],
)
def test_opcheck_score_quantile(layout, dtype, options):
    arguments = make_score_quantile_args(layout, dtype, **options)
    arguments["k"] = arguments["k"].nan_to_num(0.0)
    arguments["lengths"] = arguments["lengths"].clamp(min=1)  # a NaN result would not equal itself
    torch.library.opcheck(OPS.score_quantile.default, (), {**arguments, "scale": 0.1})


@on_every_device
@pytest.mark.parametrize("has_ints", [True, False])
@pytest.mark.parametrize("beta", [None, 1.0])
def test_opcheck_fit_power_law(has_ints, beta):
    lengths = torch.tensor([[1, 2, 4, 8], [0, 2, 20, 30]])
    lengths = lengths.int() if has_ints else lengths.float()
    torch.library.opcheck(OPS.fit_power_law.default, (lengths, torch.rand(2, 3, 4), beta))


def attend(q, k, v, v_sum, seq_lens=None):
    """A piece of a model around decode."""
    law = sift.PowerLaw.uniform(2.0)
    out, stats = sift.decode(q * 1.5, k, v, law, v_sum=v_sum, seq_lens=seq_lens, return_stats=True)
    return out + 1.0, stats.kept_mass.sum(), stats.num_loaded


def attend_inputs(capacity, batch=2, dtype=None):
    call = make_call(Case(capacity=capacity, batch=batch, dtype=dtype))
    return call.q, call.k, call.v, call.options["v_sum"]


@pytest.mark.row(32)
@on_every_device
@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compile(dtype, grad_mode):
    compiled = torch.compile(attend, fullgraph=True)
    inputs = attend_inputs(100, dtype=dtype)
    with grad_mode():
        for got, want in zip(compiled(*inputs), attend(*inputs), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.row(32)
@on_every_device
def test_compile_once_for_all_lengths():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for capacity in range(100, 164):
            inputs = attend_inputs(capacity)
            assert torch.equal(compiled(*inputs)[0], attend(*inputs)[0])
    assert len(graphs) <= 2


def test_compile_reports_bad_arguments():
    q, k, v, v_sum = attend_inputs(100)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"decode: k must have shape .*, got"):
        torch.compile(attend, fullgraph=True)(q, k[..., :32], v, v_sum)


@on_every_device
def test_compile_the_fit():
    def fit(lengths, quantiles):
        law, ok = sift.fit_power_law(lengths, quantiles, 1.0)
        return law.log_alpha + 1.0, ok

    lengths, quantiles = torch.tensor([[10, 100, 1000]]).int(), torch.rand(1, 4, 3)
    with torch.no_grad():
        got = torch.compile(fit, fullgraph=True)(lengths, quantiles)
    torch.testing.assert_close(got, fit(lengths, quantiles))


@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_the_operator(strict):
    class Model(torch.nn.Module):
        def forward(self, q, k, v, v_sum, seq_lens):
            return attend(q, k, v, v_sum, seq_lens)

    inputs = (*attend_inputs(100), torch.tensor([100, 64], dtype=torch.int32))
    batch, capacity = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("capacity", min=2)
    rows = {0: batch, 2: capacity}
    dynamic_shapes = ({0: batch}, rows, rows, {0: batch}, {0: batch})
    with torch.no_grad():
        program = torch.export.export(Model(), inputs, dynamic_shapes=dynamic_shapes, strict=strict)
    assert OPS.decode.default in [node.target for node in program.graph.nodes]
    longer = (*attend_inputs(200, batch=3), torch.tensor([200, 0, 64], dtype=torch.int32))
    for got, want in zip(program.module()(*longer), attend(*longer), strict=True):
        torch.testing.assert_close(got, want)


def test_ahead_of_time_package(tmp_path):
    class Model(torch.nn.Module):
        def forward(self, q, k, v, v_sum):
            return attend(q, k, v, v_sum)

    inputs = attend_inputs(100)
    with torch.no_grad():
        program = torch.export.export(Model(), inputs)
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
        got = torch._inductor.aoti_load_package(package)(*inputs)
    torch.testing.assert_close(tuple(got), attend(*inputs))


@pytest.mark.row(33)
@on_every_device
def test_inference_tensors():
    with torch.inference_mode():
        call = make_call(Case())
        out, _ = call.run()
        assert out.is_inference()
    assert torch.equal(out, make_call(Case()).run()[0])


@pytest.mark.row(33)
def test_autocast_changes_nothing():
    call = make_call(Case())
    expected, _ = call.run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call.run()[0], expected)


@pytest.mark.row(33)
def test_meta_tensors():
    call = make_call(Case(dtype=torch.bfloat16, layout="paged"))
    expected = call.run()
    for name in ("q", "k", "v"):
        setattr(call, name, getattr(call, name).to("meta"))
    options = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value
        for name, value in call.options.items()
    }
    out, stats = call.with_options(**options).run()
    for got, want in zip((out, *stats), (expected[0], *expected[1]), strict=True):
        assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())
        assert got.device.type == "meta"


def in_fake_mode(decode, q, k, v):
    with FakeTensorMode() as mode:
        decode(*map(mode.from_tensor, (q, k, v)))


def in_inference_mode(decode, q, k, v):
    with torch.inference_mode():
        decode(q, k, v)


@pytest.mark.row(33)
@pytest.mark.parametrize(
    "world",
    [
        in_fake_mode,
        in_inference_mode,
        lambda decode, *qkv: make_fx(decode)(*qkv),
        lambda decode, *qkv: torch.func.functionalize(decode)(*qkv),
        lambda decode, *qkv: torch.func.vmap(decode)(*(tensor[None] for tensor in qkv)),
        lambda decode, *qkv: torch.compile(decode, backend="eager")(*qkv),
    ],
)
def test_a_law_of_numbers_leaves_nothing_behind(world):
    """Its tensors are kept from call to call, but not the fake or functional ones."""
    q, k, v = torch.randn(1, 8, 64), torch.randn(1, 2, 10, 64), torch.randn(1, 2, 10, 64)
    law = sift.PowerLaw(random.uniform(-1.0, 0.0), 1.0)  # one that no call has seen

    def decode(q, k, v):
        return sift.decode(q, k, v, law)

    with torch.no_grad():
        world(decode, q, k, v)
    law_of_tensors = sift.PowerLaw(torch.tensor(law.log_alpha), torch.tensor(law.beta))
    out = decode(q, k, v)
    assert not torch._is_functional_tensor(out)
    assert torch.equal(out, sift.decode(q, k, v, law_of_tensors))


@pytest.mark.row(33)
def test_vmap_is_a_loop():
    q, k, v = torch.randn(3, 2, 8, 64), torch.randn(3, 2, 2, 10, 64), torch.randn(3, 2, 2, 10, 64)
    with torch.no_grad():
        out = torch.func.vmap(sift.decode)(q, k, v)
        assert torch.equal(
            out, torch.stack([sift.decode(*row) for row in zip(q, k, v, strict=True)])
        )
