"""The inputs that the operator tests share: shapes, layouts and numbers.

Tensors lie on the default device, which the fixture `device` sets. Every key that is not attended
holds NaN, in K and in V, page tails and unmapped pages included.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sift_attention as sift

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIMS = (32, 64, 80, 96, 128, 256)
LAYOUTS = ("contiguous", "strided", "paged")
RESIDUALS = ("mean", "renormalize", "none")


def on_cuda() -> bool:
    return torch.get_default_device().type == "cuda"


def best_dtype() -> torch.dtype:
    """The most precise dtype of the device's operators."""
    return torch.float16 if on_cuda() else torch.float32


def dtypes() -> list[torch.dtype]:
    """Those of the device's operators."""
    return [dtype for dtype in DTYPES if not (on_cuda() and is_refused_by_cuda(dtype))]


def head_dims() -> list[int]:
    """Those of the device's operators."""
    return [head_dim for head_dim in HEAD_DIMS if not (on_cuda() and is_refused_by_cuda(head_dim))]


def is_refused_by_cuda(value: Any) -> bool:
    """Whether a dtype, a head size or a case is for the CPU only."""
    if isinstance(value, Case):
        return value.dtype is torch.float32 or value.head_dim == 32
    return value is torch.float32 or (type(value) is int and value == 32)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """Of results that differ in the order of their sums, and in where they are rounded."""
    bound = max(1e-5, 4.0 * torch.finfo(dtype).eps)
    return {"atol": bound, "rtol": bound}


def assert_same_path(got: Tensor, expected: Tensor) -> None:
    """The same bits on the CPU. CUDA decodes calls that keep all by law in another way."""
    if on_cuda():
        torch.testing.assert_close(got, expected, **tolerance(got.dtype))
    else:
        assert torch.equal(got, expected)


def assert_same_bits(got: Any, expected: Any, rows: Any = slice(None)) -> None:
    """Compares two (out, stats), one with some batch rows of the other."""
    for a, b in zip((got[0], *got[1]), (expected[0], *expected[1]), strict=True):
        assert torch.equal(a.view(torch.uint8), b[rows].contiguous().view(torch.uint8))


@dataclass(frozen=True)
class Case:
    """One kind of decode call."""

    dtype: torch.dtype | None = None  # the device's best_dtype
    batch: int = 2
    num_q_heads: int = 8
    num_kv_heads: int = 2
    capacity: int = 130
    head_dim: int = 64
    layout: str = "contiguous"
    seq_lens: tuple[int, ...] | None = None
    masked: bool = False  # every third key by key_mask; in a paged cache one page is unmapped, too
    law: str = "uniform"  # or "exact", "per_head", "above" every p, "low"
    residual: str | None = "mean"
    softcap: float = 0.0
    sinks: bool = False
    sharpness: float = 1.0  # factor on the scores; 0: all equal
    shift: float = 0.0  # about what is added to every score
    block_size: int = 16

    def __str__(self) -> str:
        """The fields that are not default."""
        changed = [
            f"{field.name}={getattr(self, field.name)}".replace("torch.", "")
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return ",".join(changed) or "default"


@dataclass
class Call:
    """The arguments of one decode call."""

    q: Tensor
    k: Tensor
    v: Tensor
    law: sift.PowerLaw | None
    options: dict[str, Any]

    def run(self, decode: Any = sift.decode) -> tuple[Tensor, sift.DecodeStats]:
        return decode(self.q, self.k, self.v, self.law, **self.options, return_stats=True)

    def attended(self) -> Tensor:
        keys = {name: self.options.get(name) for name in ("seq_lens", "key_mask", "block_table")}
        return sift.reference.attended_keys(self.k, **keys, batch=self.q.shape[0])

    def with_options(self, **options: Any) -> Call:
        return dataclasses.replace(self, options={**self.options, **options})


def make_call(case: Case, seed: int = 0) -> Call:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        numbers = torch.randn(*shape, generator=generator, device="cpu")
        return numbers.to(torch.get_default_device())

    batch, num_q_heads, num_kv_heads = case.batch, case.num_q_heads, case.num_kv_heads
    capacity, head_dim = case.capacity, case.head_dim
    if case.layout == "paged":
        capacity = math.ceil(capacity / case.block_size) * case.block_size
    q = case.sharpness * randn(batch, num_q_heads, head_dim)
    k = randn(batch, num_kv_heads, capacity, head_dim)
    v = randn(batch, num_kv_heads, capacity, head_dim) + 0.5
    if case.shift != 0.0:
        q[..., 0], k[..., 0] = 1.0, case.shift * math.sqrt(head_dim)
    dtype = case.dtype or best_dtype()
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)

    law = make_law(case, randn)
    options: dict[str, Any] = {"residual": case.residual, "softcap": case.softcap}
    if case.seq_lens is not None:
        options["seq_lens"] = torch.tensor(case.seq_lens, dtype=torch.int32)
    if case.masked:
        options["key_mask"] = (torch.arange(capacity) % 3 != 1).expand(batch, capacity)
    if case.sinks:
        options["sinks"] = randn(num_q_heads) + 2.0
    attended = sift.reference.attended_keys(
        k, options.get("seq_lens"), options.get("key_mask"), batch=batch
    )
    if case.layout == "paged" and case.masked and capacity >= 2 * case.block_size:
        attended[:, case.block_size : 2 * case.block_size] = False
    k = k.masked_fill(~attended[:, None, :, None], math.nan)
    v = v.masked_fill(~attended[:, None, :, None], math.nan)
    if case.residual == "mean":
        options["v_sum"] = v.double().nan_to_num(0.0).sum(dim=2).float()

    if case.layout == "strided":
        q, k, v = (strided_copy(tensor) for tensor in (q, k, v))
    elif case.layout == "paged":
        k, v, options["block_table"] = paged_copy(k, v, attended, case.block_size, generator)
    return Call(q, k, v, law, options)


