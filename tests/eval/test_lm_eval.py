"""lm-evaluation-harness on local task files: what `hf-sift` reports is what decoding computes."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm_eval is not installed (docs/lm_eval.md)")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from sift_attention.eval.corpus import read_standard_library
from sift_attention.eval.lm_eval import SiftLM

MODEL = str(Path(__file__).parents[2] / "examples" / "model")
# A record hidden in source text, asked for at the end; and text, of which every byte is predicted.
TASKS = {
    "records": """
task: records
dataset_path: json
dataset_kwargs: {data_files: DATA}
test_split: train
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}]
""",
    "source": """
task: source
dataset_path: json
dataset_kwargs: {data_files: DATA}
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
}
TEXT = bytes(read_standard_library("held_out")[:20_000]).decode("ascii", "ignore")
CONTEXT = TEXT[:500].rstrip()  # spaces that end a context belong to the continuation
VALUES = ["a7", "Qx", "0Z", "mm"]
DOCUMENTS = {
    "records": [
        {
            "context": (
                f"{TEXT[1000 * n : 1000 * n + 250]}<key>K{n}<sep>{VALUES[n]}"
                f"{TEXT[1000 * n + 250 : 1000 * n + 420]}<qry>K{n}<sep>"
            ),
            "choices": VALUES,
            "answer": n,
        }
        for n in range(4)
    ],
    "source": [{"text": TEXT[:460]}, {"text": TEXT[600:1000]}],
}


@pytest.fixture(autouse=True)
def one_thread(same_start):
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for name, task in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS[name]))
        (folder / f"{name}.yaml").write_text(task.replace("DATA", str(data)))
    return folder


def evaluate(task_folder, *tasks, **arguments):
    return simple_evaluate(
        model="hf-sift",
        model_args={"pretrained": MODEL, "tokenizer": "bytes", **arguments},
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(task_folder), include_defaults=False),
        bootstrap_iters=0,
        device="cpu",
    )


def requests(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=pair, idx=0) for pair in arguments]


def direct(lm, tokens, num_scored):
    """Log-likelihood of the last tokens in one dense forward."""
    tokens = torch.tensor([tokens])
    with torch.inference_mode():
        log_p = lm.model(tokens[:, :-1], use_cache=False).logits.double().log_softmax(-1)
    chosen = log_p.gather(-1, tokens[:, 1:, None])[0, -num_scored:, 0]
    is_top = (log_p[0, -num_scored:].argmax(-1) == tokens[0, -num_scored:]).all()
    return float(chosen.sum()), bool(is_top)


PAIRS = [
    (CONTEXT, "\n    return self.f"),
    (CONTEXT, "x"),
    (CONTEXT, "y"),
    (CONTEXT, "selfish"),
    (CONTEXT[:383] + "#", " \n"),
    ("def f(x):\n", "    return x"),
    ("", "import os"),
]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("decode_from", [None, 300])
def test_without_a_threshold_log_likelihoods_are_those_of_a_dense_forward(decode_from, batch_size):
    lm = SiftLM(MODEL, decode_from, "bytes", batch_size=batch_size, c=0.0)
    answers = lm.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    for (context, continuation), (likelihood, is_greedy) in zip(PAIRS, answers, strict=True):
        tokens = [256, *(context + continuation).encode()]
        num_scored = len(continuation) + len(context) - len(context.rstrip())
        expected, is_top = direct(lm, tokens, num_scored)
        assert likelihood == pytest.approx(expected, abs=1e-4)
        assert is_greedy == is_top


def test_continuations_decode_step_by_step_and_are_counted():
    lm = SiftLM(MODEL, None, "bytes", c=2.0)
    exact = SiftLM(MODEL, None, "bytes", c=0.0)
    pairs = requests("loglikelihood", *PAIRS[:3])
    sifted_answers = lm.loglikelihood(pairs, disable_tqdm=True)
    exact_answers = exact.loglikelihood(pairs, disable_tqdm=True)
    for (sifted, _), (expected, _) in zip(sifted_answers, exact_answers, strict=True):
        assert sifted != expected
        assert sifted == pytest.approx(expected, abs=0.02 * abs(expected) + 0.1)
    # Steps: the last token of the context and the first continuation without its last; and the last
    # token of the context once more, which serves both "x" and "y".
    layers = lm.model.config.num_hidden_layers
    assert lm.sifted["scored_tokens"] == lm.sifted["decoded_tokens"] == 18 + 1 + 1
    assert lm.sifted["decode_calls"] == (1 + 17 + 1) * layers
    assert 0.02 < lm.sifted["loaded_fraction"] < 0.3
    assert 0.0 < lm.sifted["dropped_mass"] < 0.5
    assert lm.sifted["bytes_fraction"] == pytest.approx((1 + lm.sifted["loaded_fraction"]) / 2)
    assert exact.sifted["loaded_fraction"] == exact.sifted["bytes_fraction"] == 1.0


