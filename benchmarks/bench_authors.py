"""Time the paper's authors' own CUDA kernel beside ours, from a checkout of their repository.

    git clone --branch thresh_attn https://github.com/axonn-ai/yalis CHECKOUT
    python benchmarks/bench_authors.py CHECKOUT    # compiles their kernel, about a minute

float16, 32,768 keys, a tenth of the V rows loaded, the same threshold for both. Their kernel knows
no groups of query heads: it gets K and V with the heads repeated beforehand, which is not timed.
It runs on the default stream only, so nothing here is in a CUDA graph. Writes
results/authors_cuda.json.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

import machine
from bench_decode import DENSE_SHARPNESS, measured_loaded, relative_error, traffic
from cells import EXACT, SIFTED
from formulations import Call, cuda_calls, sift_call
from reports import write_json
from timing import CudaClock, measure
from workload import LAW, LLAMA_8B, Case, Problem, make_problem

RESULT = machine.ROOT / "benchmarks" / "results" / "authors_cuda.json"
AUTHORS = "authors, threshold"
SOURCES = ("thresh_attn_c.cpp", "kernels/thresh_attn_cuda_tiled_fused_v2.cu")  # their default

Row = dict[str, Any]


def load_kernel(checkout: Path) -> Any:
    """Their extension, compiled from their sources by PyTorch's own builder."""
    sources = [checkout / "yalis" / "attention" / source for source in SOURCES]
    for source in sources:
        if not source.exists():
            raise SystemExit(f"bench_authors: {source} must exist, got none")
    return cpp_extension.load(
        "yalis_thresh_attn", [str(source) for source in sources], extra_cuda_cflags=["-O3"]
    )


def authors_call(problem: Problem, sharpness: float, kernel: Any) -> Call:
    """Rows below theta are not loaded; the true denominator stays, nothing replaces the rows."""
    case, layer = problem.case, problem.layer
    k, v = (rows.repeat_interleave(case.shape.group, 1) for rows in (layer.k, layer.v))
    q = problem.query(sharpness).unsqueeze(2)
    bias = torch.zeros(*q.shape[:3], case.num_keys, device=q.device)
    theta = torch.full(q.shape[:2], float(LAW.theta(case.num_keys)), device=q.device)
    scale = 1 / math.sqrt(case.shape.head_dim)
    return lambda: kernel.decode_attn_fwd_gmem(q, k, v, bias, theta, scale)


def bench_case(case: Case, kernel: Any) -> list[Row]:
    problem = make_problem(case, "cuda")
    sharpness = problem.sharpness_for(0.10)
    dense = cuda_calls(problem, DENSE_SHARPNESS, flex=False)
    calls = {name: call for name, call in dense.items() if "flash" in name}
    calls |= {
        EXACT: sift_call(problem, sharpness, None),
        SIFTED: sift_call(problem, sharpness, LAW),
        AUTHORS: authors_call(problem, sharpness, kernel),
    }
    exact = problem.exact_outputs([DENSE_SHARPNESS, sharpness])
    loaded = measured_loaded(problem, sharpness)
    rows = []
    for name, timing in measure(calls, clock=CudaClock(), min_sample_ms=0.0).items():
        reference = exact[DENSE_SHARPNESS if "flash" in name else sharpness]
        rows.append({
            "shape": case.shape.name,
            "dtype": case.dtype_name,
            "batch": case.batch,
            "keys": case.num_keys,
            "name": name,
            "median_ms": timing.median_ms,
            "spread": timing.spread,
            "error": relative_error(calls[name](), reference),
            **traffic(case, name, loaded if name in (SIFTED, AUTHORS) else 1.0),
        })  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="of their repository")
    parser.add_argument("--out", type=Path, default=RESULT, help="default: %(default)s")
    arguments = parser.parse_args()

    torch.set_grad_enabled(False)
    kernel = load_kernel(arguments.checkout)
    result: dict[str, Any] = {
        "benchmark": "authors_cuda",
        "machine": machine.describe("cuda"),
        "rows": [],
    }
    for batch in (1, 32):
        rows = bench_case(Case(LLAMA_8B, 32768, batch, torch.float16), kernel)
        result["rows"] += rows
        ours = next(row["median_ms"] for row in rows if row["name"] == SIFTED)
        for row in rows:
            print(f"batch {batch:3}  {row['name']:20}{row['median_ms']:10.4f} ms"
                  f"{row['median_ms'] / ours:9.2f}x ours, sifted"
                  f"{row['loaded_fraction']:8.1%} loaded, error {row['error']:.1e}")  # fmt: skip
    write_json(result, arguments.out)
    print("\nwrote", os.path.relpath(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
