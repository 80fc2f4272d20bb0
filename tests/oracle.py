"""How close a decode result must be to the reference in float64.

Keys whose probability lies so near the threshold that rounding decides may go either way; all
others must not. As in the tests of FlashAttention-3, the output's error is compared with the error
that PyTorch makes in the same dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import sift_attention as sift
from cases import Call, assert_same_bits, on_cuda, tolerance

Result = tuple[Tensor, sift.DecodeStats]


def assert_matches_reference(call: Call) -> None:
    out, stats = call.run()
    double = Call(call.q.double(), call.k.double(), call.v.double(), call.law, call.options)
    expected, expected_stats = double.run(sift.reference.decode)
    keys = KeySets(double)

    assert out.dtype == call.q.dtype
    assert out.shape == call.q.shape
    assert out.is_contiguous()
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(stats.lse == -math.inf, expected_stats.lse == -math.inf)
    torch.testing.assert_close(stats.lse.double(), expected_stats.lse, atol=2e-4, rtol=2e-4)

    num_loaded = stats.num_loaded.long()
    assert (num_loaded >= keys.sure.sum(-1).clamp(max=expected_stats.num_loaded.long())).all()
    assert (num_loaded <= (keys.sure | keys.maybe).sum(-1)).all()
    mass_error = (stats.kept_mass.double() - expected_stats.kept_mass).abs()
    assert (mass_error <= 1e-5 + keys.eps + keys.maybe_mass).all()

    if out.numel() == 0:
        return
    error = (out.double() - expected).abs()
    plain_error = (plain_decode(call, keys).double() - expected).abs().nan_to_num(0.0)
    rounded = expected.to(call.q.dtype)
    rounding = ((rounded + 0.3 - 0.3).double() - expected).abs()
    # Each of the two may be lucky with the rounding of its scores.
    score_rounding = 2.0**-23 * keys.magnitude[..., None] * largest_value(call)
    allowed = 2.0 * rounding.max() + score_rounding + keys.error_bound(double)
    # PyTorch adds products pairwise, which rounds less than adding them in a row.
    assert (error <= 3.0 * plain_error.max() + allowed).all(), (error.max(), plain_error.max())
    assert error.mean() <= 2.0 * plain_error.mean() + allowed.mean()


def assert_same_result(got: Result, expected: Result, keys: KeySets) -> None:
    """Compares two (out, stats) that differ in the order of sums; `keys` are those of the call."""
    if keys.ambiguous:
        return
    close = tolerance(got[0].dtype)
    if keys.eps.numel() > 0:
        close["atol"] += keys.eps.max().item()
    torch.testing.assert_close(got[0], expected[0], **close)
    torch.testing.assert_close(got[1].kept_mass, expected[1].kept_mass, atol=close["atol"], rtol=0)
    torch.testing.assert_close(got[1].lse, expected[1].lse, **close)
    assert torch.equal(got[1].num_loaded, expected[1].num_loaded)


def assert_same_bits_on_the_cpu(got: Result, expected: Result, keys: KeySets) -> None:
    """CUDA may divide calls of other lengths and masks in another way."""
    if on_cuda():
        assert_same_result(got, expected, keys)
    else:
        assert_same_bits(got, expected)


def rounding_of_scores(magnitude: Tensor | float, head_dim: int) -> Tensor | float:
    """What float32 can change in log p.

    Args:
        magnitude: scale times the largest sum of |q k| among the keys.
        head_dim: D; every addition rounds, and at least eight lanes share them.
    """
    return 1e-5 + (8.0 + head_dim / 8.0) * 2.0**-24 * magnitude


class KeySets:
    """Which keys must be loaded, and which may be."""

    def __init__(self, call: Call) -> None:
        options = call.options
        k = sift.reference.gather_rows(call.k, options.get("block_table"))
        q_rows, attended = call.q[:, :, None], call.attended()
        log_p, _, _ = sift.reference.log_probabilities(
            q_rows,
            k,
            attended[:, None],
            options.get("scale"),
            options["softcap"],
            options.get("sinks"),
        )
        log_p = log_p[:, :, 0]
        batch, num_q_heads, _ = log_p.shape
        num_kv_heads = k.shape[1]
        group_size = num_q_heads // num_kv_heads
        law = call.law or sift.PowerLaw.exact()
        theta = law.theta(attended.sum(dim=1, keepdim=True)).expand(batch, num_q_heads)
        theta = theta.nan_to_num(0.0)  # both keep all

        finite = k.abs().nan_to_num(0.0, posinf=0.0)
        products = call.q.abs().unflatten(1, (num_kv_heads, group_size)) @ finite.mT
        magnitude = torch.zeros_like(theta)
        if log_p.numel() > 0:
            magnitude = products.amax(-1).flatten(1)
        scale = options.get("scale") or 1.0 / math.sqrt(call.q.shape[-1])
        self.magnitude = scale * magnitude  # [B, HQ]
        self.eps = rounding_of_scores(self.magnitude, call.q.shape[-1])

        def by_group(mask: Tensor) -> Tensor:
            return mask.reshape(batch, num_kv_heads, group_size, mask.shape[-1]).any(dim=2)

        self.p = log_p.exp()
        is_alive = (log_p != -math.inf).any(dim=-1, keepdim=True)
        # False where a sink leaves the keys less than a double holds.
        has_mass = (self.p != 0.0).any(dim=-1, keepdim=True)
        everything = (theta == 0.0)[..., None] & is_alive & attended[:, None]
        # Below its least normal number, float32 tells no probabilities apart.
        least, eps = math.log(torch.finfo(torch.float32).tiny), self.eps[..., None]
        log_theta = theta.log()[..., None]
        is_told = log_p > least
        untold = has_mass & ~is_told & (log_p > -math.inf) & (log_theta < least + eps)
        distance = (log_p - log_theta).masked_fill(~is_told, -math.inf)
        self.passing = by_group((distance > 0.0) | everything)
        self.loaded = sift.reference.loaded_keys(log_p, attended, theta, num_kv_heads)
        self.sure = by_group((distance > eps) | everything) & self.loaded
        near = by_group((distance.abs() <= eps) | untold)
        if (
            log_p.numel() > 0
        ):  # where nothing passes, equals of the largest may be loaded in its place
            best = log_p.reshape(batch, num_kv_heads, -1).amax(dim=-1)
            nearly_best = repeat(best, group_size)[..., None] - 2.0 * eps
            has_no_mass = repeat(~by_group(has_mass), group_size)
            equals = by_group(((log_p >= nearly_best) | has_no_mass) & (log_p > -math.inf))
            near |= equals & ~self.sure.any(dim=-1, keepdim=True)
        self.maybe = (near | self.loaded) & ~self.sure
        no_choice = self.maybe.sum(dim=-1, keepdim=True) == 1
        self.sure |= self.maybe & no_choice & ~self.sure.any(dim=-1, keepdim=True)
        self.maybe &= ~self.sure
        self.maybe_mass = (self.p * repeat(self.maybe, group_size)).sum(dim=-1)  # [B, HQ]
        self.sure_mass = (self.p * repeat(self.sure, group_size)).sum(dim=-1)

    def error_bound(self, call: Call) -> Tensor:
        """What a wrong guess about the `maybe` keys can change in the output, [B, HQ, 1]."""
        moved = self.maybe_mass
        if not self.ambiguous:
            return torch.zeros_like(moved)[..., None]
        if call.options["residual"] == "renormalize":
            moved = moved / (self.sure_mass + self.maybe_mass).clamp(min=1e-30)
        return (2.0 * moved * largest_value(call))[..., None]

    @property
    def ambiguous(self) -> bool:
        """Whether more than one set of loaded keys is right."""
        return bool(self.maybe.any())


def largest_value(call: Call) -> float:
    return call.v.abs().nan_to_num(0.0).max().item() if call.v.numel() > 0 else 0.0


def plain_decode(call: Call, keys: KeySets) -> Tensor:
    """The same loaded keys in PyTorch operations of the call's own dtype."""
    options, dtype = call.options, call.q.dtype
    group_size = call.q.shape[1] // keys.loaded.shape[1]
    attended = call.attended()
    k, v = (
        repeat(sift.reference.gather_rows(rows, options.get("block_table")), group_size)
        for rows in (call.k, call.v)
    )
    k = k.masked_fill(~attended[:, None, :, None], 0.0)
    v = v.masked_fill(~repeat(keys.loaded, group_size)[..., None], 0.0)
    scale = options.get("scale") or 1.0 / math.sqrt(call.q.shape[-1])
    scores = (call.q[:, :, None] @ k.mT)[:, :, 0] * scale
    if options["softcap"] > 0.0:
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    scores = scores.masked_fill(~attended[:, None], -math.inf)
    sink = scores.new_full((*scores.shape[:2], 1), -math.inf)
    if options.get("sinks") is not None:
        sink = options["sinks"].to(dtype)[None, :, None].expand_as(sink)
    p = torch.cat([scores, sink], dim=-1).softmax(dim=-1).nan_to_num(0.0)
    loaded_p = p[..., :-1].masked_fill(~repeat(keys.loaded, group_size), 0.0)
    out = (loaded_p[:, :, None] @ v)[:, :, 0]
    if torch.equal(keys.loaded, attended[:, None].expand_as(keys.loaded)):
        return out
    kept = loaded_p.sum(dim=-1, keepdim=True)
    dropped = (1.0 - kept - p[..., -1:]).clamp(min=0.0) * attended.any(dim=-1)[:, None, None]
    if options["residual"] == "mean":
        v_mean = options["v_sum"] / attended.sum(dim=1)[:, None, None]
        return out + dropped * repeat(v_mean.nan_to_num(0.0), group_size).to(dtype)
    if options["residual"] == "renormalize":
        return (out * ((kept + dropped) / kept)).nan_to_num(0.0)
    return out


def repeat(per_kv_head: Tensor, group_size: int) -> Tensor:
    return per_kv_head.repeat_interleave(group_size, dim=1)
