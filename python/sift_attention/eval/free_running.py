"""Free-running decoding: the exact and the sifted model each continue from their own tokens.

Teacher forcing puts both back on one track at every step; here an error may lead astray. What the
context does not determine, as the questions of a recall task, is given to both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..config import SiftConfig
from ..hf.enable import enabled
from .measure import mean, traffic
from .simulate import check_tokens
from .stepwise import SiftedSteps, Steps
from .tokens import Sample, stacked


@torch.inference_mode()
def free_running(
    model: Any,
    samples: Sequence[Sample],
    num_steps: int,
    config: SiftConfig | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Generate greedily, exactly and sifted, after the same prompt and compare.

    Each model reads N - R tokens as a dense prompt, then decodes R tokens. Those that a sample
    scores are its own most likely ones, and it goes on from them: all tokens of text, the answers
    of other tasks. The others are given.

    Args:
        model: Hugging Face causal language model; evaluated as it stands, so put it in eval mode.
        samples: B of one task, of N tokens each.
        num_steps (int): R, 1 <= R < N.
        config: defaults to SiftConfig().
        progress: show a progress bar over the steps of each model.

    Returns:
        dict: numbers; NaN where there was nothing to measure.

        - num_tokens: tokens that each model generated, over all samples; num_answers: how many of
          them the task knows.
        - first_divergence: generated tokens of a sample before the first that differs, all of them
          if none does; mean over samples. generated: tokens of a sample, mean over samples.
        - equal_tokens: share of the generated tokens that are equal.
        - accuracy: share of the answers that the sifted model generates; exact: accuracy of the
          exact one.
        - v_fraction and what else `measure.traffic` returns: of the sifted model.
    """
    tokens, scored, answers = stacked(samples, "tokens", "scored", "answers")
    check_tokens("free_running", tokens, num_steps)
    prompt = tokens[:, :-num_steps]
    exact = _generate(Steps(model, prompt).take, tokens, scored, num_steps, progress)
    with enabled(model, config) as handle:
        steps = SiftedSteps(handle, prompt)
        sifted = _generate(steps.take, tokens, scored, num_steps, progress)

    targets, chosen, answers = (x[:, -num_steps + 1 :] for x in (tokens, scored, answers))
    equal = exact == sifted
    before = [_before_first(~row[mask]) for row, mask in zip(equal, chosen, strict=True)]
    return {
        "num_tokens": int(chosen.sum()),
        "num_answers": int(answers.sum()),
        "first_divergence": float(np.mean(before)),
        "generated": mean(chosen.sum(1)),
        "equal_tokens": mean(equal[chosen]),
        "accuracy": mean((sifted == targets)[answers]),
        "exact": {"accuracy": mean((exact == targets)[answers])},
        **traffic(*steps.reads()),
    }


def _generate(
    take: Callable[[Tensor], Tensor], tokens: Tensor, scored: Tensor, num_steps: int, progress: bool
) -> Tensor:
    """Tokens [B, R - 1] after the first decode step: generated where scored, else as given."""
    tokens, length = tokens.clone(), tokens.shape[1]
    positions = range(length - num_steps, length)
    for position in tqdm(positions, desc="free-running", unit="step", disable=not progress):
        logits = take(tokens[:, position])
        if position + 1 < length:
            likely = logits.argmax(-1).cpu()
            given = tokens[:, position + 1]
            tokens[:, position + 1] = torch.where(scored[:, position + 1], likely, given)
    return tokens[:, length - num_steps + 1 :]


def _before_first(marks: Tensor) -> int:
    """Entries of a bool row [T] before its first True; T if there is none."""
    return int(marks.int().argmax()) if marks.any() else len(marks)
