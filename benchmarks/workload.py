"""Synthetic decode steps of real models' layers, with a chosen fraction of loaded value rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import sift_attention as sift
from machine import last_level_cache_bytes

# Rows are loaded that a head gives more than uniform attention. The default of twice that would
# never load a quarter of the rows for a group of one head, whatever the query.
LAW = sift.PowerLaw.uniform(1.0)
DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Shape:
    """The attention of one layer: query heads, key/value heads, head dimension."""

    name: str
    num_q_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        return self.num_q_heads // self.num_kv_heads


LLAMA_8B = Shape("Llama-3.1-8B", 32, 8, 128)
LLAMA_1B = Shape("Llama-3.2-1B", 32, 8, 64)
QWEN3_14B = Shape("Qwen3-14B", 40, 8, 128)
QWEN2_7B = Shape("Qwen2.5-7B", 28, 4, 128)
GEMMA3_4B = Shape("Gemma-3-4B", 8, 4, 256)
PHI3_MINI = Shape("Phi-3-mini", 32, 32, 96)


@dataclass(frozen=True)
class Case:
    """One decode step: a layer's shape, the keys of each sequence, the sequences, the dtype."""

    shape: Shape
    num_keys: int
    batch: int = 1
    dtype: torch.dtype = torch.bfloat16

    @property
    def dtype_name(self) -> str:
        return DTYPE_NAMES[self.dtype]

    def __str__(self) -> str:
        return f"{self.shape.name}, {self.dtype_name}, batch {self.batch}, {self.num_keys:,} keys"


class Layer(NamedTuple):
    """K and V, [B, HK, N, D] each, and the bytes of both as one int32 tensor."""

    k: Tensor
    v: Tensor
    words: Tensor


@dataclass(frozen=True)
class Problem:
    """A case with its data.

    The layers hold the same K and V at different places, more bytes than the last-level cache can
    keep. Calls that are timed against each other take turns walking through them, so every call
    finds its K and V in memory, as in a model whose other layers ran in between.
    """

    case: Case
    direction: Tensor  # [B, HQ, D] float32; a query is this times its sharpness
    v_sum: Tensor  # [B, HK, D] float32
    layer: Layer
    layers: Iterator[Layer]  # endless, in the case's dtype
    wide_layers: Iterator[Layer]  # the same in float32; `layers` itself if they are

    def query(self, sharpness: float) -> Tensor:
        """Queries whose scores have `sharpness` as standard deviation over the keys."""
        return (self.direction * sharpness).to(self.case.dtype)

    def exact_outputs(self, sharpnesses: list[float]) -> dict[float, Tensor]:
        """Dense attention in float64, [B, HQ, D], for the query of each sharpness."""
        k, v = self.layer.k.double(), self.layer.v.double()
        queries = torch.stack([self.query(sharpness) for sharpness in sharpnesses], dim=2)
        scores = queries.double().view(*k.shape[:2], -1, k.shape[3]) @ k.mT
        outputs = (scores / math.sqrt(k.shape[3])).softmax(-1) @ v
        unstacked = outputs.view_as(queries).unbind(2)
        return dict(zip(sharpnesses, unstacked, strict=True))

    def sharpness_for(self, fraction: float) -> float:
        """The sharpness at which the law loads about `fraction` of the V rows, by bisection.

        The loaded fraction falls with the sharpness, from a half or more.
        """
        shape = self.case.shape
        grouped = self.direction.unflatten(1, (shape.num_kv_heads, shape.group))
        scores = grouped @ self.layer.k.float().mT / math.sqrt(shape.head_dim)
        theta = LAW.theta(self.case.num_keys)
        low, high = 0.1, 50.0
        for _ in range(12):
            middle = (low + high) / 2
            loaded = ((scores * middle).softmax(-1) > theta).any(2).float().mean()
            # Invariant: at `low` more than `fraction` is loaded, at `high` at most that.
            low, high = (middle, high) if loaded > fraction else (low, middle)
        return high


def make_problem(case: Case) -> Problem:
    """Normal K and V: loaded rows lie scattered at random, the hardest pattern for the memory."""
    shape = case.shape
    generator = torch.Generator().manual_seed(case.num_keys)
    size = (2, case.batch, shape.num_kv_heads, case.num_keys, shape.head_dim)
    kv = torch.randn(size, generator=generator).to(case.dtype)
    direction = torch.randn(case.batch, shape.num_q_heads, shape.head_dim, generator=generator)
    direction *= math.sqrt(shape.head_dim) / direction.norm(dim=-1, keepdim=True)
    layers = _layers(kv)
    walk = itertools.cycle(layers)
    wide = walk if case.dtype == torch.float32 else itertools.cycle(_layers(kv.float()))
    return Problem(case, direction, kv[1].float().sum(2), layers[0], walk, wide)


def _layers(kv: Tensor) -> list[Layer]:
    """Copies of kv that together are four times the cache, so that almost none of it stays.

    Each has its own storage: torch.compile specialises on an offset of zero.
    """
    num_copies = math.ceil(4 * last_level_cache_bytes() / kv.nbytes)
    copies = [kv.clone() for _ in range(num_copies)]
    return [Layer(copy[0], copy[1], copy.view(torch.int32).flatten()) for copy in copies]
