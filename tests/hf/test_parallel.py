"""Models split over two processes: by heads, layers, experts, weights or sequences."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_runs import CASES, record
from tiny_models import build

from sift_attention.hf import LayerStats

WORKER = Path(__file__).with_name("parallel_worker.py")


def run_ranks(folder: Path) -> list[dict[tuple[str, str, str], Any]]:
    """What each of two processes recorded; see parallel_runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(port), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=280)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def check_layer(parts: list[dict[str, Any]], whole: dict[str, Any], layer: int) -> None:
    """A layer in the ranks that hold it: with all of its heads in each, or with some in each."""
    totals = [LayerStats(**part["totals"][layer]) for part in parts]
    total = LayerStats(**whole["totals"][layer])
    assert all(part.dense_calls.keys() == total.dense_calls.keys() for part in totals)
    if layer not in whole["rows"]:
        assert not any(layer in part["rows"] for part in parts)
        return
    rows, laws = ([part[name][layer] for part in parts] for name in ("rows", "laws"))
    if rows[0].shape[2] < whole["rows"][layer].shape[2]:
        rows, laws = [torch.cat(rows, 2)], [torch.cat(laws, 2)]
        totals = [LayerStats.sum(totals)]
    for part_rows, law, part in zip(rows, laws, totals, strict=True):
        expected = whole["rows"][layer]
        # Sums over ranks round otherwise: a probability may fall on the other side of a threshold.
        slack = expected.sum().item() // 1000 + 1
        assert (part_rows[: len(expected)] - expected).abs().sum() <= slack
        assert abs(part.rows_loaded - total.rows_loaded) <= slack
        assert part.dropped == pytest.approx(total.dropped, abs=0.1 * slack)
        torch.testing.assert_close(law, whole["laws"][layer], atol=1e-4, rtol=0)
        for name in ("keys", "head_steps", "bytes_dense", "unfitted_heads"):
            assert getattr(part, name) == getattr(total, name), name


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The whole models, and the folder in which each is saved under its family's name."""
    folder = tmp_path_factory.mktemp("models")
    models = {family: build(family) for _, family, _ in CASES}
    for family, model in models.items():
        model.save_pretrained(folder / family)
    return models, folder


def test_two_processes_decode_as_one_does(models):
    """All cases in one test: starting two processes costs more than most of what they run."""
    whole_models, folder = models
    ranks = run_ranks(folder)
    failures = []
    for split, family, mode in CASES:
        wholes = [record(whole_models[family], mode, rank) for rank in range(2)]
        parts = [results[split, family, mode] for results in ranks]
        try:
            for part, whole in zip(parts, wholes, strict=True):
                torch.testing.assert_close(part["logits"], whole["logits"], atol=1e-5, rtol=0)
                assert torch.equal(part["tokens"], whole["tokens"])
            if split in ("sharded", "replicated"):  # every rank decodes by itself
                for part, whole in zip(parts, wholes, strict=True):
                    for layer in whole["totals"]:
                        check_layer([part], whole, layer)
                continue
            for layer in wholes[0]["totals"]:
                holders = [part for part in parts if layer in part["totals"]]
                assert len(holders) == (1 if split == "pipeline" else 2)
                check_layer(holders, wholes[0], layer)
        except AssertionError as error:
            failures.append(f"{split}, {family}, {mode}: {error}")
    assert not failures, "\n".join(failures)
