"""Synthetic decode steps with a chosen fraction of loaded value rows, and ways to compute them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import sift_attention as sift
from machine import last_level_cache_bytes
from timing import rotate

# The default policy: rows are loaded that a head gives more than twice uniform attention.
LAW = sift.PowerLaw.uniform(2.0)


@dataclass(frozen=True)
class Shape:
    """One attention layer at batch 1: query heads, key/value heads, head dimension."""

    name: str
    num_q_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        return self.num_q_heads // self.num_kv_heads

    def row_bytes(self, itemsize: int = 2) -> int:
        """Bytes of one key's (or value's) rows over all key/value heads."""
        return self.num_kv_heads * self.head_dim * itemsize


SHAPES = (Shape("Llama-3-8B", 32, 8, 128), Shape("Llama-3.2-1B", 32, 8, 64))


@dataclass(frozen=True)
class Problem:
    """A decode step: copies of its K and V that together exceed the cache, as layers do."""

    shape: Shape
    num_keys: int
    direction: Tensor  # [1, HQ, D] float32; a query is this times its sharpness
    caches: list[tuple[Tensor, Tensor]]  # [1, HK, N, D] bfloat16
    v_sum: Tensor  # [1, HK, D] float32

    @property
    def num_copies(self) -> int:
        return len(self.caches)

    def query(self, sharpness: float) -> Tensor:
        """Queries whose scores have `sharpness` as standard deviation over the keys."""
        return (self.direction * sharpness).bfloat16()

    def sharpness_for(self, fraction: float) -> float:
        """The sharpness at which the law loads about `fraction` of the V rows, by bisection.

        The loaded fraction falls with the sharpness from 1.2 on, where it is about 0.4.
        """
        k = self.caches[0][0].float()
        grouped = self.direction.view(1, self.shape.num_kv_heads, self.shape.group, -1)
        scores = grouped @ k.mT / math.sqrt(self.shape.head_dim)
        theta = LAW.theta(self.num_keys)
        low, high = 1.2, 12.0
        for _ in range(10):
            middle = (low + high) / 2
            loaded = ((scores * middle).softmax(-1) > theta).any(2).float().mean()
            # Invariant: at `low` more than `fraction` is loaded, at `high` at most that.
            low, high = (middle, high) if loaded > fraction else (low, middle)
        return high


def make_problem(shape: Shape, num_keys: int) -> Problem:
    """Normal K and V: loaded rows lie scattered at random, the hardest pattern for the memory."""
    generator = torch.Generator().manual_seed(num_keys)
    size = (1, shape.num_kv_heads, num_keys, shape.head_dim)
    k = torch.randn(size, generator=generator).bfloat16()
    v = torch.randn(size, generator=generator).bfloat16()
    direction = torch.randn(1, shape.num_q_heads, shape.head_dim, generator=generator)
    direction *= math.sqrt(shape.head_dim) / direction.norm(dim=-1, keepdim=True)
    copies = max(2, math.ceil(2 * last_level_cache_bytes() / (k.nbytes + v.nbytes)))
    caches = [(k, v)] + [(k.clone(), v.clone()) for _ in range(copies - 1)]
    return Problem(shape, num_keys, direction, caches, v.float().sum(2))


def sift_call(
    problem: Problem, sharpness: float, law: sift.PowerLaw | None
) -> Callable[[], Tensor]:
    """Our operator; law None is its exact mode."""
    q = problem.query(sharpness)
    cache = rotate(problem.caches)
    v_sum = None if law is None else problem.v_sum

    def call() -> Tensor:
        k, v = cache()
        return sift.decode(q, k, v, law, v_sum=v_sum)

    return call


def baseline_calls(
    problem: Problem, sharpness: float, *, flex: bool = False
) -> dict[str, Callable[[], Tensor]]:
    """Dense attention by PyTorch, each returning [1, HQ, D] like our operator."""
    shape = problem.shape
    q = problem.query(sharpness)
    scale = 1 / math.sqrt(shape.head_dim)
    wide = [(k.float(), v.float()) for k, v in problem.caches[: -(-problem.num_copies // 2)]]

    def sdpa(q: Tensor, caches: list[tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
        cache = rotate(caches)
        q = q.unsqueeze(2)
        return lambda: scaled_dot_product_attention(q, *cache(), enable_gqa=True).squeeze(2)

    def grouped_matmul(q: Tensor, caches: list[tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
        cache = rotate(caches)
        grouped = q.view(1, shape.num_kv_heads, shape.group, shape.head_dim)

        def call() -> Tensor:
            k, v = cache()
            return (((grouped @ k.mT) * scale).softmax(-1) @ v).view(q.shape)

        return call

    def widened_matmul(q: Tensor, caches: list[tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
        """One head at a time, so that its float32 copy of K or V stays in the cache."""
        cache = rotate(caches)
        heads = q.float().view(shape.num_kv_heads, shape.group, shape.head_dim).unbind()

        def call() -> Tensor:
            k, v = cache()
            rows = zip(heads, k[0].unbind(), v[0].unbind(), strict=True)
            out = [((q @ k.float().mT) * scale).softmax(-1) @ v.float() for q, k, v in rows]
            return torch.cat(out).to(q.dtype).view(q.shape)

        return call

    calls = {
        "SDPA, bf16": sdpa(q, problem.caches),
        "SDPA, fp32": sdpa(q.float(), wide),
        "grouped matmul, bf16": grouped_matmul(q, problem.caches),
        "grouped matmul, fp32": grouped_matmul(q.float(), wide),
        "grouped matmul, bf16 widened": widened_matmul(q, problem.caches),
    }
    if flex:
        calls["flex_attention, bf16"] = flex_call(q, problem.caches)
        calls["flex_attention, fp32"] = flex_call(q.float(), wide)
    return calls


def flex_call(q: Tensor, caches: list[tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
    """`flex_attention`, compiled for these shapes."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    cache = rotate(caches)
    q = q.unsqueeze(2)
    return lambda: compiled(q, *cache(), enable_gqa=True).squeeze(2)
