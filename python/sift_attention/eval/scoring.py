"""Likelihood and recall of a language model in one dense forward pass, no decoding."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .tokens import Sample, stacked


@dataclass(frozen=True)
class Score:
    """What `score` measured over all samples together.

    Attributes:
        bits_per_token (float): mean negative log2-likelihood of all tokens but the first; for text
            with byte tokens, bits per byte.
        accuracy (float): share of the answers that the model ranks first; NaN without answers.
        num_answers (int): answers scored.
    """

    bits_per_token: float
    accuracy: float
    num_answers: int


@torch.inference_mode()
def score(model: Any, samples: Sequence[Sample], batch_size: int = 4) -> Score:
    """Score a Hugging Face causal language model on samples of equal length.

    Args:
        model: takes `input_ids` [B, T] and returns an object with `logits` [B, T, vocabulary].
        samples: at least one, all of one length.
        batch_size (int): samples per forward pass.

    Returns:
        Score: see there.

    Raises:
        ValueError: without samples, or if their lengths differ.
    """
    lengths = {len(sample.tokens) for sample in samples}
    if len(lengths) != 1:
        raise ValueError(f"score: samples must share one length, got lengths {sorted(lengths)}")
    total_nats, num_tokens, num_right, num_answers = 0.0, 0, 0, 0
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        tokens, answers = (t.to(model.device) for t in stacked(batch, "tokens", "answers"))
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        targets, asked = tokens[:, 1:], answers[:, 1:]
        total_nats += float(cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
        num_tokens += targets.numel()
        num_right += int((logits.argmax(-1) == targets)[asked].sum())
        num_answers += int(asked.sum())
    accuracy = num_right / num_answers if num_answers else math.nan
    return Score(total_nats / num_tokens / math.log(2), accuracy, num_answers)
