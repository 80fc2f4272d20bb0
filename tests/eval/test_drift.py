"""Drift in pieces equals stepwise decoding measured at once."""

import pytest
import torch

pytest.importorskip("transformers")
from tiny_decoders import build, text_samples, tokens_of

from sift_attention import SiftConfig
from sift_attention.eval import drift as drift_module
from sift_attention.eval.drift import drift
from sift_attention.eval.measure import measure
from sift_attention.eval.simulate import exact_logits
from sift_attention.eval.stepwise import stepwise

CONFIG = SiftConfig(c=1.5, min_keys=0)


@pytest.mark.parametrize("num_steps", [32, 33, 34, 40])  # pieces of 16: exact, 1, 2 and 8 left
def test_pieces_measure_what_one_run_measures(num_steps, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(drift_module, "_PIECE", 16)
    model, samples = build(), text_samples(2, 64)
    tokens = tokens_of(samples)
    exact = exact_logits(model, tokens, num_steps)
    expected = measure(samples, exact, stepwise(model, tokens, num_steps, CONFIG))
    found = drift(model, samples, num_steps, CONFIG)
    assert found.keys() == expected.keys()
    assert found["num_tokens"] == 2 * (num_steps - 1)
    assert found["kl"] > 1e-4
    assert found["kl"] == pytest.approx(expected["kl"], rel=1e-3)
    assert found["bits_per_token"] == pytest.approx(expected["bits_per_token"], rel=1e-4)
    for name in ("v_fraction", "kv_fraction", "dropped_mass", "sifted_calls", "agreement"):
        assert found[name] == pytest.approx(expected[name])
    for part, other in zip(found["by_step"], expected["by_step"], strict=True):
        assert part == pytest.approx(other, rel=1e-2)
