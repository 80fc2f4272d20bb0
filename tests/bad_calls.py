"""Calls that the operators must refuse, with their sentences.

Every one of them goes through the Python function and through `torch.ops`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import sift_attention as sift
from cases import Case, make_call, make_score_quantile_args, on_cuda

Change = Callable[[Any], Any]

ON_CUDA = {
    "float32, bfloat16 or float16": "bfloat16 or float16 on CUDA",
    "32, 64, 80, 96, 128 or 256": "64, 80, 96, 128 or 256 on CUDA",
}


@dataclass(frozen=True)
class BadCall:
    """A good call with some arguments changed; a change maps the good value to a bad one."""

    op: str
    error: type[Exception]
    sentence: str
    changes: dict[str, Change]
    layout: str = "contiguous"

    def __str__(self) -> str:
        """The operator and what is wrong."""
        return self.sentence.split(" = ")[0].replace(" ", "_")

    def sentence_here(self) -> str:
        """As the device's operators say it: those on CUDA take less."""
        sentence = self.sentence
        for everywhere, there in ON_CUDA.items() if on_cuda() else ():
            sentence = sentence.replace(everywhere, there)
        return sentence

    def arguments(self) -> dict[str, Any]:
        arguments = GOOD_CALLS[self.op](self.layout)
        for name, change in self.changes.items():
            arguments[name] = change(arguments.get(name))
        return arguments

    def python(self) -> Any:
        arguments = self.arguments()
        if self.op == "decode":
            arguments["residual"] = ("mean", "renormalize", "none")[arguments["residual"]]
            law = sift.PowerLaw(arguments.pop("log_alpha"), arguments.pop("beta"))
            arguments["law"] = law
        return getattr(sift, self.op)(**arguments)

    def operator(self) -> Any:
        return getattr(torch.ops.sift_attention, self.op).default(**self.arguments())


def good_decode(layout: str) -> dict[str, Any]:
    case = Case(torch.float16, layout=layout, masked=True, seq_lens=(130, 77), sinks=True)
    call = make_call(case)
    return {
        **{"q": call.q, "k": call.k, "v": call.v, "scale": 0.125},
        **{"log_alpha": torch.zeros(2, 8), "beta": torch.ones(2, 8)},
        **call.options,
        "residual": 0,
    }


def good_score_quantile(layout: str) -> dict[str, Any]:
    return {**make_score_quantile_args(layout, torch.float16, sinks=True), "scale": 0.125}


def good_fit_power_law(layout: str) -> dict[str, Any]:
    return {"lengths": torch.tensor([[1, 2, 4, 8]] * 2).int(), "quantiles": torch.rand(2, 8, 4)}


GOOD_CALLS = {
    "decode": good_decode,
    "score_quantile": good_score_quantile,
    "fit_power_law": good_fit_power_law,
}


def to(dtype: torch.dtype) -> Change:
    return lambda tensor: tensor.to(dtype)


def put(value: Any) -> Change:
    return lambda _: value


def head_dim(size: int) -> dict[str, Change]:
    return {name: lambda tensor: tensor.new_zeros(*tensor.shape[:-1], size) for name in "qkv"}


DOUBLE = to(torch.float64)
NORMAL_SOFTCAP = "softcap must be 0 or a positive normal float32"
PAGED_SHAPE = "[num_blocks, block_size, HK, D]"

