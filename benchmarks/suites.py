"""Which decode steps are measured: quickly, and in full."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workload import (
    GEMMA3_4B,
    LLAMA_1B,
    LLAMA_8B,
    PHI3_MINI,
    QWEN2_7B,
    QWEN3_14B,
    QWEN3_30B,
    Case,
    Shape,
)

OTHER_SHAPES = (LLAMA_1B, QWEN3_14B, QWEN2_7B, GEMMA3_4B, PHI3_MINI)


@dataclass(frozen=True)
class Suite:
    """Cases, each measured with one thread and with all; on a GPU by streams and by graphs.

    The first one's shape is the primary.
    """

    cases: tuple[Case, ...]
    longest_dense: int  # PyTorch's formulations are timed up to this many keys
    flex_shapes: tuple[Shape, ...]  # flex_attention only here: it is slow, and compiles each anew
    budget_s: float  # per formulation, case and number of threads
    longest_flex: int = 32768

    def has_flex(self, case: Case) -> bool:
        plain = case.batch == 1 and case.dtype == torch.bfloat16
        return plain and case.shape in self.flex_shapes and case.num_keys <= self.longest_flex


QUICK = Suite(
    cases=(
        *(Case(LLAMA_8B, n) for n in (16, 64, 256, 1024, 4096, 32768, 131072)),
        *(Case(shape, n) for shape in OTHER_SHAPES for n in (16, 4096, 32768)),
        *(Case(LLAMA_8B, n, batch=b) for n, b in ((16, 8), (4096, 8), (256, 32))),
        *(Case(LLAMA_8B, 4096, dtype=d) for d in (torch.float16, torch.float32)),
    ),
    longest_dense=32768,
    flex_shapes=(LLAMA_8B,),
    budget_s=0.2,
)

FULL = Suite(
    cases=(
        *(
            Case(shape, n)
            for shape in (LLAMA_8B, LLAMA_1B)
            for n in (16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072)
        ),
        *(Case(shape, n) for shape in OTHER_SHAPES[1:] for n in (16, 256, 4096, 32768)),
        *(Case(shape, n, batch=8) for shape in (LLAMA_8B, LLAMA_1B) for n in (16, 256, 4096)),
        Case(LLAMA_8B, 16384, batch=8),
        *(Case(LLAMA_8B, n, batch=32) for n in (16, 256, 1024)),
        *(
            Case(LLAMA_8B, n, dtype=d)
            for d in (torch.float16, torch.float32)
            for n in (16, 256, 4096, 32768)
        ),
    ),
    longest_dense=131072,
    flex_shapes=(LLAMA_8B, LLAMA_1B),
    budget_s=0.3,
)

GPU_LENGTHS = (32768, 131072, 4096, 65536, 16384, 8192)
# What matters most comes first: a run whose time is up leaves out the rest.
GPU = Suite(
    cases=(
        *(Case(LLAMA_8B, n, batch=b) for n in GPU_LENGTHS[:3] for b in (1, 8, 64)),
        *(
            Case(shape, 32768, batch=b)
            for shape in (LLAMA_1B, QWEN3_14B, QWEN3_30B, QWEN2_7B, GEMMA3_4B, PHI3_MINI)
            for b in (1, 64)
        ),
        *(Case(LLAMA_8B, n, batch=b) for n in GPU_LENGTHS[3:] for b in (1, 8, 64)),
        *(Case(LLAMA_1B, n, batch=b) for n in (4096, 131072, 8192, 65536) for b in (1, 64)),
        *(
            Case(shape, n, batch=b)
            for shape in (QWEN3_30B, GEMMA3_4B)
            for n in (4096, 131072)
            for b in (1, 64)
        ),
        *(Case(LLAMA_8B, 32768, batch=b, dtype=torch.float16) for b in (1, 64)),
        *(Case(LLAMA_8B, n) for n in (16, 256, 1024)),
    ),
    longest_dense=131072,
    flex_shapes=(LLAMA_8B,),
    budget_s=0.1,
    longest_flex=131072,
)