def test_decode_from_makes_the_rest_of_the_context_decode():
    lm = SiftLM(MODEL, 400, "bytes", c=2.0)
    lm.loglikelihood(requests("loglikelihood", PAIRS[1]), disable_tqdm=True)
    assert lm.sifted["decode_calls"] == (len(CONTEXT) + 1 - 400) * lm.model.config.num_hidden_layers
    assert lm.sifted["decoded_tokens"] == 1


def test_tokens_that_would_decode_exactly_are_read_densely():
    lm = SiftLM(MODEL, None, "bytes", c=2.0, min_keys=300)
    (likelihood,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (TEXT[:340],)))
    # The harness scores <bos> <bos> text; 341 tokens are fed, token 299 attends 300 keys.
    assert lm.sifted["scored_tokens"] == 341
    assert lm.sifted["decoded_tokens"] == 341 - 299
    expected, _ = direct(lm, [256, 256, *TEXT[:340].encode()], 341)
    assert likelihood != expected
    assert likelihood == pytest.approx(expected, rel=0.01)


def test_long_texts_slide_a_window(task_folder):
    lm = SiftLM(MODEL, None, "bytes", c=0.0, max_length=300)
    (likelihood,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (TEXT[:400],)))
    tokens = [256, 256, *TEXT[:400].encode()]  # 401 predictions: 300, then 101 with 300 before them
    first, _ = direct(lm, tokens[:301], 300)
    second, _ = direct(lm, tokens[-301:], 101)
    assert likelihood == pytest.approx(first + second, abs=1e-3)


def test_tasks_report_accuracy_and_bits_with_what_was_loaded(task_folder, caplog):
    caplog.set_level(logging.INFO, logger="lm_eval.hf-sift")
    exact = evaluate(task_folder, "records", "source", c=0.0)
    sifted = evaluate(task_folder, "records", "source", c=2.0)
    assert exact["results"]["records"]["acc,none"] == 1.0
    assert sifted["results"]["records"]["acc,none"] == 1.0
    bits = [run["results"]["source"]["bits_per_byte,none"] for run in (exact, sifted)]
    assert bits[0] != bits[1]
    assert bits[1] == pytest.approx(bits[0], abs=0.02)

    report = sifted["config"]["sift"]
    assert report["config"]["c"] == 2.0
    # Two bytes for each of the choices; every byte of the texts and <bos>, but the steps begin with
    # the 256th token.
    assert report["scored_tokens"] == 4 * 4 * 2 + 461 + 401
    assert report["decoded_tokens"] == 4 * 4 * 2 + (461 - 255) + (401 - 255)
    assert 0.02 < report["loaded_fraction"] < 0.3
    assert exact["config"]["sift"]["loaded_fraction"] == 1.0
    log = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "lm_eval.hf-sift"]
    assert [level for level, _ in log] == ["INFO", "WARNING", "INFO"]
    assert log[1][1].endswith("no value row was left out, so these results are exact attention's")
    assert "384 of 894 scored tokens were predicted by decode steps" in log[2][1]
    assert "V rows loaded" in log[2][1]


def test_generation_sifts():
    lm = SiftLM(MODEL, None, "bytes", c=2.0, batch_size=2)
    options = {"until": ["<eos>"], "max_gen_toks": 6, "do_sample": False}
    pairs = [(TEXT[:400], options), (TEXT[:350], options)]
    texts = lm.generate_until(requests("generate_until", *pairs), disable_tqdm=True)
    assert [len(text) for text in texts] == [6, 6]
    assert lm.sifted["decode_calls"] == 5 * lm.model.config.num_hidden_layers
    assert lm.sifted["loaded_fraction"] < 0.3


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="hf-sift: batch_size must be a positive number, got 'au"):
        SiftLM(MODEL, None, "bytes", batch_size="auto")
    with pytest.raises(ValueError, match="hf-sift: decode_from must be at least 1, got 0"):
        SiftLM(MODEL, 0, "bytes")
    with pytest.raises(ValueError, match="SiftConfig: residual must be"):
        SiftLM(MODEL, None, "bytes", residual="all")
    lm = SiftLM(MODEL, None, "bytes", max_length=4, skip_layers=1)
    assert lm.sifted["config"]["skip_layers"] == (1,)
    with pytest.raises(ValueError, match="at most max_length = 4 tokens, got 5"):
        lm.loglikelihood(requests("loglikelihood", ("a", "bcdef")))


def test_the_command_line_is_the_harness_own(task_folder, tmp_path):
    command = [sys.executable, "-m", "sift_attention.eval.lm_eval", "run", "--model", "hf-sift"]
    command += ["--model_args", f"pretrained={MODEL}", "tokenizer=bytes", "c=4", "decode_from=300"]
    command += ["--tasks", "records", "--include_path", str(task_folder), "--device", "cpu"]
    command += ["--limit", "1", "--output_path", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "records" in run.stdout
    assert "8 of 8 scored tokens were predicted by decode steps" in run.stderr
    (results,) = tmp_path.rglob("results_*.json")
    sift = json.loads(results.read_text())["config"]["sift"]
    assert sift["config"]["c"] == 4
    assert sift["decode_from"] == 300
    assert 0.0 < sift["loaded_fraction"] < 0.2