ATTENTION = [  # what decode and score_quantile share: error, sentence, changes
    (TypeError, "q must have dtype float32, bfloat16 or float16, got float64", {"q": DOUBLE}),
    (
        TypeError,
        "q must have dtype float32, bfloat16 or float16, got int32",
        {"q": to(torch.int32)},
    ),
    (TypeError, "k must have dtype float16, got bfloat16", {"k": to(torch.bfloat16)}),
    (TypeError, "k must have dtype float16, got complex64", {"k": to(torch.complex64)}),
    *(
        (TypeError, f"k must have dtype float16, got {name}", {"k": to(getattr(torch, name))})
        for name in ("float8_e4m3fn", "float8_e5m2")  # they would need a scale
    ),
    (TypeError, "key_mask must have dtype bool, got float32", {"key_mask": to(torch.float32)}),
    (TypeError, "sinks must have dtype float32, got float64", {"sinks": DOUBLE}),
    (ValueError, "k must have shape [B, HK, N, D], got (2, 130, 64)", {"k": lambda k: k[:, 0]}),
    (
        ValueError,
        "k must have shape [B, HK, N, D] = (2, 2, 130, 64), got (1, 2, 130, 64)",
        {"k": lambda k: k[:1]},
    ),
    (
        ValueError,
        "k must have shape [B, HK, N, D] = (2, 2, 130, 64), got (2, 2, 130, 32)",
        {"k": lambda k: k[..., :32]},
    ),
    (
        ValueError,
        "the heads of q must be a positive multiple of the heads of k, got 8 and 3",
        {"k": lambda k: k[:, :1].expand(-1, 3, -1, -1)},
    ),
    (
        ValueError,
        "the heads of q must be a positive multiple of the heads of k, got 8 and 16",
        {"k": lambda k: k[:, :1].expand(-1, 16, -1, -1)},
    ),
    (
        ValueError,
        "the heads of q must be a positive multiple of the heads of k, got 8 and 0",
        {"k": lambda k: k[:, :0]},
    ),
    (
        ValueError,
        "k must hold at most 2147483647 keys per sequence, got 2147483648",
        {"k": lambda k: k[:, :, :1].expand(-1, -1, 2**31, -1)},
    ),
    (
        ValueError,
        "key_mask must have shape [B, N] = (2, 130), got (2, 129)",
        {"key_mask": lambda mask: mask[:, 1:]},
    ),
    (
        ValueError,
        "key_mask must have a last stride of 1, got 2",
        {"key_mask": lambda mask: torch.ones(2, 260, dtype=torch.bool)[:, ::2]},
    ),
    (
        ValueError,
        "q must have a last stride of 1, got 2",
        {"q": lambda q: q.repeat_interleave(2, -1)[..., ::2]},
    ),
    (
        ValueError,
        "k must have a last stride of 1, got 2",
        {"k": lambda k: k.repeat_interleave(2, -1)[..., ::2]},
    ),
    (ValueError, "sinks must have shape [HQ] = (8,), got (4,)", {"sinks": lambda sinks: sinks[:4]}),
    *(
        (ValueError, f"scale must be a finite float32, got {scale}", {"scale": put(float(scale))})
        for scale in ("inf", "nan", "1e+39", "-1e+300")
    ),
    *(
        (ValueError, f"{NORMAL_SOFTCAP}, got {softcap}", {"softcap": put(float(softcap))})
        for softcap in ("-1", "nan", "inf", "1e+39", "1e-39")
    ),
]

PAGED = [
    (TypeError, "block_table must have dtype int32, got int64", {"block_table": to(torch.int64)}),
    (
        ValueError,
        f"k must have shape {PAGED_SHAPE}, got (21, 16, 2)",
        {"k": lambda k: k[..., 0]},
    ),
    (
        ValueError,
        f"k must have shape {PAGED_SHAPE} = (21, 16, 2, 64), got (21, 16, 2, 32)",
        {"k": lambda k: k[..., :32]},
    ),
    (
        ValueError,
        "k must hold at most 2147483647 keys per sequence, got 9 blocks of 268435456",
        {"k": lambda k: k[:, :1].expand(-1, 2**28, -1, -1)},
    ),
    (
        ValueError,
        "block_table must have shape [B, max_blocks], got (9,)",
        {"block_table": lambda table: table[0]},
    ),
    (
        ValueError,
        "block_table must have shape [B, max_blocks] = (2, 9), got (1, 9)",
        {"block_table": lambda table: table[:1]},
    ),
    (
        ValueError,
        "block_table must have a last stride of 1, got 2",
        {"block_table": lambda table: table.T.contiguous().T},
    ),
    (
        ValueError,
        "key_mask must have shape [B, N] = (2, 144), got (2, 130)",
        {"key_mask": lambda mask: mask[:, :130]},
    ),
]

