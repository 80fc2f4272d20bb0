"""The operators in plain PyTorch and float64: the truth that the kernels are tested against.

Same arguments and semantics as `sift_attention.decode`, `score_quantile` and `fit_power_law`, for
any floating dtype, without checks and without speed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .law import DecodeStats, PowerLaw


def attended_keys(
    k: Tensor,
    seq_lens: Tensor | None = None,
    key_mask: Tensor | None = None,
    block_table: Tensor | None = None,
    *,
    batch: int,
) -> Tensor:
    """Which keys each sequence attends.

    Returns:
        Tensor[B, N]: bool.
    """
    if block_table is None:
        attended = k.new_ones(batch, k.shape[2], dtype=torch.bool)
    else:
        mapped = (block_table >= 0) & (block_table < k.shape[0])
        attended = mapped.repeat_interleave(k.shape[1], dim=1)
    if seq_lens is not None:
        attended = attended & (torch.arange(attended.shape[1], device=k.device) < seq_lens[:, None])
    return attended if key_mask is None else attended & key_mask


def gather_rows(cache: Tensor, block_table: Tensor | None) -> Tensor:
    """K or V as [B, HK, N, D]; rows of unmapped blocks are arbitrary."""
    if block_table is None:
        return cache
    blocks = cache[block_table.long().clamp(0, cache.shape[0] - 1)]
    return blocks.flatten(1, 2).transpose(1, 2)


def probabilities(
    q: Tensor,
    k: Tensor,
    attended: Tensor,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact softmax probabilities.

    Args:
        q (Tensor[B, HQ, R, D]): query rows.
        k (Tensor[B, HK, N, D]): keys.
        attended (Tensor[B, R, N], bool): the keys that each row attends.

    Returns:
        tuple: p [B, HQ, R, N], lse [B, HQ, R] and sink mass [B, HQ, R], float64. A score that is
        NaN or +inf makes its row NaN; a row without a score above -inf has p = 0.
    """
    k = k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.double() @ k.mT * (1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if softcap > 0.0:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(scores == math.inf, math.nan)
    scores = scores.masked_fill(~attended[:, None], -math.inf)
    sink = scores.new_full((*scores.shape[:-1], 1), -math.inf)
    if sinks is not None:
        sink = sinks.double()[:, None, None].expand_as(sink)
    lse = torch.cat([scores, sink], dim=-1).logsumexp(dim=-1)
    p = (scores - lse[..., None]).exp().masked_fill(scores == -math.inf, 0.0)
    return p, lse, (sink[..., 0] - lse).exp().nan_to_num(0.0)


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    law: PowerLaw | None = None,
    *,
    scale: float | None = None,
    seq_lens: Tensor | None = None,
    key_mask: Tensor | None = None,
    v_sum: Tensor | None = None,
    residual: str | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    block_table: Tensor | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, DecodeStats]:
    """See `sift_attention.decode`."""
    batch, num_q_heads, _ = q.shape
    residual = residual or ("mean" if v_sum is not None else "renormalize")
    attended = attended_keys(k, seq_lens, key_mask, block_table, batch=batch)
    k, v = gather_rows(k, block_table), gather_rows(v, block_table).double()
    group_size = num_q_heads // k.shape[1]

    p, lse, sink_mass = (
        row[:, :, 0]
        for row in probabilities(q[:, :, None], k, attended[:, None], scale, softcap, sinks)
    )
    length = attended.sum(dim=1)
    theta = (law or PowerLaw.exact()).theta(length[:, None]).to(p.device)[..., None]
    alive = (lse.isnan() | (p.sum(dim=-1) > 0.0))[..., None]
    wanted = attended[:, None] & alive & (~(p <= theta) | (theta == 0.0))

    loaded = wanted.unflatten(1, (-1, group_size)).any(dim=2)  # [B, HK, N]
    if loaded.shape[-1] > 0:
        largest = p.unflatten(1, (-1, group_size)).amax(dim=2).argmax(dim=-1)
        nothing = alive.unflatten(1, (-1, group_size)).any(dim=2) & ~loaded.any(-1, keepdim=True)
        loaded = loaded | (nothing & (one_hot(largest, loaded.shape[-1]) > 0))
    num_loaded = loaded.sum(dim=-1)

    per_head = loaded.repeat_interleave(group_size, dim=1)
    p = p.masked_fill(~per_head, 0.0)
    rows = v.masked_fill(~loaded[..., None], 0.0).repeat_interleave(group_size, dim=1)
    out = (p[..., None, :] @ rows)[..., 0, :]
    kept_mass = p.sum(dim=-1)
    complete = (num_loaded == length[:, None]).repeat_interleave(group_size, dim=1) | ~alive[..., 0]
    dropped = (1.0 - kept_mass - sink_mass).clamp(min=0.0).masked_fill(complete, 0.0)[..., None]
    if residual == "mean" and v_sum is not None:
        v_mean = (v_sum.double() / length[:, None, None]).repeat_interleave(group_size, dim=1)
        out = torch.where(dropped == 0.0, out, out + dropped * v_mean)
    elif residual == "renormalize":
        share = torch.where(kept_mass == 0.0, 0.0, (1.0 - sink_mass) / kept_mass)
        out = torch.where(dropped == 0.0, out, out * share[..., None])

    stats_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    stats = DecodeStats(lse.to(stats_dtype), kept_mass.to(stats_dtype), num_loaded.int())
    return (out.to(q.dtype), stats) if return_stats else out.to(q.dtype)


