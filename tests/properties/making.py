"""The tensors of a drawn case. Every slot that is not attended holds NaN, in K and in V."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from strategies import DecodeCase, View
from torch import Tensor

import sift_attention as sift
from cases import Call, paged_copy
from levels import VARIABLE
from oracle import KeySets


def make(case: DecodeCase, seed: int) -> Call:
    """The call of a case; its instruction set is the process's from here on."""
    if case.level is not None:
        os.environ[VARIABLE] = case.level
    draw = Draw(seed)
    batch, num_kv_heads, capacity = len(case.lengths), case.num_kv_heads, case.capacity
    q = draw.normal(batch, case.num_q_heads, case.head_dim)
    rows = (
        1 if case.shared in ("sequences", "both") else batch,
        1 if case.shared in ("heads", "both") else num_kv_heads,
        capacity,
        case.head_dim,
    )
    k, v = draw.normal(*rows), draw.normal(*rows) + 0.5
    q, k = (x.to(case.dtype) for x in shape_scores(case.scores, q, k, draw))
    v = v.to(case.dtype)

    options, attended = choose_keys(case, draw)
    if case.sinks is not None:
        options["sinks"] = case.sinks + draw.normal(case.num_q_heads)
    seen = attended.any(0, keepdim=True) if rows[0] == 1 else attended
    k, v = (x.masked_fill(~seen[:, None, :, None], math.nan) for x in (k, v))
    full = (batch, num_kv_heads, capacity, case.head_dim)
    law = make_law(case, q, k.expand(full), attended, options, draw)
    if case.residual == "mean":
        clean = v.double().nan_to_num(0.0) * attended[:, None, :, None]
        options["v_sum"] = clean.sum(2).float().expand(batch, num_kv_heads, -1).contiguous()

    if case.block_size is not None:
        k, v, table = paged_copy(k, v, seen, case.block_size, draw.generator)
        options["block_table"] = draw.worse_ids(table, len(k)).expand(batch, -1)
        full = (*k.shape[:2], num_kv_heads, case.head_dim)
    k, v = lay_out(k, case.k_view).expand(full), lay_out(v, case.v_view).expand(full)
    return Call(lay_out(q, case.q_view), k, v, law, options)


