"""Models split over processes or parked on disk."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from modes import NEW, generate, left_padded, prompt
from packaging.version import Version
from tiny_models import LAYERS, VERSION, build
from transformers import AutoModelForCausalLM

import sift_attention as sift

SIFTING = sift.SiftConfig(c=1.0, min_keys=0)
WORKER = Path(__file__).with_name("parallel_worker.py")


@pytest.fixture
def saved(tmp_path):
    """A model and the folder it is saved in."""
    model = build("llama")
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def run_ranks(kind: str, folder: Path, result: Path) -> tuple[torch.Tensor, int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [sys.executable, str(WORKER), kind]
    ranks = [
        subprocess.Popen(
            [*arguments, str(rank), str(port), str(folder), str(result)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
    return torch.load(result)


@pytest.mark.skipif(
    Version("5.15") <= VERSION < Version("5.17"), reason="transformers has no tp_plan there"
)
def test_tensor_parallel(saved, tmp_path):
    model, folder = saved
    with sift.hf.enabled(model, SIFTING):
        _, expected = generate(model, left_padded())
    logits, calls = run_ranks("tensor", folder, tmp_path / "result.pt")
    for run in logits:  # dynamic, static, static in chunks
        torch.testing.assert_close(run, expected, atol=1e-5, rtol=0)
    assert calls == len(logits) * (NEW - 1) * LAYERS


@pytest.mark.skipif(Version("5.17") > VERSION, reason="transformers has no pipelines there")
def test_pipeline_parallel(saved, tmp_path):
    # NOTE: no padding: transformers takes the mask's length from layer 0, absent on rank 1.
    model, folder = saved
    with sift.hf.enabled(model, SIFTING):
        _, expected = generate(model, prompt())
    logits, calls = run_ranks("pipeline", folder, tmp_path / "result.pt")
    torch.testing.assert_close(logits[0], expected, atol=1e-5, rtol=0)
    assert calls == NEW - 1  # rank 0 has one of the two layers


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate")
@pytest.mark.parametrize("enable_first", [False, True])
def test_disk_offload(saved, tmp_path, enable_first):
    from accelerate import dispatch_model

    model, folder = saved
    with sift.hf.enabled(model, SIFTING):
        _, expected = generate(model, left_padded())
    device_map = {
        "model.embed_tokens": "cpu",
        "model.rotary_emb": "cpu",
        "model.layers.0": "disk",
        "model.layers.1": "cpu",
        "model.norm": "cpu",
        "lm_head": "cpu",
    }
    if enable_first:
        offloaded = AutoModelForCausalLM.from_pretrained(folder).eval()
        handle = sift.hf.enable(offloaded, SIFTING)
        dispatch_model(offloaded, device_map, main_device="cpu", offload_dir=tmp_path / "off")
    else:
        offloaded = AutoModelForCausalLM.from_pretrained(
            folder, device_map=device_map, offload_folder=tmp_path / "off"
        ).eval()
        handle = sift.hf.enable(offloaded, SIFTING)
    offloaded.generation_config = model.generation_config
    _, logits = generate(offloaded, left_padded())
    assert torch.equal(logits, expected)
    assert handle.stats().total.decode_calls == (NEW - 1) * LAYERS
    handle.disable()
