"""Log-likelihoods by decode steps, and the tokenizer of byte models that hands them tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sift_attention import SiftConfig
from sift_attention.eval.tokens import decode, encode

transformers = pytest.importorskip("transformers")
from sift_attention.eval.byte_tokenizer import byte_tokenizer  # noqa: E402
from sift_attention.eval.likelihood import Likelihood, step_through  # noqa: E402
from sift_attention.hf import enabled  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread(same_start):
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    folder = Path(__file__).parents[2] / "examples" / "model"
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.inference_mode()
def dense(model, row):
    return model(torch.tensor([row]), use_cache=False).logits[0].log_softmax(-1)


ROWS = [torch.randint(256, (length,)).tolist() for length in (30, 12, 41, 20)]


@pytest.mark.parametrize("prefill", [1, 8, 15, 64])
def test_rows_of_several_lengths_equal_their_dense_forwards(model, prefill):
    found = step_through(model, ROWS, prefill, first=7)
    for row, likelihood in zip(ROWS, found, strict=True):
        log_p, known = dense(model, row), torch.tensor(row)
        expected = log_p[:-1].gather(-1, known[1:, None])[7:, 0]
        torch.testing.assert_close(likelihood.log_probs, expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(likelihood.last, log_p[-1], atol=1e-4, rtol=1e-5)
        assert likelihood.is_top.tolist() == (log_p[:-1].argmax(-1) == known[1:])[7:].tolist()


def test_steps_are_counted_without_the_rows_that_ended(model):
    config = SiftConfig(c=2.0, min_keys=0)
    with enabled(model, config) as handle:
        step_through(model, ROWS, prefill=15, first=11)
        total = handle.stats().total
    layers, kv_heads = model.config.num_hidden_layers, model.config.num_key_value_heads
    # The row of 12 tokens never decodes; those of 20, 30 and 41 attend 16 ... T keys.
    keys = sum(sum(range(16, length + 1)) for length in (20, 30, 41))
    assert total.decode_calls == (41 - 15) * layers
    assert total.keys == keys * layers * kv_heads
    assert total.rows_loaded < total.keys


def test_a_row_without_a_prediction_to_report_is_refused(model):
    with pytest.raises(ValueError, match="first must be below the shortest row's 12, got 12"):
        step_through(model, ROWS, prefill=15, first=12)


def test_a_continuation_is_the_end_of_its_row():
    likelihood = Likelihood(
        log_probs=torch.tensor([-1.0, -2.0, -0.5]),
        is_top=torch.tensor([False, True, True]),
        last=torch.tensor([-3.0, -0.25]),
    )
    assert likelihood.of([1]) == (-0.25, True)
    assert likelihood.of([7, 9, 1]) == (-2.75, True)
    assert likelihood.of([7, 9, 0]) == (-5.5, False)
    assert likelihood.of([7, 7, 9, 1]) == (-3.75, False)


def test_the_byte_tokenizer_gives_the_tokens_of_the_tasks():
    tokenizer = byte_tokenizer()
    text = "".join(map(chr, range(0x900))) + "€𝄞 \r\n\t  def f(x):  "
    assert tokenizer.encode(text) == [256, *encode(text)]
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    marks = "a<key>bc<sep>de<qry><bos>"
    assert tokenizer.encode(marks) == [256, 97, 258, 98, 99, 257, 100, 101, 259, 256]
    assert tokenizer.decode([97, 258, 255]) == decode(np.array([97, 258, 255]))
    assert len(tokenizer) == 260
    padded = tokenizer(["ab", "abcd"], padding=True, padding_side="left")
    assert padded["input_ids"][0] == [256, 256, 256, 97, 98]
    assert padded["attention_mask"][0] == [0, 0, 1, 1, 1]
