"""Our operator, measured beside its peers and in the same way."""

from __future__ import annotations

from importlib.metadata import version

import torch

from formulations import Call, sift_call
from workload import LAW, Layer, Problem

VERSION = f"sift-attention {version('sift-attention')}, torch {torch.__version__}"
SETTINGS = "exact, and with the law uniform(2.0) and the mean residual"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
EXACT, SIFTED = "sift, exact", "sift, 10% loaded"


def make_calls(
    problem: Problem, layers: list[Layer], sharpness: float, threads: int
) -> dict[str, Call]:
    torch.set_num_threads(threads)
    return {
        EXACT: sift_call(problem, sharpness, None),
        SIFTED: sift_call(problem, sharpness, LAW),
    }
