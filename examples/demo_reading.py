"""Part 1 of the demo: a trained byte model reads real source files, exactly and sifted."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import sift_attention as sift
from demo_screen import TwoColumns, heading, say, table
from sift_attention.eval.corpus import read_standard_library, standard_library_files
from sift_attention.eval.tasks import TASKS
from sift_attention.eval.teacher_forced import teacher_forced
from sift_attention.eval.tokens import BOS, decode, encode, stacked

MODEL = Path(__file__).resolve().parent / "model"
PROMPT_BYTES = 1600
TEMPERATURE = 0.9


@dataclass
class Reading:
    """What part 1 found, for the closing table."""

    loaded_fraction: float
    accuracy: dict[str, tuple[float, float]]  # task: exact, sifted


def run(quick: bool) -> Reading:
    """Generate side by side, then answer recall questions.

    One thread: in layers this small, waking a second one costs more than it does.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _read(quick)
    finally:
        torch.set_num_threads(num_threads)


def _read(quick: bool) -> Reading:
    heading("1  A trained byte model reads the Python standard library")
    model = AutoModelForCausalLM.from_pretrained(MODEL, local_files_only=True).eval()
    say(
        f"A Llama-type model of {model.num_parameters() / 1e6:.2f} M parameters, trained by a "
        "script in this repository, reads a file that it has not seen and continues it. Left: "
        "dense attention of PyTorch. Right: sifted with the default SiftConfig(), which loads the "
        "value rows that a head gives more than twice uniform attention. Both draw their bytes "
        f"at temperature {TEMPERATURE} with the same random numbers."
    )
    _continue_text(model, num_tokens=160 if quick else 400)
    return _recall(model, length=1024 if quick else 2048)


def _traffic(loaded_fraction: float, sifted_calls: int) -> str:
    return (
        f"  V rows loaded: {loaded_fraction:.1%}    K + V bytes read: "
        f"{(1 + loaded_fraction) / 2:.1%} of dense    attention calls sifted: {sifted_calls:,}"
    )


def _continue_text(exact: PreTrainedModel, num_tokens: int) -> None:
    """Continue a held-out file exactly and sifted, in step, printed as both texts grow.

    Both draw with the same random numbers, so they differ only where the attention does.
    """
    sifted = copy.deepcopy(exact)
    path = next(
        p for p in standard_library_files("held_out") if p.stat().st_size > 4 * PROMPT_BYTES
    )
    source = path.read_text(errors="replace")
    start = source.index("\n", len(source) // 3) + 1
    prompt = source[start : source.index("\n", start + PROMPT_BYTES) + 1]
    tokens = torch.from_numpy(np.concatenate([[BOS], encode(prompt)]))[None]
    print(f"\n{path.name}: {tokens.shape[1]:,} tokens of prompt, which ends in")
    for line in prompt.splitlines()[-3:]:
        print(f"    {line}")
    print()

    columns = TwoColumns("exact", "sifted")
    models, inputs, caches = (exact, sifted), [tokens, tokens], [None, None]
    generator = torch.Generator().manual_seed(5)
    num_equal, first_difference = 0, None
    with sift.hf.enabled(sifted, sift.SiftConfig()) as handle:
        for step in range(num_tokens):
            # The arg max of logits plus Gumbel noise is a draw from their softmax.
            noise = -torch.empty(BOS).exponential_(generator=generator).log()
            for i, model in enumerate(models):
                output = model(input_ids=inputs[i], past_key_values=caches[i], use_cache=True)
                inputs[i] = (output.logits[:, -1:, :BOS] / TEMPERATURE + noise).argmax(-1)
                caches[i] = output.past_key_values
            left, right = (int(token) for token in inputs)
            columns.add(decode(np.array([left])), decode(np.array([right])))
            num_equal += left == right
            if left != right and first_difference is None:
                first_difference = step
        total = handle.stats().total
    columns.finish()
    until = "never differ" if first_difference is None else f"first differ at {first_difference}"
    print(f"\n  Equal tokens: {num_equal} of {num_tokens}; they {until}.")
    print(_traffic(total.loaded_fraction, total.decode_calls))


def _recall(model: PreTrainedModel, length: int) -> Reading:
    """Questions about the context, teacher-forced: every token past half is one decode step."""
    half, rows_per_task = length // 2, 3
    print()
    say(
        f"Recall, {length:,} tokens each, the second half fed token by token through decode: "
        "needles are records hidden in source text, mqar lists up to 128 key-value pairs and asks "
        "for all of them, text is source code. KL is from the exact to the sifted prediction."
    )
    print()
    rng = np.random.default_rng(11)
    corpus = read_standard_library("held_out")
    tasks = [name for name in ("needles", "mqar", "text") for _ in range(rows_per_task)]
    samples = [TASKS[name](rng, length, corpus) for name in tasks]
    tokens, answers = stacked(samples, "tokens", "answers")
    targets, answers = tokens[:, half:], answers[:, half:]
    result = teacher_forced(model, tokens, prefill=half - 1)

    said = (result.exact_top1, result.sifted_top1)
    _print_answers(targets[0], answers[0], said[0][0], said[1][0], tokens[0, half - 3 :])
    rows, accuracy = [], {}
    for name in dict.fromkeys(tasks):
        chosen = torch.tensor([task == name for task in tasks])
        asked = answers[chosen]
        cells = ["", "", ""]
        if asked.any():
            exact, sifted = (float((t == targets)[chosen][asked].float().mean()) for t in said)
            accuracy[name] = (exact, sifted)
            cells = [f"{int(asked.sum()):,}", f"{exact:.1%}", f"{sifted:.1%}"]
        same = float((said[0] == said[1])[chosen].float().mean())
        rows.append([name, *cells, f"{same:.1%}", f"{float(result.kl[chosen].mean()):.5f} nats"])
    table(["task", "answers", "exact", "sifted", "same top token", "KL per token"], rows)
    loaded_fraction = float(result.loaded_fraction.mean())
    print(_traffic(loaded_fraction, result.sifted_calls))
    return Reading(loaded_fraction, accuracy)


def _print_answers(
    targets: Tensor, answers: Tensor, exact: Tensor, sifted: Tensor, context: Tensor
) -> None:
    """The first questions of a needle text: key, right value, what both models say.

    `context` begins three tokens before `targets`: a question is QRY k k SEP v v.
    """
    rows = []
    starts = [t for t in range(1, len(answers) - 1) if answers[t] and not answers[t - 1]]
    for t in starts[:6]:
        value = slice(t, t + 2)
        key = decode(context[t : t + 2].numpy())
        said = [decode(top[value].numpy()) for top in (exact, sifted)]
        right = decode(targets[value].numpy())
        rows.append([key, right, *(f"{s} {'✓' if s == right else '✗'}" for s in said)])
    table(["question", "record says", "exact", "sifted"], rows)
