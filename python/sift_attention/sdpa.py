"""`torch.nn.functional.scaled_dot_product_attention` that sifts decode steps."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from .state import SiftState
from .support import obstacle


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    state: SiftState | None = None,
) -> Tensor:
    """Scaled dot product attention with the signature and semantics of PyTorch's.

    | call                                                       | what runs                       |
    |------------------------------------------------------------|---------------------------------|
    | no state                                                   | `F.scaled_dot_product_attention`|
    | a state, several query tokens                              | the same; the state observes    |
    | a state, one query token                                   | `state.decode`: sifted          |
    | a state, one query token, and one of: a mask that is       | `F.scaled_dot_product_attention`|
    | additive or differs between heads; is_causal with several  | the state's counters name the   |
    | keys (PyTorch's aligns to the upper left and attends the   | reason                          |
    | first key only); dropout; an input that requires grad under|                                 |
    | grad mode; a dtype, head size or device without a kernel   |                                 |

    The state belongs to one layer and one batch; see SiftState for what it expects.

    Args:
        query (Tensor[B, HQ, R, D]): queries.
        key (Tensor[B, HK, N, D]): keys.
        value (Tensor[B, HK, N, DV]): values.
        attn_mask (Tensor, broadcastable to [B, HQ, R, N]): bool, True where a query attends; or
            added to the scores.
        dropout_p: probability of dropping an attention weight.
        is_causal: query i attends keys 0..i; not together with attn_mask.
        scale: factor of the scores; None: 1/sqrt(D).
        enable_gqa: HQ may be a multiple of HK.
        state: of this layer; None: dense.

    Returns:
        Tensor[B, HQ, R, DV]: in the dtype of query.

    Raises:
        RuntimeError: as `F.scaled_dot_product_attention` does.

    Example:
        >>> state = SiftState(SiftConfig(c=2.0))
        >>> q, k, v = torch.randn(3, 1, 8, 1000, 64)
        >>> _ = scaled_dot_product_attention(q, k, v, is_causal=True, state=state)  # prompt
        >>> q, new = torch.randn(1, 8, 1, 64), torch.randn(2, 1, 8, 1, 64)
        >>> k, v = torch.cat([k, new[0]], 2), torch.cat([v, new[1]], 2)
        >>> scaled_dot_product_attention(q, k, v, state=state).shape
        torch.Size([1, 8, 1, 64])
    """
    dense = functools.partial(
        functional.scaled_dot_product_attention,
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )
    if state is None or not _is_plain(query, key, value, enable_gqa):
        return dense()
    num_rows, num_keys = query.shape[2], key.shape[2]
    is_known, mask = _boolean_mask(attn_mask, is_causal, num_rows, num_keys, key.device)
    reason = "dropout" if dropout_p > 0.0 else obstacle(query, key, value)
    if reason is None and not is_known:
        reason = "mask"
    if reason is None and num_rows == 1:
        return state.decode(query[:, :, 0], key, value, mask, scale=scale)[:, :, None]
    out = dense()  # first, since it may refuse, which leaves the state as it is
    if reason is None:
        state.observe(query, key, value, mask, scale=scale)
    else:
        state.skip(reason, query, value)
    return out


def _is_plain(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> bool:
    """Whether nothing but the heads of a group is broadcast."""
    if not query.dim() == key.dim() == value.dim() == 4 or key.shape[:3] != value.shape[:3]:
        return False
    same_heads = query.shape[1] == key.shape[1]
    grouped = enable_gqa and key.shape[1] > 0 and query.shape[1] % key.shape[1] == 0
    return query.shape[0] == key.shape[0] and (same_heads or grouped)


def _boolean_mask(
    attn_mask: Tensor | None, is_causal: bool, num_rows: int, num_keys: int, device: torch.device
) -> tuple[bool, Tensor | None]:
    """The mask as SiftState takes it, and whether there is such a mask."""
    if attn_mask is None:
        if is_causal:
            return num_rows > 1 or num_keys == 1, None
        if num_rows == 1:
            return True, None
        return True, torch.ones(1, 1, 1, num_keys, dtype=torch.bool, device=device).expand(
            1, 1, num_rows, -1
        )
    if attn_mask.dtype != torch.bool or not 2 <= attn_mask.dim() <= 4 or is_causal:
        return False, None
    mask = attn_mask[(None,) * (4 - attn_mask.dim())]
    return mask.shape[1] == 1, mask.expand(-1, -1, num_rows, num_keys)
