"""The operators with their defaults.

The checks live in the operators themselves, once, and cost a call nothing; here their sentences
become ValueError and TypeError.
"""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ._library import is_watched, wants_gradient  # registers torch.ops.sift_attention
from .law import DecodeStats, PowerLaw
from .law_tensors import per_head
from .values import ARE_CHECKED, check_values

Residual = Literal["mean", "renormalize", "none"]

DECODE = torch.ops.sift_attention.decode.default
SCORE_QUANTILE = torch.ops.sift_attention.score_quantile.default
FIT_POWER_LAW = torch.ops.sift_attention.fit_power_law.default
RESIDUALS = {"mean": 0, "renormalize": 1, "none": 2}
_EXACT = PowerLaw.exact()


@overload
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
    residual: Residual | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    block_table: Tensor | None = None,
    return_stats: Literal[False] = False,
) -> Tensor: ...


@overload
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
    residual: Residual | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    block_table: Tensor | None = None,
    return_stats: Literal[True],
) -> tuple[Tensor, DecodeStats]: ...


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
    residual: Residual | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    block_table: Tensor | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, DecodeStats]:
    """Attention of one query token per sequence that loads only the value rows that matter.

    For query head h of a group that shares a key/value head, over the S attended keys j:

        p_hj = softmax_j(scale * q_h . k_j)             exact
        load j  if p_hj > theta_h for any h of the group,  theta_h = exp(log_alpha_h) * S^-beta_h
        out_h = sum over loaded j of p_hj v_j + residual

    Where no key passes, the one with the group's largest p is loaded. Under `torch.no_grad()` or
    `torch.inference_mode()` a call costs least.

    Args:
        q (Tensor[B, HQ, D], bfloat16 or float16, on the CPU also float32): the query token; D is
            64, 80, 96, 128 or 256, on the CPU also 32. Any strides with a last stride of 1.
        k (Tensor[B, HK, N, D], dtype of q): keys; N is the capacity, HQ a multiple of HK. With
            `block_table`: Tensor[num_blocks, block_size, HK, D]. Any strides with a last stride
            of 1.
        v (Tensor, shape and dtype of k): values.
        law (PowerLaw): the threshold; its tensors are float32 and broadcast to [B, HQ]. None
            keeps every key: exact attention.
        scale (float): of the scores, 1 / sqrt(D) by default.
        seq_lens (Tensor[B], int32): keys [0, seq_lens[b]) are attended; all by default. The
            values stay on the device: they are clamped to [0, N], and checked only where
            SIFT_CHECK=1 is in the environment when the package is imported.
        key_mask (Tensor[B, N], bool): False takes a key out of the attended ones. Last stride 1.
        v_sum (Tensor[B, HK, D], float32): sum of V over the attended keys, for the mean residual.
        residual (str): what stands in for dropped value rows. "mean": the dropped mass times the
            mean value row; "renormalize": the loaded rows take over the dropped mass (zeros for a
            head without mass on any of them); "none": nothing. By default the mean where `v_sum`
            is given, else renormalize.
        softcap (float): scores become softcap * tanh(score / softcap); 0 leaves them.
        sinks (Tensor[HQ], float32): logits that join the softmax denominator only.
        block_table (Tensor[B, max_blocks], int32): where block i of a sequence lies in k and v;
            ids outside [0, num_blocks) mark keys as not attended. N = max_blocks * block_size.
        return_stats (bool): return what was measured, too.

    Returns:
        Tensor[B, HQ, D] in the dtype of q, contiguous; with `return_stats` a pair of it and a
        DecodeStats. A row without attended keys is 0. A score or sink that is NaN or +inf makes
        its head NaN; NaN in a value row that is not loaded has no effect.

    Raises:
        ValueError: an argument has the wrong shape, stride or value, or the mean residual is asked
            for without `v_sum`.
        TypeError: an argument has the wrong dtype or type.
        RuntimeError: an input requires a gradient while gradients are enabled.

    Source: arXiv 2506.05300 (threshold); the union over the group and the mean residual are this
        project's.

    Example:
        >>> q, k = torch.randn(1, 8, 64), torch.randn(1, 2, 1000, 64)
        >>> v = torch.randn(1, 2, 1000, 64)
        >>> sift_attention.decode(q, k, v, PowerLaw.uniform(2.0), v_sum=v.sum(2)).shape
        torch.Size([1, 8, 64])
    """
    batch, num_q_heads, head_dim = _shape_of_q("decode", q, 3, "[B, HQ, D]")
    if law is None:
        law = _EXACT
    elif not isinstance(law, PowerLaw):
        raise TypeError(f"decode: law must be a PowerLaw or None, got {type(law).__name__}")
    if residual is None:
        residual = "renormalize" if v_sum is None else "mean"
    elif residual not in RESIDUALS:
        raise ValueError(
            f'decode: residual must be "mean", "renormalize" or "none", got {residual!r}'
        )
    log_alpha, beta = per_head(law, (batch, num_q_heads), q)
    out, *stats = call(
        DECODE,
        "decode",
        q,
        k,
        v,
        log_alpha,
        beta,
        _default_scale(head_dim) if scale is None else scale,
        seq_lens,
        key_mask,
        None if v_sum is None else v_sum.contiguous(),
        RESIDUALS[residual],
        softcap,
        None if sinks is None else sinks.contiguous(),
        block_table,
    )
    if ARE_CHECKED and not is_watched():
        check_values("decode", k, seq_lens, block_table, log_alpha, beta)
    return (out, DecodeStats(*stats)) if return_stats else out


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
    """The quantile of each query row's exact attention probabilities.

    The row's S probabilities in ascending order, at index floor(quantile * (S - 1)). What a
    threshold is fitted to: keeping the keys above it keeps a share of 1 - quantile.

    Args:
        q (Tensor[B, HQ, R, D], dtype and D as in `decode`): R query rows per sequence. Any strides
            with a last stride of 1.
        k (Tensor[B, HK, N, D], dtype of q): keys, paged or not, as in `decode`.
        lengths (Tensor[B, R], int32): row r sees the first lengths[b, r] attended keys. 0 or less
            means no sample; more keys than there are means all. Not checked.
        quantile (float): in [0, 1].
        scale (float): of the scores, 1 / sqrt(D) by default.
        key_mask (Tensor[B, N], bool): False takes a key out of the attended ones. Last stride 1.
        softcap (float): as in `decode`.
        sinks (Tensor[HQ], float32): as in `decode`.
        block_table (Tensor[B, max_blocks], int32): as in `decode`.

    Returns:
        Tensor[B, HQ, R], float32: NaN where a row sees no key, or a score or sink is NaN or +inf.

    Raises:
        ValueError: an argument has the wrong shape, stride or value.
        TypeError: an argument has the wrong dtype or type.
        RuntimeError: an input requires a gradient while gradients are enabled.

    Source: arXiv 2506.05300, section 3.

    Example:
        >>> q, k = torch.randn(1, 8, 32, 64), torch.randn(1, 2, 1000, 64)
        >>> lengths = torch.linspace(100, 1000, 32).int()[None]
        >>> sift_attention.score_quantile(q, k, lengths, 0.95).shape
        torch.Size([1, 8, 32])
    """
    head_dim = _shape_of_q("score_quantile", q, 4, "[B, HQ, R, D]")[3]
    result: Tensor = call(
        SCORE_QUANTILE,
        "score_quantile",
        q,
        k,
        lengths.contiguous(),
        quantile,
        _default_scale(head_dim) if scale is None else scale,
        key_mask,
        softcap,
        None if sinks is None else sinks.contiguous(),
        block_table,
    )
    if ARE_CHECKED and not is_watched():
        check_values("score_quantile", k, block_table=block_table)
    return result


