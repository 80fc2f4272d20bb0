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
from machine import l2_bytes, last_level_cache_bytes

# Rows are loaded that a head gives more than uniform attention. The default of twice that would
# never load a quarter of the rows for a group of one head, whatever the query.
LAW = sift.PowerLaw.uniform(1.0)
MOST_GPU_LAYERS = 32
ENOUGH_KEYS = 1 << 18  # of all sequences, to find a sharpness with
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
QWEN3_30B = Shape("Qwen3-30B-A3B", 32, 4, 128)
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

    @property
    def kv_bytes(self) -> int:
        """Of K and V together."""
        num_rows = self.batch * self.shape.num_kv_heads * self.num_keys
        return 2 * num_rows * self.shape.head_dim * self.dtype.itemsize

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
    finds its K and V in memory, as in a model whose other layers ran in between. On a GPU, whose L2
    is emptied before each sample, the layers of a usual model are enough.
    """

    case: Case
    direction: Tensor  # [B, HQ, D] float32; a query is this times its sharpness
    v_sum: Tensor  # [B, HK, D] float32
    layer: Layer
    num_layers: int  # at different places
    layers: Iterator[Layer]  # endless, in the case's dtype
    wide_layers: Iterator[Layer]  # the same in float32; `layers` itself if they are, or on a GPU

    def query(self, sharpness: float) -> Tensor:
        """Queries whose scores have `sharpness` as standard deviation over the keys."""
        return (self.direction * sharpness).to(self.case.dtype)

    def exact_outputs(self, sharpnesses: list[float]) -> dict[float, Tensor]:
        """Dense attention in float64, [B, HQ, D], for the query of each sharpness."""
        queries = torch.stack([self.query(sharpness) for sharpness in sharpnesses], dim=2)
        outputs = []
        # Sequence by sequence: of a large batch, K and V in float64 would not fit a GPU.
        for q, k, v in zip(queries.double(), self.layer.k, self.layer.v, strict=True):
            scores = q.view(k.shape[0], -1, k.shape[2]) @ k.double().mT
            outputs.append((scores / math.sqrt(k.shape[2])).softmax(-1) @ v.double())
        unstacked = torch.stack(outputs).view_as(queries).unbind(2)
        return dict(zip(sharpnesses, unstacked, strict=True))

    def sharpness_for(self, fraction: float) -> float:
        """The sharpness at which the law loads about `fraction` of the V rows, by bisection.

        The loaded fraction falls with the sharpness, from a half or more. Some sequences stand for
        a large batch.
        """
        shape = self.case.shape
        some = slice(max(1, ENOUGH_KEYS // self.case.num_keys))
        grouped = self.direction[some].unflatten(1, (shape.num_kv_heads, shape.group))
        scores = grouped @ self.layer.k[some].float().mT / math.sqrt(shape.head_dim)
        theta = LAW.theta(self.case.num_keys)
        low, high = 0.1, 50.0
        for _ in range(12):
            middle = (low + high) / 2
            loaded = ((scores * middle).softmax(-1) > theta).any(2).float().mean()
            # Invariant: at `low` more than `fraction` is loaded, at `high` at most that.
            low, high = (middle, high) if loaded > fraction else (low, middle)
        return high


def make_problem(case: Case, device: str = "cpu") -> Problem:
    """Normal K and V: loaded rows lie scattered at random, the hardest pattern for the memory."""
    shape = case.shape
    generator = torch.Generator(device).manual_seed(case.num_keys)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    rows = (shape.num_kv_heads, case.num_keys, shape.head_dim)
    kv = torch.empty(2, case.batch, *rows, dtype=case.dtype, device=device)
    for part in kv.flatten(0, 1):  # in float32 the whole may not fit a GPU
        part.copy_(randn(*rows))
    direction = randn(case.batch, shape.num_q_heads, shape.head_dim)
    direction *= math.sqrt(shape.head_dim) / direction.norm(dim=-1, keepdim=True)
    layers = _layers(kv)
    walk = wide = itertools.cycle(layers)
    if device == "cpu" and case.dtype != torch.float32:
        wide = itertools.cycle(_layers(kv.float()))
    v_sum = kv[1].sum(2, dtype=torch.float32)
    return Problem(case, direction, v_sum, layers[0], len(layers), walk, wide)


def _layers(kv: Tensor) -> list[Layer]:
    """Copies of kv that together are four times the cache, so that almost none of it stays.

    Each has its own storage: torch.compile specialises on an offset of zero.
    """
    cache_bytes = l2_bytes() if kv.is_cuda else last_level_cache_bytes()
    num_layers = math.ceil(4 * cache_bytes / kv.nbytes)
    if kv.is_cuda:
        num_layers = min(num_layers, MOST_GPU_LAYERS)
    copies = [kv, *(kv.clone() for _ in range(num_layers - 1))]
    return [Layer(copy[0], copy[1], copy.view(torch.int32).flatten()) for copy in copies]
