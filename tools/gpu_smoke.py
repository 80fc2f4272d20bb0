"""A dozen calls of the CUDA operators against the references in float64, a line for each.

    python tools/gpu_smoke.py            # half a minute
    python tools/gpu_smoke.py --small    # short caches, no CUDA graph: for a memory checker

The inputs are those of the tests: what is not attended holds NaN.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import sift_attention as sift
from cases import Call, Case, make_call, make_score_quantile_args

BF16, FP16 = torch.bfloat16, torch.float16
# Of the output, relative to the reference; rounding the inputs is not counted.
BOUNDS = {BF16: 1e-2, FP16: 2e-3}
LLAMA = Case(dtype=BF16, batch=1, num_q_heads=32, num_kv_heads=8, head_dim=128)
CASES = {
    "exact": replace(LLAMA, law="exact", capacity=1025),
    "sifted": replace(LLAMA, capacity=4097, sharpness=2.0),
    "float16, D = 64": replace(LLAMA, dtype=FP16, head_dim=64, capacity=1000, sharpness=2.0),
    "D = 80, strided": replace(LLAMA, head_dim=80, layout="strided", capacity=300),
    "D = 96, one head per group": replace(LLAMA, head_dim=96, num_q_heads=8, capacity=300),
    "D = 256, 8 heads per group": replace(LLAMA, head_dim=256, num_kv_heads=4, capacity=300),
    "16 heads per group": replace(LLAMA, num_kv_heads=2, capacity=700),
    "paged, masked": replace(LLAMA, batch=2, layout="paged", masked=True, capacity=500),
    "softcap, sinks, renormalize": replace(
        LLAMA, softcap=3.0, sinks=True, residual="renormalize", capacity=500
    ),
    "nothing passes, no residual": replace(LLAMA, law="above", residual="none", capacity=600),
    "ragged lengths": replace(LLAMA, batch=5, seq_lens=(0, 1, 64, 65, 130), law="per_head"),
}
LARGE_CASES = {
    "batch 64": replace(LLAMA, batch=64, capacity=2048, sharpness=2.0),
    "131,072 keys": replace(LLAMA, capacity=131072, sharpness=3.0),
    "131,072 keys, exact": replace(LLAMA, capacity=131072, law="exact"),
}


def moved(tensor: Tensor, device: str) -> Tensor:
    """A copy with the same strides and offset, gaps included."""
    base = tensor if tensor._base is None else tensor._base
    copy = base.to(device, copy=True)
    return copy.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def moved_call(call: Call, device: str) -> Call:
    """The same call with its tensors there."""
    options = {n: moved(v, device) if isinstance(v, Tensor) else v for n, v in call.options.items()}
    law = call.law
    if law is not None and isinstance(law.log_alpha, Tensor):
        law = sift.PowerLaw(law.log_alpha.to(device), law.beta.to(device))
    q, k, v = (moved(tensor, device) for tensor in (call.q, call.k, call.v))
    return Call(q, k, v, law, options)


def check_decode(device: str, case: Case) -> tuple[bool, str]:
    """Whether a call is right, and by how much."""
    call = make_call(case)
    out, stats = moved_call(call, device).run()
    double = Call(call.q.double(), call.k.double(), call.v.double(), call.law, call.options)
    want, want_stats = double.run(sift.reference.decode)
    out, lse, kept = out.cpu().double(), stats.lse.cpu().double(), stats.kept_mass.cpu().double()
    loaded, want_loaded = stats.num_loaded.cpu().long(), want_stats.num_loaded.long()
    error = float((out - want).norm() / want.norm())
    finite = want_stats.lse.isfinite()
    lse_error = float((lse - want_stats.lse)[finite].abs().max())
    kept_error = float((kept - want_stats.kept_mass).abs().max())
    # Keys so near the threshold that rounding decides may go either way.
    slack = 1 + want_loaded.max() // 200
    is_right = (
        error < BOUNDS[case.dtype]
        and torch.equal(lse.isfinite(), finite)
        and lse_error < 1e-3
        and kept_error < 1e-3
        and bool(((loaded - want_loaded).abs() <= slack).all())
    )
    return is_right, (
        f"error {error:.1e}, lse {lse_error:.1e}, kept mass {kept_error:.1e}, "
        f"rows {int(loaded.sum())} of {int(want_loaded.sum())} expected"
    )


def check_score_quantile(device: str) -> tuple[bool, str]:
    """Paged, masked, with sinks."""
    arguments = make_score_quantile_args("paged", BF16, sinks=True)
    there = {n: moved(v, device) if isinstance(v, Tensor) else v for n, v in arguments.items()}
    got = sift.score_quantile(**there).cpu().double()
    double = {**arguments, "q": arguments["q"].double(), "k": arguments["k"].double()}
    want = sift.reference.score_quantile(**double).double()
    error = float((got / want - 1.0).abs().nan_to_num(0.0).max())
    return torch.equal(got.isnan(), want.isnan()) and error < 1e-3, f"error {error:.1e}"


def check_fit_power_law(device: str) -> tuple[bool, str]:
    """Against the same operator on the CPU."""
    lengths = torch.logspace(2, 4, 32).int()[None]
    quantiles = 3.0 * lengths[:, None] ** -torch.tensor([0.9, 1.0, 1.2])[:, None]
    quantiles *= torch.exp(0.1 * torch.randn(1, 3, 32))
    law, ok = sift.fit_power_law(lengths.to(device), quantiles.to(device))
    want, _ = sift.fit_power_law(lengths, quantiles)
    error = float((law.log_alpha.cpu() - want.log_alpha).abs().max())
    return bool(ok.all()) and error < 1e-4, f"error {error:.1e}"


def check_repeats(device: str) -> tuple[bool, str]:
    """The same bits every time, and for a sequence without its batch mates."""
    case = replace(LLAMA, batch=3, capacity=2000, sharpness=2.0)
    call = moved_call(make_call(case), device)
    first, _ = call.run()
    same = all(torch.equal(call.run()[0], first) for _ in range(5))
    options = {n: v[:1] if isinstance(v, Tensor) else v for n, v in call.options.items()}
    alone, _ = Call(call.q[:1], call.k[:1], call.v[:1], call.law, options).run()
    is_independent = torch.equal(alone, first[:1])
    return same and is_independent, f"again: {same}, without batch mates: {is_independent}"


def check_stream(device: str) -> tuple[bool, str]:
    """A call on another stream waits for what that stream computes, not for the default one."""
    call = moved_call(make_call(replace(LLAMA, capacity=4096)), device)
    want, _ = call.run()
    q = call.q.clone()
    call.q.fill_(math.nan)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # cycles
        call.q.copy_(q)
        got, _ = call.run()
    stream.synchronize()
    return torch.equal(got, want), ""


def check_graph(device: str) -> tuple[bool, str]:
    """A captured call sees new lengths and a new law."""
    case = replace(LLAMA, batch=4, capacity=4096, seq_lens=(4096,) * 4, residual="renormalize")
    call = moved_call(make_call(case), device)
    law = sift.PowerLaw(*(torch.full((4, 32), value, device=device) for value in (-9.0, 0.0)))
    call = replace(call, law=law)
    call.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, stats = call.run()
    same = []
    changes = [([4096, 1, 700, 0], -9.0), ([3000] * 4, -7.5), ([64] * 4, -math.inf)]
    for lengths, log_alpha in changes:
        call.options["seq_lens"].copy_(torch.tensor(lengths))
        law.log_alpha.fill_(log_alpha)
        out.fill_(math.nan)
        graph.replay()
        want, want_stats = call.run()
        same.append(torch.equal(out, want) and torch.equal(stats.num_loaded, want_stats.num_loaded))
    return all(same), f"replays that equal a call: {sum(same)} of {len(same)}"


def checks(small: bool, device: str) -> dict[str, Callable[[str], tuple[bool, str]]]:
    """By name, in the order in which they run."""
    cases = CASES if small else {**CASES, **LARGE_CASES}
    every = {name: functools.partial(check_decode, case=case) for name, case in cases.items()}
    every |= {"score_quantile": check_score_quantile, "fit_power_law": check_fit_power_law}
    every["same bits"] = check_repeats
    if device == "cuda" and not small:
        every |= {"side stream": check_stream, "CUDA graph": check_graph}
    return every


def main() -> int:
    """Exit status: 0 where every check passes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="short caches, no CUDA graph")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    arguments = parser.parse_args()

    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    passed = 0
    every = checks(arguments.small, arguments.device)
    for name, check in every.items():
        try:
            is_right, figures = check(arguments.device)
        except Exception as error:
            is_right, figures = False, f"{type(error).__name__}: {error}"
        passed += is_right
        print(f"{'ok' if is_right else 'WRONG':6}{name:30}{figures}", flush=True)
    print(f"{passed} of {len(every)} ok")
    return int(passed < len(every))


if __name__ == "__main__":
    sys.exit(main())