def fit_power_law(
    lengths: Tensor, quantiles: Tensor, beta: float | None = None
) -> tuple[PowerLaw, Tensor]:
    """Fits log(quantile) = log_alpha - beta * log(length) per sequence and head.

    Least squares in double. A head stays exact (log_alpha = -inf, beta = 0) where it has fewer than
    3 samples, where a sample is NaN or out of range, and, when the slope is fitted, where the
    longest length is less than 4 times the shortest or the threshold would rise with the length.

    Args:
        lengths (Tensor[B, R], int32 or float32): attended keys of each sample, shared by the heads;
            0 marks an absent sample.
        quantiles (Tensor[B, HQ, R], float32): probabilities, as `score_quantile` returns them.
            0 counts as the smallest normal float32.
        beta (float): the slope, finite and at least 0; None fits it.

    Returns:
        tuple[PowerLaw, Tensor[B, HQ]]: the law, float32, and a bool mask of the heads that have
        a fit.

    Raises:
        ValueError: an argument has the wrong shape or value.
        TypeError: an argument has the wrong dtype or type.
        RuntimeError: an input requires a gradient while gradients are enabled.

    Source: arXiv 2506.05300, section 3; the refusals are this project's.

    Example:
        >>> lengths = torch.tensor([[100, 200, 400, 800]], dtype=torch.int32)
        >>> law, ok = sift_attention.fit_power_law(lengths, 2.0 / lengths[:, None].float())
        >>> law.beta
        tensor([[1.]])
    """
    log_alpha, fitted_beta, ok = call(
        FIT_POWER_LAW,
        "fit_power_law",
        lengths.contiguous(),
        quantiles.contiguous(),
        beta,
    )
    return PowerLaw(log_alpha, fitted_beta), ok


def call(op: Any, name: str, *args: Any) -> Any:
    """Calls an operator with all its arguments, in the quickest way that PyTorch allows.

    Its complaints about arguments become ValueError or TypeError.

    Args:
        op: one of DECODE, SCORE_QUANTILE and FIT_POWER_LAW.
        name: the operator's, with which its complaints begin.
        args: as the schema has them; residual is one of RESIDUALS.

    Returns:
        What the operator returns.
    """
    try:
        if is_watched() or torch.is_inference_mode_enabled() or wants_gradient(*args):
            return op(*args)
        # The registered autograd, which is Python, would only pass the call on, for as much time
        # as the rest of a short call takes.
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)
    except RuntimeError as error:
        sentence = str(error)
        if not sentence.startswith(f"{name}: ") or " must " not in sentence:
            raise
        raise (TypeError if " dtype " in sentence else ValueError)(sentence) from None


def _shape_of_q(op: str, q: Tensor, rank: int, letters: str) -> torch.Size:
    if not isinstance(q, Tensor):
        raise TypeError(f"{op}: q must be a Tensor, got {type(q).__name__}")
    shape = q.shape
    if len(shape) != rank:
        raise ValueError(f"{op}: q must have shape {letters}, got {tuple(shape)}")
    return shape


def _default_scale(head_dim: int) -> float:
    return 1.0 / math.sqrt(head_dim or 1)
