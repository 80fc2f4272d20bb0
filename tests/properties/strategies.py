"""The decode calls that the properties are tested on: which there are, and how they are drawn.

A case is the structure of a call, which hypothesis shrinks; its numbers come from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from hypothesis import strategies as st

from cases import RESIDUALS, dtypes, head_dims, on_cuda
from levels import supported_levels

# Around the widths of vectors, of the kernels' blocks and tiles of keys, and of chunks of 1,024.
EDGES = (0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513)
EDGES += (1023, 1024, 1025, 2048, 2049)
LARGEST_CASE = 2**21  # products of q and k: what the reference takes a few milliseconds for
SEEDS = st.integers(0, 2**31 - 1)


@dataclass(frozen=True)
class View:
    """How a tensor lies in memory; its last stride is 1."""

    transposed: bool = False  # the outer dimensions in reverse order
    gap: int = 0  # elements between rows
    offset: int = 0  # elements before the first


@dataclass(frozen=True)
class DecodeCase:
    """The structure of one decode call. Each field but the lengths is one of `choices`."""

    level: str | None  # the CPU's instruction set; None: on CUDA
    dtype: torch.dtype
    head_dim: int
    num_kv_heads: int
    group_size: int
    lengths: tuple[int, ...]  # of the sequences, before masks
    spare: int  # slots behind the longest
    mask: str | None
    block_size: int | None  # of a paged cache
    unmapped: bool  # a page of a paged cache
    shared: str | None  # dimensions along which K and V are expanded
    q_view: View
    k_view: View
    v_view: View
    scores: str
    scale: float | None
    softcap: float
    sinks: float | None  # about their logits
    law: str
    residual: str

    @property
    def num_q_heads(self) -> int:
        return self.num_kv_heads * self.group_size

    @property
    def capacity(self) -> int:
        longest = max(self.lengths) + self.spare
        block_size = self.block_size or 1
        return math.ceil(longest / block_size) * block_size


def choices() -> dict[str, tuple[Any, ...]]:
    """What each field of a case may be on the present device; the simplest first."""
    return {
        "level": (None,) if on_cuda() else supported_levels(),
        "dtype": tuple(dtypes()),
        "head_dim": tuple(head_dims()),
        "num_kv_heads": (1, 2, 3),
        "group_size": (1, 2, 3, 4, 5, 8, 17),
        "spare": (0, 1, 30),
        "mask": (None, "left padding", "holes"),
        "block_size": (None, 1, 5, 16, 64),
        "unmapped": (False, True),
        "shared": (None, "sequences", "heads", "both"),
        "scores": ("normal", "flat", "ties", "spiky", "deeply negative", "minus infinity"),
        "scale": (None, 0.01, 0.5),
        "softcap": (0.0, 0.5, 30.0),
        "sinks": (None, 0.0, 8.0, -math.inf),
        "law": ("exact", *SIFTING_LAWS),
        "residual": RESIDUALS,
    }


SIFTING_LAWS = (
    "zero",  # alpha 0 in tensors
    "nan",
    "tiny",
    "c = 0.25",
    "c = 1.5",
    "c = 4",
    "per head",
    "mixed",  # exact, far too high and in between among the heads
    "at a key",  # the threshold is the probability of a key
    "one",
    "infinite",
)


def decode_cases(
    fixed: dict[str, Any], more: dict[str, Sequence[Any]]
) -> st.SearchStrategy[tuple[DecodeCase, dict[str, Any]]]:
    """Cases, and further arguments of a property.

    All are drawn by one random.Random of hypothesis: it shrinks like other strategies, but has no
    parts that hypothesis copies from field to field, by which whole classes would be missed.

    Args:
        fixed: fields of the case that have a given value, or one of a tuple of values.
        more: what each further argument may be, the simplest first.
    """

    def draw(random: Random) -> tuple[DecodeCase, dict[str, Any]]:
        others = {name: random.choice(values) for name, values in more.items()}
        fields: dict[str, Any] = {}
        for name, values in {**choices(), **as_choices(fixed)}.items():
            fields[name] = random.choice(values)
        for name in ("q_view", "k_view", "v_view"):
            fields[name] = View(
                random.choice((False, True)), random.choice((0, 1, 8)), random.choice((0, 1, 8))
            )
        return DecodeCase(lengths=draw_lengths(random, fields), **fields), others

    return st.randoms().map(draw)


def draw_lengths(random: Random, fields: dict[str, Any]) -> tuple[int, ...]:
    batch = random.choice((1, 2, 3))
    num_products = batch * fields["num_kv_heads"] * fields["group_size"] * fields["head_dim"]
    longest = max(LARGEST_CASE // num_products, 65)
    edges = [edge for edge in EDGES if edge <= longest]

    def draw_length() -> int:
        kind = random.choice(("few", "any", "edge", "long"))
        if kind in ("few", "any"):
            return random.randint(0, 3 if kind == "few" else min(longest, 300))
        return random.choice(edges if kind == "edge" else edges[-2:])

    if random.choice((True, False)):
        return (draw_length(),) * batch
    return tuple(draw_length() for _ in range(batch))


def as_choices(fixed: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {name: value if isinstance(value, tuple) else (value,) for name, value in fixed.items()}