def score_quantile(
    q: Tensor,
    k: Tensor,
    lengths: Tensor,
    quantile: float,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    block_table: Tensor | None = None,
) -> Tensor:
    """See `sift_attention.score_quantile`."""
    present = attended_keys(k, None, key_mask, block_table, batch=q.shape[0])
    rank = present.cumsum(dim=1)
    attended = present[:, None] & (rank[:, None] <= lengths[..., None])  # [B, R, N]
    p, lse, _ = probabilities(q, gather_rows(k, block_table), attended, scale, softcap, sinks)
    ascending = p.masked_fill(~attended[:, None], math.inf).sort(dim=-1).values
    count = attended.sum(dim=-1)[:, None]  # [B, 1, R]
    index = (quantile * (count - 1).clamp(min=0).double()).floor().long().expand(p.shape[:3])
    result = ascending.gather(-1, index[..., None])[..., 0]
    result = result.masked_fill((count == 0) | lse.isnan(), math.nan)
    return result if q.dtype == torch.float64 else result.float()


def fit_power_law(
    lengths: Tensor,
    quantiles: Tensor,
    beta: float | None = None,
    *,
    min_samples: int = 3,
    min_length_ratio: float = 4.0,
) -> tuple[PowerLaw, Tensor]:
    """See `sift_attention.fit_power_law`."""
    present = (lengths > 0)[:, None].expand_as(quantiles)
    count = present.sum(dim=-1)
    x = torch.where(present, lengths.double()[:, None].log(), 0.0)
    y = torch.where(present, quantiles.double().log(), 0.0)
    x_mean, y_mean = x.sum(-1) / count, y.sum(-1) / count
    dx = torch.where(present, x - x_mean[..., None], 0.0)
    if beta is None:
        slope = -(dx * y).sum(-1) / (dx * dx).sum(-1)
        longest = torch.where(present, x, -math.inf).amax(-1)
        shortest = torch.where(present, x, math.inf).amin(-1)
        wide_enough = longest - shortest >= math.log(min_length_ratio)
    else:
        slope = torch.full_like(y_mean, beta)
        wide_enough = torch.ones_like(count, dtype=torch.bool)
    log_alpha = y_mean + slope * x_mean
    ok = (count >= min_samples) & wide_enough & log_alpha.isfinite() & (slope >= 0.0)
    log_alpha = log_alpha.masked_fill(~ok, -math.inf).float()
    return PowerLaw(log_alpha, slope.masked_fill(~ok, 0.0).float()), ok