class Draw:
    """Random tensors on the default device, the same on every device."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        numbers = torch.randn(*shape, generator=self.generator, device="cpu")
        return numbers.to(torch.get_default_device())

    def below(self, end: int, *shape: int) -> Tensor:
        """Integers in [0, end)."""
        numbers = torch.randint(end, shape, generator=self.generator, device="cpu")
        return numbers.to(torch.get_default_device())

    def order(self, count: int) -> Tensor:
        numbers = torch.randperm(count, generator=self.generator, device="cpu")
        return numbers.to(torch.get_default_device())

    def worse_ids(self, table: Tensor, num_blocks: int) -> Tensor:
        """A block table whose ids of unmapped pages are as far off as they can be, in part."""
        worse = self.below(2, *table.shape) == 0
        table = torch.where(worse & (table < 0), -(2**31), table)
        return torch.where(worse & (table >= num_blocks), 2**31 - 1, table).int()


def shape_scores(kind: str, q: Tensor, k: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    if kind == "flat":
        q = torch.zeros_like(q)
    elif kind == "ties":
        q, k = torch.zeros_like(q), torch.zeros_like(k)
        q[..., :4] = draw.below(3, *q.shape[:-1], 4) - 1.0
        k[..., :4] = draw.below(3, *k.shape[:-1], 4) - 1.0
    elif kind == "spiky":
        q = 6.0 * q
    elif kind == "deeply negative":
        q[..., 0], k[..., 0] = 1.0, -30_000.0
    elif kind == "minus infinity":
        q[..., 0] = 1.0
        k[..., 0] = torch.where(draw.below(2, *k.shape[:-1]) == 0, -math.inf, k[..., 0])
        if draw.below(3, 1) == 0:
            k[-1, -1, :, 0] = -math.inf
    return q, k


def choose_keys(case: DecodeCase, draw: Draw) -> tuple[dict[str, Any], Tensor]:
    """The options that say which keys are attended, and those keys (Tensor[B, N], bool)."""
    batch, capacity = len(case.lengths), case.capacity
    options: dict[str, Any] = {"scale": case.scale, "softcap": case.softcap}
    options["residual"] = case.residual
    lengths = torch.tensor(case.lengths, dtype=torch.int32)[:, None]
    positions = torch.arange(capacity).expand(batch, -1)
    attended = positions < lengths
    if not attended.all():
        options["seq_lens"] = lengths[:, 0].contiguous()
    if case.mask is not None:
        wide = torch.ones(batch, capacity + 3, dtype=torch.bool)
        mask = wide[:, 1 : 1 + capacity]  # not contiguous
        if case.mask == "holes":
            mask.copy_(draw.below(3, batch, capacity) > 0)
        else:
            num_padded = [int(draw.below(length + 1, 1)) for length in case.lengths]
            mask.copy_(positions >= torch.tensor(num_padded)[:, None])
        options["key_mask"] = mask
        attended &= mask
    if case.block_size is not None and case.unmapped and capacity > 0:
        page = draw.below(capacity // case.block_size, 1)
        attended &= positions // case.block_size != page
    return options, attended


def make_law(
    case: DecodeCase, q: Tensor, k: Tensor, attended: Tensor, options: dict[str, Any], draw: Draw
) -> sift.PowerLaw | None:
    heads = q.shape[:2]
    beta = 1.0 + 0.1 * draw.normal(*heads)
    if case.law == "exact":
        return None
    if case.law in ("zero", "nan"):
        return sift.PowerLaw(torch.full(heads, -math.inf if case.law == "zero" else math.nan), beta)
    if case.law.startswith("c = "):
        return sift.PowerLaw.uniform(float(case.law[4:]))
    if case.law in ("tiny", "one", "infinite"):
        return sift.PowerLaw({"tiny": -60.0, "one": 0.0, "infinite": 1e38}[case.law], 0.0)
    if case.law == "mixed":
        extremes = torch.tensor([-math.inf, -60.0, 0.0, 0.5, 1.0, 3.0, 200.0, math.nan])
        return sift.PowerLaw(extremes[draw.below(len(extremes), *heads)], 1.0)
    if case.law == "per head":
        return sift.PowerLaw(draw.normal(*heads), beta)
    return law_at_a_key(q, k, attended, options, draw)


def law_at_a_key(
    q: Tensor, k: Tensor, attended: Tensor, options: dict[str, Any], draw: Draw
) -> sift.PowerLaw:
    """Exact for heads whose key has no probability."""
    log_p, _, _ = sift.reference.log_probabilities(
        q[:, :, None],
        k,
        attended[:, None],
        options["scale"],
        options["softcap"],
        options.get("sinks"),
    )
    if log_p.shape[-1] == 0:
        return sift.PowerLaw(torch.zeros(q.shape[:2]), 0.0)
    key = draw.below(log_p.shape[-1], *q.shape[:2], 1, 1)
    return sift.PowerLaw(log_p.gather(3, key)[..., 0, 0].float(), 0.0)


def lay_out(tensor: Tensor, view: View) -> Tensor:
    """The same numbers in a storage of their own, with NaN between them."""
    *outer, last = tensor.shape
    order = range(len(outer))[:: -1 if view.transposed else 1]
    shape = [*(outer[i] for i in order), last + view.gap]
    storage = tensor.new_full((view.offset + math.prod(shape),), math.nan)
    rows = storage[view.offset :].view(shape)[..., :last].permute(*order, len(outer))
    return rows.copy_(tensor)


def plain(call: Call) -> Call:
    """The same call with packed K and V, whose attended keys a mask says alone."""
    table = call.options.get("block_table")
    k, v = (
        sift.reference.gather_rows(x, table).clone(memory_format=torch.contiguous_format)
        for x in (call.k, call.v)
    )
    attended = call.attended()
    k, v = (x.masked_fill_(~attended[:, None, :, None], math.nan) for x in (k, v))
    options = {**call.options, "key_mask": attended}
    options.pop("seq_lens", None)
    options.pop("block_table", None)
    return Call(call.q.contiguous(), k, v, call.law, options)


def kept_rows(call: Call) -> Tensor:
    """Which value rows a call with plain K loads: a NaN in any of them comes out.

    Returns:
        Tensor[B, HK, N]: bool.
    """
    batch, num_kv_heads, capacity, head_dim = call.k.shape
    kept = [torch.zeros(batch, num_kv_heads, 0, dtype=torch.bool)]
    for start in range(0, capacity, head_dim):
        rows = torch.arange(start, min(start + head_dim, capacity))
        v = torch.zeros_like(call.k)
        v[:, :, rows, rows - start] = math.nan
        out, _ = Call(call.q, call.k, v, call.law, {**call.options, "residual": "none"}).run()
        is_loaded = out.isnan().unflatten(1, (num_kv_heads, -1)).any(2)
        kept.append(is_loaded[..., : len(rows)])
    return torch.cat(kept, dim=2)


def key_sets(call: Call) -> KeySets:
    """Of the call in float64."""
    return KeySets(Call(call.q.double(), call.k.double(), call.v.double(), call.law, call.options))


def all_bytes(tensor: Tensor) -> Tensor:
    """Of its storage, with what lies between its rows."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
