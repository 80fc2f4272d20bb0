"""Free running: what is generated, what is given, and where two models part."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
from tiny_decoders import build, text_samples, tokens_of

from sift_attention import SiftConfig
from sift_attention.eval.free_running import free_running
from sift_attention.eval.tokens import Sample

LENGTH, STEPS = 60, 24


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return build()


def test_a_model_that_drops_nothing_never_diverges(model):
    found = free_running(model, text_samples(2, LENGTH), STEPS, SiftConfig(c=0.0, min_keys=0))
    assert found["num_tokens"] == 2 * (STEPS - 1)
    assert found["first_divergence"] == found["generated"] == STEPS - 1
    assert found["equal_tokens"] == 1.0
    assert found["sifted_calls"] == 0
    assert found["v_fraction"] == 1.0


def test_a_model_that_drops_almost_everything_diverges(model):
    found = free_running(
        model, text_samples(2, LENGTH), STEPS, SiftConfig(c=1e6, min_keys=0, residual="none")
    )
    assert found["first_divergence"] < STEPS - 1
    assert found["equal_tokens"] < 1.0
    assert found["sifted_share"] == 1.0
    assert np.isnan(found["accuracy"])


def test_the_exact_tokens_are_those_of_generate_and_answers_are_compared_with_them(model):
    tokens = tokens_of(text_samples(1, LENGTH))
    prompt = tokens[:, : LENGTH - STEPS + 1]
    mask = torch.ones_like(prompt)
    full = model.generate(
        prompt, attention_mask=mask, max_new_tokens=STEPS - 1, do_sample=False, eos_token_id=None
    )[0].numpy()
    answers = np.arange(LENGTH) > LENGTH - STEPS
    known = full.copy()
    known[-5:] = (known[-5:] + 1) % 64  # five answers that no model gives
    sample = Sample(known, answers.astype(np.float32), answers, np.full(LENGTH, -1))
    found = free_running(model, [sample], STEPS, SiftConfig(c=0.0, min_keys=0))
    assert found["num_answers"] == STEPS - 1
    expected = pytest.approx((STEPS - 6) / (STEPS - 1))
    assert found["exact"]["accuracy"] == found["accuracy"] == expected


def test_what_is_not_scored_is_given(model):
    tokens = tokens_of(text_samples(1, LENGTH))
    logits = model(input_ids=tokens).logits
    answers = np.isin(np.arange(LENGTH), [LENGTH - 10, LENGTH - 1])
    known = tokens[0].numpy().copy()
    likely = logits[0].argmax(-1)
    known[LENGTH - 10] = int(likely[LENGTH - 11])
    again = model(input_ids=torch.from_numpy(known)[None]).logits
    known[LENGTH - 1] = int(again[0, LENGTH - 2].argmax())
    sample = Sample(known, answers.astype(np.float32), answers, np.full(LENGTH, -1))
    found = free_running(model, [sample], STEPS, SiftConfig(c=0.0, min_keys=0))
    assert found["num_tokens"] == found["num_answers"] == 2
    assert found["exact"]["accuracy"] == found["accuracy"] == 1.0
