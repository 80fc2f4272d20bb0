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


def log_probabilities(
    q: Tensor,
    k: Tensor,
    attended: Tensor,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Natural logs of the exact softmax probabilities.

    Args:
        q (Tensor[B, HQ, R, D]): query rows.
        k (Tensor[B, HK, N, D]): keys.
        attended (Tensor[B, R, N], bool): the keys that each row attends.
        scale (float): of the scores, 1 / sqrt(D) by default.
        softcap (float): scores become softcap * tanh(score / softcap); 0 leaves them.
        sinks (Tensor[HQ]): logits that join the denominator only.

    Returns:
        tuple: log p [B, HQ, R, N], lse [B, HQ, R] and sink mass [B, HQ, R], float64. A score or
        sink that is NaN or +inf makes its row NaN; keys that are not attended, and scores of -inf,
        have -inf.
    """
    k = k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.double() @ k.mT * (1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if softcap > 0.0:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(scores == math.inf, math.nan)
    scores = scores.masked_fill(~attended[:, None], -math.inf)
    sink = scores.new_full((*scores.shape[:-1], 1), -math.inf)
    if sinks is not None:
        sinks = sinks.double().masked_fill(sinks == math.inf, math.nan)
        sink = sinks[:, None, None].expand_as(sink)
    logits = torch.cat([scores, sink], dim=-1)
    # Not logits - lse: beside a huge lse the log of the number of equals is lost.
    log_p = logits.log_softmax(dim=-1).masked_fill(logits == -math.inf, -math.inf)
    return log_p[..., :-1], logits.logsumexp(dim=-1), log_p[..., -1].exp().nan_to_num(0.0)


def loaded_keys(log_p: Tensor, attended: Tensor, theta: Tensor, num_kv_heads: int) -> Tensor:
    """The keys whose value rows are loaded, one set per key/value head.

    Args:
        log_p (Tensor[B, HQ, N]): see `log_probabilities`.
        attended (Tensor[B, N], bool): see `attended_keys`.
        theta (Tensor, broadcastable to [B, HQ]): 0 keeps every attended key.
        num_kv_heads (int): HK.

    Returns:
        Tensor[B, HK, N]: bool.
    """
    batch, num_q_heads, capacity = log_p.shape
    group_size = num_q_heads // num_kv_heads
    alive = ~(log_p == -math.inf).all(dim=-1, keepdim=True)
    passed = ~(log_p.exp() <= theta[..., None]) | (theta[..., None] == 0.0)
    wanted = attended[:, None] & alive & passed
    loaded = wanted.reshape(batch, num_kv_heads, group_size, capacity).any(dim=2)
    if capacity == 0:
        return loaded
    best = log_p.reshape(batch, num_kv_heads, group_size, capacity).amax(dim=2)
    largest = one_hot(best.argmax(dim=-1), capacity).bool() & (best > -math.inf)
    return torch.where(loaded.any(dim=-1, keepdim=True), loaded, largest)


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
    residual = residual or ("mean" if v_sum is not None else "renormalize")
    attended = attended_keys(k, seq_lens, key_mask, block_table, batch=q.shape[0])
    k, v = gather_rows(k, block_table), gather_rows(v, block_table).double()
    num_kv_heads, group_size = k.shape[1], q.shape[1] // k.shape[1]

    log_p, lse, sink_mass = (
        row[:, :, 0]
        for row in log_probabilities(q[:, :, None], k, attended[:, None], scale, softcap, sinks)
    )
    length = attended.sum(dim=1)
    theta = (law or PowerLaw.exact()).theta(length[:, None])
    loaded = loaded_keys(log_p, attended, theta, num_kv_heads)
    num_loaded = loaded.sum(dim=-1)

    p = log_p.exp().masked_fill(~loaded.repeat_interleave(group_size, dim=1), 0.0)
    rows = v.masked_fill(~loaded[..., None], 0.0).repeat_interleave(group_size, dim=1)
    out = (p[..., None, :] @ rows)[..., 0, :]
    kept_mass = p.sum(dim=-1)
    complete = (num_loaded == length[:, None]).repeat_interleave(group_size, dim=1)
    dropped = (1.0 - kept_mass - sink_mass).clamp(min=0.0)
    dropped = dropped.masked_fill(complete | (log_p == -math.inf).all(dim=-1), 0.0)[..., None]
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
    k = gather_rows(k, block_table)
    log_p, lse, _ = log_probabilities(q, k, attended, scale, softcap, sinks)
    ascending = log_p.exp().masked_fill(~attended[:, None], math.inf).sort(dim=-1).values
    count = attended.sum(dim=-1)[:, None]  # [B, 1, R]
    index = (quantile * (count - 1).clamp(min=0).double()).floor().long().expand(log_p.shape[:3])
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
    present = (lengths != 0)[:, None].expand_as(quantiles)
    valid = (lengths >= 1)[:, None] & (quantiles >= 0.0) & (quantiles <= 1.0 + 1e-5)
    count = present.sum(dim=-1)
    x = torch.where(present, lengths.double()[:, None].log(), 0.0)
    y = torch.where(
        present, quantiles.double().clamp(min=torch.finfo(torch.float32).tiny).log(), 0.0
    )
    x_mean, y_mean = x.sum(-1) / count, y.sum(-1) / count
    dx = torch.where(present, x - x_mean[..., None], 0.0)
    if beta is None:
        slope = -(dx * y).sum(-1) / (dx * dx).sum(-1)
        longer, shorter = lengths[:, :, None], lengths[:, None]
        spans = (shorter != 0) & (longer >= min_length_ratio * shorter)
        wide_enough = spans.flatten(1).any(dim=1, keepdim=True)
    else:
        slope = torch.full_like(y_mean, beta)
        wide_enough = torch.ones_like(count, dtype=torch.bool)
    log_alpha = y_mean + slope * x_mean
    ok = (count >= min_samples) & (valid | ~present).all(-1) & wide_enough & (slope >= 0.0)
    log_alpha = log_alpha.masked_fill(~ok, -math.inf).float()
    return PowerLaw(log_alpha, slope.masked_fill(~ok, 0.0).float()), ok