DECODE = [
    (ValueError, "q must have shape [B, HQ, D], got (8, 64)", {"q": lambda q: q[0]}),
    *(
        (ValueError, f"head_dim must be 32, 64, 80, 96, 128 or 256, got {size}", head_dim(size))
        for size in (0, 1, 63, 512)
    ),
    (
        ValueError,
        "the heads of q must be a positive multiple of the heads of k, got 0 and 2",
        {name: lambda tensor: tensor[:, :0] for name in ("q", "log_alpha", "beta")},
    ),
    (TypeError, "v must have dtype float16, got bfloat16", {"v": to(torch.bfloat16)}),
    (
        ValueError,
        "v must have the shape of k = (2, 2, 130, 64), got (2, 2, 130, 32)",
        {"v": lambda v: v[..., :32]},
    ),
    (
        ValueError,
        "v must have the shape of k = (2, 2, 130, 64), got (2, 2, 64)",
        {"v": lambda v: v[:, :, 0]},
    ),
    (
        ValueError,
        "v must have a last stride of 1, got 2",
        {"v": lambda v: v.repeat_interleave(2, -1)[..., ::2]},
    ),
    (TypeError, "log_alpha must have dtype float32, got float64", {"log_alpha": DOUBLE}),
    (TypeError, "beta must have dtype float32, got float16", {"beta": to(torch.float16)}),
    (TypeError, "seq_lens must have dtype int32, got int64", {"seq_lens": to(torch.int64)}),
    (ValueError, "seq_lens must have shape [B] = (2,), got (1,)", {"seq_lens": lambda n: n[:1]}),
    (
        ValueError,
        "seq_lens must be contiguous, got strides (2,)",
        {"seq_lens": lambda n: n.repeat_interleave(2)[::2]},
    ),
    (TypeError, "v_sum must have dtype float32, got float16", {"v_sum": to(torch.float16)}),
    (
        ValueError,
        "v_sum must have shape [B, HK, D] = (2, 2, 64), got (2, 64)",
        {"v_sum": lambda v_sum: v_sum[:, 0]},
    ),
    (ValueError, "v_sum must be given for the mean residual, got None", {"v_sum": put(None)}),
]

SCORE_QUANTILE = [
    (ValueError, "q must have shape [B, HQ, R, D], got (2, 8, 64)", {"q": lambda q: q[:, :, 0]}),
    (TypeError, "lengths must have dtype int32, got int64", {"lengths": to(torch.int64)}),
    (
        ValueError,
        "lengths must have shape [B, R] = (2, 6), got (2, 5)",
        {"lengths": lambda lengths: lengths[:, 1:]},
    ),
    (ValueError, "quantile must be in [0, 1], got 1.5", {"quantile": put(1.5)}),
    (ValueError, "quantile must be in [0, 1], got -0.1", {"quantile": put(-0.1)}),
    (ValueError, "quantile must be in [0, 1], got nan", {"quantile": put(math.nan)}),
]

FIT_POWER_LAW = [
    (
        TypeError,
        "lengths must have dtype int32 or float32, got int64",
        {"lengths": to(torch.int64)},
    ),
    (TypeError, "quantiles must have dtype float32, got float64", {"quantiles": DOUBLE}),
    (ValueError, "lengths must have shape [B, R], got (4,)", {"lengths": lambda n: n[0]}),
    (
        ValueError,
        "quantiles must have shape [B, HQ, R], got (8, 4)",
        {"quantiles": lambda quantiles: quantiles[0]},
    ),
    (
        ValueError,
        "quantiles must have shape [B, HQ, R] = (2, 8, 4), got (2, 8, 3)",
        {"quantiles": lambda quantiles: quantiles[..., 1:]},
    ),
    (ValueError, "beta must be a finite number of at least 0, got -1", {"beta": put(-1.0)}),
    (ValueError, "beta must be a finite number of at least 0, got inf", {"beta": put(math.inf)}),
]

BAD_CALLS = [
    BadCall(op, error, f"{op}: {sentence}", changes, layout)
    for op, layout, table in [
        ("decode", "contiguous", ATTENTION + DECODE),
        ("decode", "paged", PAGED),
        ("score_quantile", "contiguous", ATTENTION + SCORE_QUANTILE),
        ("score_quantile", "paged", PAGED),
        ("fit_power_law", "contiguous", FIT_POWER_LAW),
    ]
    for error, sentence, changes in table
]
