"""Time the calibration of one layer on the CPU against the prefill of that layer.

    python benchmarks/bench_calibration.py            # prompts of 4k and 8k tokens
    python benchmarks/bench_calibration.py --full     # 1k to 32k tokens; takes minutes

The layer has Llama-3.2-1B's shape. Its prefill is transformers' own forward with SDPA, in bfloat16
or float32, whichever is faster here. Calibration is what `sift_attention.hf` adds to it with
`SiftConfig(threshold="quantile")`: `SiftState.observe` on the layer's queries, keys and values.
Writes results/calibration_cpu.json.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import machine
import sift_attention as sift
from decoder import HEAD_DIM, NUM_KV_HEADS, NUM_Q_HEADS, build_model
from reports import write_json
from timing import measure

RESULTS = Path(__file__).resolve().parent / "results"
LENGTHS = {"quick": (4096, 8192), "full": (1024, 2048, 4096, 8192, 16384, 32768)}
TRIAL_LENGTH = 512  # at which the faster dtype is found
VOCABULARY = 1024
THRESHOLDS = ("uniform", "quantile")

Row = dict[str, Any]


def prefill_call(dtype: torch.dtype, num_tokens: int) -> Callable[[], object]:
    """A forward of one layer over a prompt, without cache and without vocabulary."""
    model = build_model(num_layers=1, vocab_size=VOCABULARY).model.to(dtype)
    tokens = torch.randint(VOCABULARY, (1, num_tokens))
    return lambda: model(tokens, use_cache=False)


def observe_call(threshold: str, dtype: torch.dtype, num_tokens: int) -> Callable[[], object]:
    """A new state that takes note of a prompt's queries, keys and values."""
    q = torch.randn(1, NUM_Q_HEADS, num_tokens, HEAD_DIM).to(dtype)
    k, v = torch.randn(2, 1, NUM_KV_HEADS, num_tokens, HEAD_DIM).to(dtype)
    return lambda: sift.SiftState(sift.SiftConfig(threshold=threshold)).observe(q, k, v)


def seconds(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


def faster_dtype() -> torch.dtype:
    """Of the prefill, after a warm-up."""
    times_s = {}
    for dtype in (torch.bfloat16, torch.float32):
        call = prefill_call(dtype, TRIAL_LENGTH)
        call()
        times_s[dtype] = min(seconds(call) for _ in range(3))
    return min(times_s, key=times_s.__getitem__)


def bench_length(num_tokens: int, dtype: torch.dtype) -> Row:
    """The best of a few prefills, or one long one, and the median of what observing adds."""
    prefill = prefill_call(dtype, num_tokens)
    prefill_s = min(seconds(prefill) for _ in range(3 if num_tokens <= 4096 else 1))
    calls = {name: observe_call(name, dtype, num_tokens) for name in THRESHOLDS}
    timings = measure(calls, budget_s=2.0)
    calibration_ms = timings["quantile"].median_ms
    return {
        "tokens": num_tokens,
        "prefill_dtype": str(dtype).removeprefix("torch."),
        "prefill_ms": prefill_s * 1e3,
        "calibration_ms": calibration_ms,
        "calibration_spread": timings["quantile"].spread,
        "v_sum_ms": timings["uniform"].median_ms,  # of it: what the default threshold costs too
        "share": calibration_ms / (prefill_s * 1e3),
    }


def print_table(rows: list[Row]) -> None:
    print(f"{'tokens':>8}{'prefill, ms':>14}{'calibration, ms':>18}{'of it V sum':>13}{'share':>9}")
    for row in rows:
        print(f"{row['tokens']:8,}{row['prefill_ms']:14.1f}{row['calibration_ms']:18.2f}"
              f"{row['v_sum_ms']:13.2f}{row['share']:9.2%}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more lengths, up to 32k tokens")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / "calibration_cpu.json",
        help="the JSON to write; default: %(default)s",
    )
    arguments = parser.parse_args()

    torch.set_grad_enabled(False)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    description = machine.describe()
    dtype = faster_dtype()
    rows = []
    progress = tqdm(LENGTHS["full" if arguments.full else "quick"], unit="length")
    for num_tokens in progress:
        progress.set_description(f"one layer, {num_tokens:,} tokens")
        rows.append(bench_length(num_tokens, dtype))
    print_table(rows)
    result = {
        "benchmark": "calibration_cpu",
        "machine": description,
        "threads": arguments.threads,
        "layer": "Llama-3.2-1B",
        "rows": rows,
    }
    write_json(result, arguments.out)
    print("\nwrote", os.path.relpath(arguments.out))


if __name__ == "__main__":
    main()
