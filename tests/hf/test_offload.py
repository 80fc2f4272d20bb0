"""Models whose weights lie on disk, or in memory that is not the device's, until a layer runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_runs import record
from tiny_models import build
from transformers import AutoModelForCausalLM, PreTrainedModel

import sift_attention as sift

accelerate = pytest.importorskip("accelerate")

DEVICE_MAP = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.norm": "cpu",
    "lm_head": "cpu",
}


def dispatched(model: PreTrainedModel, folder: Path) -> None:
    accelerate.dispatch_model(model, DEVICE_MAP, main_device="cpu", offload_dir=folder)


OFFLOADS: dict[str, Callable[[Any, Path], Any]] = {
    "dispatch": dispatched,
    "cpu": lambda model, _: accelerate.cpu_offload(model, torch.device("cpu")),
    "cpu_buffers": lambda model, _: accelerate.cpu_offload(
        model, torch.device("cpu"), offload_buffers=True
    ),
    "disk": lambda model, folder: accelerate.disk_offload(model, folder, torch.device("cpu")),
}


def check_same(result: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same bits, and the same counts."""
    assert torch.equal(result["logits"], expected["logits"])
    assert torch.equal(result["tokens"], expected["tokens"])
    assert result["totals"] == expected["totals"]
    assert result["rows"].keys() == expected["rows"].keys()
    for layer, rows in result["rows"].items():
        assert torch.equal(rows, expected["rows"][layer])


@pytest.mark.row(36)
@pytest.mark.parametrize("enable_first", [False, True], ids=["offload_first", "enable_first"])
@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_offloaded_models_decode_as_others(family, offload, enable_first, tmp_path):
    model, offloaded = build(family), build(family)
    handle = sift.hf.enable(offloaded, sift.SiftConfig()) if enable_first else None
    OFFLOADS[offload](offloaded, tmp_path)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    for mode in ("left_padded", "left_padded_static", "fitted"):
        check_same(record(offloaded, mode, 0), record(model, mode, 0))
    if handle is not None:
        handle.disable()
    # Hooks of either kind come off without those of the other.
    with sift.hf.enabled(offloaded):
        accelerate.hooks.remove_hook_from_submodules(offloaded)
    assert not offloaded._forward_pre_hooks
    assert not offloaded._forward_hooks


def test_a_device_map_of_from_pretrained(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path / "model")
    offloaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=DEVICE_MAP, offload_folder=tmp_path / "off"
    ).eval()
    offloaded.generation_config = model.generation_config
    check_same(record(offloaded, "left_padded", 0), record(model, "left_padded", 0))
