"""Seeded generators of byte sequences: text, repeats, recall, needles, tracking, word counts.

Every generator takes a random generator, the number of tokens and the text to draw from, and
returns a `Sample`, which says what to learn and what the context determines, so the same code
trains a model and scores it.
"""

import numpy as np
from numpy.typing import NDArray

from .corpus import read_prose
from .needles import needles, passkey, tracking
from .tokens import BOS, SEP, Sample, Task, check_length, window
from .words import common, frequent


def text(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """A window of the corpus. Nothing is an answer: text is scored by its likelihood."""
    check_length("text", length)
    tokens = window(rng, length, corpus)
    weights = np.ones(length, np.float32)
    weights[0] = 0
    return Sample(tokens, weights, np.zeros(length, np.bool_), np.full(length, -1))


def repeats(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """A segment of 8 to length/2 tokens, repeated to the end; the copies are the answers.

    The segment is text in one of four samples, else random bytes from an alphabet of 16, 64 or 256.
    The first two tokens of the second copy are no answers: they tell that the repetition began.
    """
    check_length("repeats", length)
    period = int(rng.integers(8, length // 2 + 1))
    if rng.random() < 0.25:
        segment = window(rng, period + 1, corpus)[1:]
    else:
        alphabet = rng.choice(256, int(rng.choice([16, 64, 256])), replace=False)
        segment = rng.choice(alphabet, period)
    return repeated([BOS], segment.astype(np.int64), length)


def repeated(start: list[int], segment: NDArray[np.int64], length: int) -> Sample:
    """Start tokens and a segment [P], repeated up to `length` tokens; see `repeats`."""
    num_copies = length // len(segment) + 1
    tokens = np.concatenate([np.array(start, np.int64), np.tile(segment, num_copies)])[:length]
    position = np.arange(length)
    answers = position >= len(start) + len(segment) + 2
    sources = np.where(answers, position - len(segment), -1)
    return Sample(tokens, answers.astype(np.float32), answers, sources)


def mqar(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """Multi-query associative recall: 4 to 128 pairs, `SEP`, then the pairs asked in random order.

    Keys are distinct bytes below 128, values bytes from 128 up; all values after `SEP` are answers.
    The corpus is not used; all tasks share one signature.

    Source: Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models",
        2023, section 4.
    """
    check_length("mqar", length)
    num_pairs = int(rng.integers(4, min(128, length // 4) + 1))
    pairs = np.stack([rng.permutation(128)[:num_pairs], rng.integers(128, 256, num_pairs)], axis=1)
    num_rounds = length // (2 * num_pairs) + 1
    order = np.concatenate([rng.permutation(num_pairs) for _ in range(num_rounds)])
    tokens = np.concatenate([[BOS], pairs.ravel(), [SEP], pairs[order].ravel()])[:length]
    position = np.arange(length)
    first_question = 2 * num_pairs + 2
    answers = (position > first_question) & (position % 2 == 1)
    asked = order[(position[answers] - first_question) // 2]
    sources = np.full(length, -1)
    sources[answers] = 2 * asked + 2
    return Sample(tokens.astype(np.int64), answers.astype(np.float32), answers, sources)


def topic_shift(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """A window of the corpus that gives way to English prose in the middle; scored as text is.

    What a policy learnt of the first half, it applies to another kind of text.
    """
    check_length("topic_shift", length)
    middle = length // 2
    tokens = window(rng, length, corpus)
    tokens[middle:] = window(rng, length - middle + 1, read_prose())[1:]
    weights = np.ones(length, np.float32)
    weights[[0, middle]] = 0
    return Sample(tokens, weights, np.zeros(length, np.bool_), np.full(length, -1))


# What models are trained on and measured by.
TASKS: dict[str, Task] = {
    "text": text,
    "repeats": repeats,
    "mqar": mqar,
    "needles": needles,
    "passkey": passkey,
    "tracking": tracking,
    "frequent": frequent,
    "common": common,
}
# What no model is trained on.
STRESS_TASKS: dict[str, Task] = {"topic_shift": topic_shift}
EVALUATION_TASKS = TASKS | STRESS_TASKS
