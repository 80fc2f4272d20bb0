"""scaled_dot_product_attention: PyTorch's wherever it does not sift."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional

import sift_attention as sift
from sift_attention import reference
from sift_attention.counters import DENSE_REASONS

B, HQ, HK, N, D = 2, 4, 2, 40, 32
SIFTING = sift.SiftConfig(c=1.5, min_keys=0)


def inputs(rows: int = 1, dim: int = D, dtype: torch.dtype = torch.float32):
    q = 3.0 * torch.randn(B, HQ, rows, dim, dtype=dtype)
    return q, torch.randn(B, HK, N, dim, dtype=dtype), torch.randn(B, HK, N, dim, dtype=dtype)


def sifted(q, k, v, mask=None, c: float = 1.5) -> torch.Tensor:
    attended = v if mask is None else v * mask[:, None, :, None]
    return reference.decode(
        q[:, :, 0], k, v, sift.PowerLaw.uniform(c), key_mask=mask, v_sum=attended.sum(2)
    )[:, :, None]


def dense_counts(state: sift.SiftState) -> dict[str, int]:
    counts = zip(DENSE_REASONS, state.counters.dense.tolist(), strict=True)
    return {reason: count for reason, count in counts if count}


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("masking", [{}, {"is_causal": True}, {"attn_mask": "additive"}])
def test_dense_calls_are_pytorchs(rows, with_state, masking):
    q, k, v = inputs(rows)
    if "attn_mask" in masking:
        masking = {"attn_mask": torch.randn(B, 1, rows, N)}
    options = {**masking, "scale": 0.2, "enable_gqa": True}
    state = sift.SiftState(sift.SiftConfig(c=0)) if with_state else None
    out = sift.scaled_dot_product_attention(q, k, v, **options, state=state)
    expected = functional.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_one_token_sifts():
    q, k, v = inputs()
    state = sift.SiftState(SIFTING)
    out = sift.scaled_dot_product_attention(q, k, v, enable_gqa=True, state=state)
    torch.testing.assert_close(out, sifted(q, k, v), atol=1e-5, rtol=1e-5)
    assert state.counters.calls == 1


@pytest.mark.row(27)
@pytest.mark.parametrize("shape", [(1, N), (B, 1, 1, N), (1, 1, 1, N), (B, 1, 1, 1), (1, 1, N)])
def test_boolean_masks_sift(shape):
    q, k, v = inputs()
    mask = torch.ones(shape, dtype=torch.bool)
    if shape[-1] == N:
        mask[..., 25:] = False
        mask[-1, ..., :3] = False
    state = sift.SiftState(SIFTING)
    out = sift.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True, state=state)
    keys = mask[(None,) * (4 - mask.dim())][:, 0, 0].expand(B, N)
    torch.testing.assert_close(out, sifted(q, k, v, keys), atol=1e-5, rtol=1e-5)
    assert state.counters.calls == 1


@pytest.mark.parametrize("prompt_mask", ["causal", "boolean", "all"])
def test_decoding_after_a_prompt(prompt_mask):
    q, k, v = inputs(rows=30)
    state = sift.SiftState(SIFTING)
    mask = torch.ones(30, 30, dtype=torch.bool).tril()
    options = {"causal": {"is_causal": True}, "boolean": {"attn_mask": mask}, "all": {}}
    prompt = (q, k[:, :, :30], v[:, :, :30])
    sift.scaled_dot_product_attention(*prompt, **options[prompt_mask], enable_gqa=True, state=state)
    torch.testing.assert_close(state.values.total, v[:, :, :30].sum(2))
    for end in range(31, 36):
        step = (3.0 * torch.randn(B, HQ, 1, D), k[:, :, :end], v[:, :, :end])
        out = sift.scaled_dot_product_attention(*step, enable_gqa=True, state=state)
        torch.testing.assert_close(out, sifted(*step), atol=1e-5, rtol=1e-5)


@pytest.mark.row(27)
@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("mask", {"attn_mask": torch.zeros(B, 1, 1, N)}),
        ("mask", {"attn_mask": torch.ones(B, HQ, 1, N, dtype=torch.bool)}),
        ("mask", {"is_causal": True}),
        ("dropout", {"dropout_p": 0.5}),
    ],
)
def test_reasons_to_stay_dense(reason, options):
    q, k, v = inputs()
    options = {"enable_gqa": True, **options}
    state = sift.SiftState(SIFTING)
    torch.manual_seed(1)
    out = sift.scaled_dot_product_attention(q, k, v, **options, state=state)
    torch.manual_seed(1)
    assert torch.equal(out, functional.scaled_dot_product_attention(q, k, v, **options))
    assert dense_counts(state) == {reason: 1}
    assert state.counters.calls == 0


def test_a_mask_beside_is_causal_is_what_torch_makes_of_it():
    """Older versions attend under both, newer ones refuse."""
    q, k, v = inputs()
    options = {"is_causal": True, "attn_mask": torch.ones(1, N, dtype=torch.bool)}
    options["enable_gqa"] = True
    state = sift.SiftState(SIFTING)
    sift.scaled_dot_product_attention(q, k, v, enable_gqa=True, state=state)
    try:
        expected = functional.scaled_dot_product_attention(q, k, v, **options)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            sift.scaled_dot_product_attention(q, k, v, **options, state=state)
        assert dense_counts(state) == {}
    else:
        out = sift.scaled_dot_product_attention(q, k, v, **options, state=state)
        assert torch.equal(out, expected)
        assert dense_counts(state) == {"mask": 1}


def test_what_torch_refuses_leaves_the_state():
    q, k, v = inputs()
    state = sift.SiftState(SIFTING)
    sift.scaled_dot_product_attention(q, k, v, enable_gqa=True, state=state)
    with pytest.raises(RuntimeError, match="dtype"):
        sift.scaled_dot_product_attention(q.double(), k, v, enable_gqa=True, state=state)
    assert dense_counts(state) == {}


@pytest.mark.parametrize(
    ("reason", "dim", "dtype"), [("head size", 48, torch.float32), ("dtype", D, torch.float64)]
)
def test_unsupported_inputs_stay_dense(reason, dim, dtype):
    q, k, v = inputs(dim=dim, dtype=dtype)
    state = sift.SiftState(SIFTING)
    out = sift.scaled_dot_product_attention(q, k, v, enable_gqa=True, state=state)
    expected = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.equal(out, expected)
    assert dense_counts(state) == {reason: 1}


def test_gradients_stay_dense():
    q, k, v = inputs()
    state = sift.SiftState(SIFTING)
    k.requires_grad_()
    sift.scaled_dot_product_attention(q, k, v, enable_gqa=True, state=state).sum().backward()
    assert k.grad.abs().sum() > 0
    assert dense_counts(state) == {"gradients": 1}
    with torch.no_grad():
        out = sift.scaled_dot_product_attention(q, k, v, enable_gqa=True, state=state)
    torch.testing.assert_close(out, sifted(q, k, v).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.row(37)
def test_a_dense_step_does_not_spoil_the_next():
    q, k, v = inputs()
    state = sift.SiftState(SIFTING)
    for end in range(30, N + 1):
        step = (q, k[:, :, :end], v[:, :, :end])
        dropout = 0.5 if end % 3 == 0 else 0.0
        out = sift.scaled_dot_product_attention(
            *step, dropout_p=dropout, enable_gqa=True, state=state
        )
        if dropout == 0.0:
            torch.testing.assert_close(out, sifted(*step), atol=1e-5, rtol=1e-5)


def test_what_pytorch_refuses_is_refused():
    q, k, v = inputs()
    state = sift.SiftState(SIFTING)
    with pytest.raises(RuntimeError):
        sift.scaled_dot_product_attention(q, k, v, state=state)  # grouped heads not enabled


def test_other_ranks_are_pytorchs():
    q, k, v = (x[:, 0] for x in inputs())
    out = sift.scaled_dot_product_attention(q, k, v, state=sift.SiftState(SIFTING))
    assert torch.equal(out, functional.scaled_dot_product_attention(q, k, v))
