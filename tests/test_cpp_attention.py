"""sift::Attention of the C++ headers equals SiftState with SDPA bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sift_attention as sift
from sift_attention.ops import RESIDUALS

ROOT = Path(__file__).resolve().parent.parent
REPLAY = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}" / "replay_attention"
HQ, HK, D = 4, 2, 32

pytestmark = pytest.mark.skipif(
    not REPLAY.exists(), reason="the C++ tests are not built: make test-cpp"
)


class Both:
    """Drives SiftState at once and notes the commands for the C++ side."""

    def __init__(self, dtype: torch.dtype = torch.float32, **config: Any) -> None:
        self.dtype = dtype
        self.state = sift.SiftState(sift.SiftConfig(**config))
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.inputs: list[Tensor] = []
        self.expected: list[Tensor] = []
        chosen = self.state.config
        self.commands = [
            f"config {chosen.threshold} {chosen.c} {chosen.quantile} {chosen.slope} "
            f"{chosen.prompt_rows} {chosen.warmup_steps} {RESIDUALS[chosen.residual]} "
            f"{chosen.min_keys}"
        ]

    def forward(self, num_rows: int, batch: int = 2, padding: Tensor | None = None) -> None:
        """Feeds random rows; `padding` (Tensor[B], int) masks that many keys on the left."""
        q = (3.0 * torch.randn(batch, HQ, num_rows, D)).to(self.dtype)
        k, v = torch.randn(2, batch, HK, num_rows, D).to(self.dtype)
        self.k = k if self.k is None else torch.cat([self.k, k], 2)
        self.v = v if self.v is None else torch.cat([self.v, v], 2)
        num_keys = self.k.shape[2]
        self.inputs += [q, k, v]
        mask = None
        if num_rows > 1 and num_rows < num_keys:
            mask = torch.ones(num_keys, num_keys, dtype=torch.bool).tril()[None, None, -num_rows:]
        if padding is not None:
            key_mask = torch.arange(num_keys) >= padding[:, None]
            self.inputs.append(key_mask)
            causal = torch.ones(num_keys, num_keys, dtype=torch.bool).tril()[-num_rows:]
            mask = causal & key_mask[:, None, None]
        self.commands.append(
            f"forward {str(self.dtype).removeprefix('torch.')} {batch} {HQ} {HK} {num_rows} {D} "
            f"{int(padding is not None)}"
        )
        is_causal = mask is None and num_rows > 1
        out = sift.scaled_dot_product_attention(
            q, self.k, self.v, mask, is_causal=is_causal, enable_gqa=True, state=self.state
        )
        laws = self.state.log_alpha, self.state.beta
        self.expected += [x.clone() for x in (out, *laws, self.state.values.total)]

    def change(self, name: str, *arguments: int) -> None:
        """Crops, reorders, selects, repeats or resets both."""
        assert self.k is not None
        assert self.v is not None
        self.commands.append(" ".join([name, *map(str, arguments)]))
        if name == "crop":
            self.state.crop(*arguments)
            self.k, self.v = (x[:, :, : -arguments[0]] for x in (self.k, self.v))
        elif name == "repeat":
            self.state.repeat(*arguments)
            self.k, self.v = (x.repeat_interleave(*arguments, 0) for x in (self.k, self.v))
        elif name == "reset":
            self.state.reset()
            self.k = self.v = None
        else:
            getattr(self.state, name)(torch.tensor(arguments))
            self.k, self.v = (x[list(arguments)] for x in (self.k, self.v))

    def check(self, folder: Path) -> None:
        """Runs the C++ side and compares every number."""
        counters = self.state.counters
        counters.fold()
        keys = counters.keys + int(counters.keys_and_steps[0])
        self.commands.append("stats")
        counted = [counters.calls, keys * HK, counters.rows_loaded, counters.unfitted]
        self.expected.append(torch.tensor(counted))
        (folder / "input").write_bytes(b"".join(map(to_bytes, self.inputs)))
        subprocess.run(
            [REPLAY, folder / "input", folder / "output"],
            input="\n".join(self.commands),
            text=True,
            check=True,
        )
        output = (folder / "output").read_bytes()
        start = 0
        for i, expected in enumerate(self.expected):
            size = expected.nbytes
            actual = torch.frombuffer(
                bytearray(output[start : start + size]), dtype=expected.dtype
            ).view(expected.shape)
            torch.testing.assert_close(
                actual, expected, rtol=0, atol=0, equal_nan=True, msg=lambda s, i=i: f"{i}: {s}"
            )
            start += size
        assert start == len(output)


def to_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


QUANTILE = {"threshold": "quantile", "quantile": 0.8, "min_keys": 0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        {"c": 1.0, "min_keys": 0},
        {"c": 1.0, "min_keys": 155, "residual": "renormalize"},
        {"c": 0.0, "min_keys": 0, "residual": "none"},
        QUANTILE,
        {**QUANTILE, "slope": "fit", "prompt_rows": 16, "warmup_steps": 3},
    ],
    ids=["uniform", "renormalize", "exact", "quantile", "warm-up"],
)
def test_generation(config, dtype, tmp_path):
    both = Both(dtype, **config)
    both.forward(150)
    for _ in range(10):
        both.forward(1)
    both.forward(170)  # doubles the sequence
    both.forward(1)
    both.change("crop", 2)
    both.forward(1)
    both.forward(3)
    both.forward(1)
    both.check(tmp_path)


@pytest.mark.parametrize("config", [{"c": 1.0, "min_keys": 100}, {**QUANTILE, "warmup_steps": 2}])
def test_left_padding(config, tmp_path):
    both = Both(**config)
    padding = torch.tensor([0, 60])
    for num_rows in (150, 1, 1, 1, 20, 1, 1):
        both.forward(num_rows, padding=padding)
    both.change("crop", 3)
    both.forward(1, padding=padding)
    both.forward(1, padding=padding)
    both.check(tmp_path)


@pytest.mark.row(36)
def test_rows_of_the_batch(tmp_path):
    both = Both(**QUANTILE)
    both.forward(150, batch=3)
    both.forward(1, batch=3)
    both.change("reorder", 2, 2, 0)
    both.forward(1, batch=3)
    both.change("select", 2, 0)
    both.forward(1, batch=2)
    both.change("repeat", 2)
    both.forward(1, batch=4)
    both.forward(200, batch=4)
    both.change("reset")
    both.forward(100, batch=4)
    both.forward(1, batch=4)
    both.check(tmp_path)


@pytest.mark.row(36, 37)
@pytest.mark.parametrize("left", [140, 50, 0])
@pytest.mark.parametrize("warmup_steps", [0, 2])
def test_cropped_below_the_fit(left, warmup_steps, tmp_path):
    both = Both(**QUANTILE, warmup_steps=warmup_steps)
    both.forward(150)
    for _ in range(3):
        both.forward(1)
    both.change("crop", 153 - left)
    if left > 0:
        both.forward(1)
    both.forward(200)
    for _ in range(3):
        both.forward(1)
    both.check(tmp_path)


def test_a_prompt_in_chunks_and_by_the_token(tmp_path):
    both = Both(**QUANTILE)
    for num_rows in (1, 33, 33, 33, 1, 50, 1):
        both.forward(num_rows)
    both.check(tmp_path)