def make_law(case: Case, randn: Any) -> sift.PowerLaw | None:
    if case.law == "exact":
        return None
    if case.law == "uniform":
        return sift.PowerLaw.uniform(1.5)
    if case.law in ("above", "low"):
        return sift.PowerLaw(0.0 if case.law == "above" else -60.0, 0.0)
    return sift.PowerLaw(
        randn(case.batch, case.num_q_heads), 1.0 + 0.1 * randn(case.batch, case.num_q_heads)
    )


def strided_copy(tensor: Tensor) -> Tensor:
    """The same numbers with a transposed outer layout, gaps of NaN and an odd offset."""
    *outer, second, third, last = tensor.shape
    storage = tensor.new_full((*outer, third, second, last + 8), math.nan)
    view = storage.transpose(-2, -3)[..., 3 : 3 + last]
    return view.copy_(tensor)


def paged_copy(
    k: Tensor, v: Tensor, attended: Tensor, block_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """K and V in shuffled pages of [num_blocks, block_size, HK, D], and the block table.

    Pages without an attended key are not mapped: their ids are -1 or past the end.
    """
    batch, num_kv_heads, capacity, head_dim = k.shape
    max_blocks = capacity // block_size
    num_blocks = batch * max_blocks + 3
    table = torch.randperm(num_blocks, generator=generator, device="cpu")[: batch * max_blocks]
    table = table.reshape(batch, max_blocks).int().to(k.device)
    pages = []
    for rows in (k, v):
        cache = rows.new_full((num_blocks, block_size, num_kv_heads, head_dim), math.nan)
        blocks = rows.transpose(1, 2).reshape(batch, max_blocks, block_size, num_kv_heads, head_dim)
        cache[table.long()] = blocks
        pages.append(cache)
    unmapped = ~attended.reshape(batch, max_blocks, block_size).any(dim=-1)
    is_odd = (torch.arange(max_blocks) + torch.arange(batch)[:, None]) % 2 == 1
    bad_ids = torch.where(is_odd, -1, num_blocks).int()
    return pages[0], pages[1], torch.where(unmapped, bad_ids, table)


CASES = [
    *(
        Case(
            dtype=dtype,
            head_dim=head_dim,
            layout=LAYOUTS[(i + j) % 3],
            residual=RESIDUALS[(i + 2 * j) % 3],
            seq_lens=(130, 77),
        )
        for i, dtype in enumerate(DTYPES)
        for j, head_dim in enumerate(HEAD_DIMS)
    ),
    *(
        Case(num_q_heads=num_q_heads, num_kv_heads=num_kv_heads, law="per_head")
        for num_q_heads, num_kv_heads in [(1, 1), (4, 4), (8, 1), (6, 2), (12, 3), (16, 1), (71, 1)]
    ),
    *(
        Case(capacity=capacity, batch=1, num_q_heads=4, dtype=dtype)
        for capacity in (1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 513, 4097)
        for dtype in (None, torch.bfloat16)
    ),
    *(
        Case(batch=5, seq_lens=(0, 1, 64, 65, 130), layout=layout, masked=masked, dtype=dtype)
        for layout in LAYOUTS
        for masked in (False, True)
        for dtype in (None, torch.float16)
    ),
    *(
        Case(softcap=softcap, sinks=sinks, residual=residual, law=law, sharpness=2.0)
        for softcap, sinks in [(0.0, True), (3.0, False), (3.0, True)]
        for residual in RESIDUALS
        for law in ("uniform", "exact")
    ),
    *(Case(law=law, residual=r) for law in ("exact", "per_head", "above") for r in RESIDUALS),
    *(Case(sharpness=sharpness, residual=r) for sharpness in (0.0, 8.0) for r in RESIDUALS),
    *(Case(shift=shift, dtype=dtype) for shift in (-1e3, 90.0) for dtype in DTYPES[:2]),
    *(Case(layout="paged", block_size=block_size, masked=True) for block_size in (1, 7, 256)),
    *(Case(law="above", capacity=3000, sharpness=sharpness) for sharpness in (0.0, 1.0)),
    *(Case(law="exact", sharpness=300.0, softcap=softcap) for softcap in (0.0, 200.0)),  # p of 0
    *(Case(law="low", sharpness=30.0, dtype=dtype, residual="none") for dtype in DTYPES),
    Case(batch=33, capacity=2500, masked=True, num_q_heads=2, num_kv_heads=1),
    *(Case(batch=0), Case(capacity=0), Case(capacity=0, sinks=True)),
]


def make_score_quantile_args(
    layout: str,
    dtype: torch.dtype | None = None,
    masked: bool = True,
    sinks: bool = False,
    head_dim: int = 64,
) -> dict[str, Any]:
    """The arguments of a `score_quantile` call with 6 rows, one of them without a sample."""
    call = make_call(
        Case(
            dtype=dtype,
            head_dim=head_dim,
            layout=layout,
            masked=masked,
            sinks=sinks,
            residual="none",
        )
    )
    q = torch.randn(2, 8, 6, call.q.shape[-1]).to(call.q.dtype)
    lengths = torch.tensor([[1, 2, 17, 40, 0, 80], [3, 9, 27, 65, 79, 10**6]], dtype=torch.int32)
    arguments = {"q": strided_copy(q) if layout == "strided" else q, "k": call.k}
    arguments |= {"lengths": lengths, "quantile": 0.9}
    for name in ("key_mask", "sinks", "block_table"):
        if name in call.options:
            arguments[name] = call.options[name]
    return arguments
