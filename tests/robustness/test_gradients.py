"""Results are constants, so whoever wants their gradients must hear that there are none."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.functional import scaled_dot_product_attention

import sift_attention as sift
from cases import Case, make_call, make_score_quantile_args

pytestmark = [pytest.mark.usefixtures("device"), pytest.mark.row(31)]

REFUSAL = r"^{}: gradients are not supported, call it under torch.no_grad\(\) or detach its inputs$"


def by_python(q, k, v):
    return sift.decode(q, k, v, v_sum=v.sum(2, dtype=torch.float32).detach())


def by_operator(q, k, v):
    log_alpha, beta = torch.zeros(2, *q.shape[:2])
    return torch.ops.sift_attention.decode(q, k, v, log_alpha, beta, 0.1, residual=1)[0]


DECODES = pytest.mark.parametrize("decode", [by_python, by_operator])


@pytest.mark.parametrize("name", ["q", "k", "v", "v_sum", "log_alpha", "sinks"])
def test_backward(name):
    call = make_call(Case(law="per_head", sinks=True))
    inputs = {"q": call.q, "k": call.k, "v": call.v, **call.options}
    inputs["log_alpha"] = call.law.log_alpha
    expected, _ = call.run()
    inputs[name].requires_grad_()
    with pytest.raises(RuntimeError, match=REFUSAL.format("decode")):
        call.run()
    with torch.no_grad():
        assert torch.equal(call.run()[0], expected)
    with torch.inference_mode():
        assert torch.equal(call.run()[0], expected)


@pytest.mark.parametrize("name", ["q", "k", "v", "v_sum", "log_alpha", "sinks"])
def test_forward(name):
    call = make_call(Case(law="per_head", sinks=True))
    expected, _ = call.run()
    with forward_ad.dual_level():
        assert torch.equal(call.run()[0], expected)
        inputs = {"q": call.q, "k": call.k, "v": call.v, **call.options}
        inputs["log_alpha"] = call.law.log_alpha
        dual = forward_ad.make_dual(inputs[name], torch.ones_like(inputs[name]))
        if name in call.options:
            call.options[name] = dual
        elif name == "log_alpha":
            call.law = sift.PowerLaw(dual, call.law.beta)
        else:
            setattr(call, name, dual)
        with pytest.raises(RuntimeError, match=REFUSAL.format("decode")):
            call.run()


@DECODES
@pytest.mark.parametrize(
    "transform",
    [
        lambda decode, q: torch.func.grad(lambda q: decode(q).sum())(q),
        lambda decode, q: torch.func.vjp(decode, q),
        lambda decode, q: torch.func.jvp(decode, (q,), (q,)),
        lambda decode, q: torch.func.jacfwd(decode)(q),
        lambda decode, q: torch.func.jacrev(decode)(q),
    ],
    ids=["grad", "vjp", "jvp", "jacfwd", "jacrev"],
)
def test_transforms(decode, transform):
    call = make_call(Case(capacity=5))
    with pytest.raises(RuntimeError, match=REFUSAL.format("decode")):
        transform(lambda q: decode(q, call.k, call.v), call.q)


def test_the_other_operators():
    arguments = make_score_quantile_args("contiguous")
    arguments["q"].requires_grad_()
    with pytest.raises(RuntimeError, match=REFUSAL.format("score_quantile")):
        sift.score_quantile(**arguments)
    quantiles = torch.ones(1, 2, 4)
    with forward_ad.dual_level():
        quantiles = forward_ad.make_dual(quantiles, quantiles)
        with pytest.raises(RuntimeError, match=REFUSAL.format("fit_power_law")):
            sift.fit_power_law(torch.ones(1, 4).int(), quantiles)


def test_sdpa_has_the_gradients_of_pytorchs():
    """Both ways, by staying dense."""
    call = make_call(Case(num_q_heads=2, capacity=5))
    q = call.q[:, :, None]

    def sifted(q):
        state = sift.SiftState(sift.SiftConfig(min_keys=0))
        return sift.scaled_dot_product_attention(q, call.k, call.v, state=state)

    def dense(q):
        return scaled_dot_product_attention(q, call.k, call.v)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        got, expected = (torch.func.jvp(attend, (q,), (q,)) for attend in (sifted, dense))
        torch.testing.assert_close(got, expected)
        assert got[1].abs().max() > 0
        got, expected = (torch.func.jacrev(attend)(q) for attend in (sifted, dense))
        torch.testing.assert_close(got, expected)
