"""Seeded generators of byte sequences: text, repeats, associative recall (MQAR) and needles.

A token is a byte (0-255) or one of four marks. Every generator takes a random generator, the
number of tokens and the text to draw from, and returns a `Sample`, which says what to learn and
what the context determines, so the same code trains a model and scores it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BOS = 256  # begins every sequence
SEP = 257  # between a key and its value; ends the list of pairs of `mqar`
KEY = 258  # opens a record: KEY key key SEP value value
QRY = 259  # opens a question: QRY key key SEP, to be answered by value value
VOCAB_SIZE = 260

MIN_LENGTH = 64
_MARKS = {BOS: "<bos>", SEP: "<sep>", KEY: "<key>", QRY: "<qry>"}
_RECORD = 6  # tokens of a record or a question with its answer
_SLOT = 12  # records sit on a grid this wide, so they never touch
_ALPHANUMERIC = np.frombuffer(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", dtype=np.uint8
)


@dataclass(frozen=True)
class Sample:
    """One sequence of T tokens; entry t of the other arrays is about predicting tokens[t].

    Attributes:
        tokens (int64 [T]): token ids below `VOCAB_SIZE`; tokens[0] is `BOS`.
        weights (float32 [T]): training weight, 0 where the token cannot be predicted. A model
            trained with them predicts nothing meaningful there: compare models elsewhere.
        answers (bool [T]): whether tokens[:t] determine tokens[t], up to chance in `repeats`.
    """

    tokens: NDArray[np.int64]
    weights: NDArray[np.float32]
    answers: NDArray[np.bool_]


Task = Callable[[np.random.Generator, int, NDArray[np.uint8]], Sample]


def encode(text: str) -> NDArray[np.int64]:
    """Tokens of a text: its UTF-8 bytes, without `BOS`."""
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)


def decode(tokens: NDArray[np.int64]) -> str:
    """Text of tokens [T] as UTF-8 with replacement characters; the marks as <bos>, <sep>, ..."""
    parts = bytearray()
    for token in tokens.tolist():
        parts += _MARKS[token].encode() if token in _MARKS else bytes([token])
    return parts.decode(errors="replace")


def text(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """A window of the corpus. Nothing is an answer: text is scored by its likelihood."""
    _check_length("text", length)
    tokens = _window(rng, length, corpus)
    weights = np.ones(length, np.float32)
    weights[0] = 0
    return Sample(tokens, weights, np.zeros(length, np.bool_))


def repeats(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """A segment of 8 to length/2 tokens, repeated to the end; the copies are the answers.

    The segment is text in one of four samples, else random bytes from an alphabet of 16, 64 or 256.
    The first two tokens of the second copy are no answers: they tell that the repetition began.
    """
    _check_length("repeats", length)
    period = int(rng.integers(8, length // 2 + 1))
    if rng.random() < 0.25:
        segment = _window(rng, period + 1, corpus)[1:]
    else:
        alphabet = rng.choice(256, int(rng.choice([16, 64, 256])), replace=False)
        segment = rng.choice(alphabet, period)
    tokens = np.concatenate([[BOS], np.tile(segment, length // period + 1)])[:length]
    answers = np.arange(length) >= period + 3
    return Sample(tokens.astype(np.int64), answers.astype(np.float32), answers)


def mqar(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """Multi-query associative recall: 4 to 128 pairs, `SEP`, then the pairs asked in random order.

    Keys are distinct bytes below 128, values bytes from 128 up; all values after `SEP` are answers.
    The corpus is not used; all tasks share one signature.

    Source: Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models",
        2023, section 4.
    """
    _check_length("mqar", length)
    num_pairs = int(rng.integers(4, min(128, length // 4) + 1))
    pairs = np.stack([rng.permutation(128)[:num_pairs], rng.integers(128, 256, num_pairs)], axis=1)
    num_rounds = length // (2 * num_pairs) + 1
    rounds = [rng.permutation(pairs).ravel() for _ in range(num_rounds)]
    tokens = np.concatenate([[BOS], pairs.ravel(), [SEP], *rounds])[:length]
    first_question = 2 * num_pairs + 2
    answers = (np.arange(length) > first_question) & (np.arange(length) % 2 == 1)
    return Sample(tokens.astype(np.int64), answers.astype(np.float32), answers)


def needles(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """Text with records in its first half and questions about them in its second half.

    A record is KEY k k SEP v v, a question QRY k k SEP v v, with alphanumeric bytes, distinct keys,
    one record and two questions for every 128 tokens. Both value bytes of a question are answers.
    """
    _check_length("needles", length)
    num_records = max(1, length // 128)
    tokens = _window(rng, length, corpus)
    weights = np.full(length, 0.5, np.float32)
    weights[0] = 0
    answers = np.zeros(length, np.bool_)

    keys = rng.choice(len(_ALPHANUMERIC) ** 2, num_records, replace=False)
    key_bytes = _ALPHANUMERIC[np.stack(np.divmod(keys, len(_ALPHANUMERIC)), axis=1)]
    value_bytes = rng.choice(_ALPHANUMERIC, (num_records, 2))

    slots = np.arange(1 + int(rng.integers(0, _SLOT)), length - _RECORD + 1, _SLOT)
    early, late = slots[slots < length // 2], slots[slots >= length // 2]
    for record, start in enumerate(rng.permutation(early)[:num_records]):
        tokens[start : start + _RECORD] = [KEY, *key_bytes[record], SEP, *value_bytes[record]]
        weights[start : start + _RECORD] = 0
    for start in rng.permutation(late)[: 2 * num_records]:
        record = int(rng.integers(0, num_records))
        tokens[start : start + _RECORD] = [QRY, *key_bytes[record], SEP, *value_bytes[record]]
        weights[start : start + 4] = 0
        weights[start + 4 : start + _RECORD] = 8
        answers[start + 4 : start + _RECORD] = True
    return Sample(tokens, weights, answers)


TASKS: dict[str, Task] = {"text": text, "repeats": repeats, "mqar": mqar, "needles": needles}


def _check_length(task: str, length: int) -> None:
    if length < MIN_LENGTH:
        raise ValueError(f"{task}: length must be at least {MIN_LENGTH}, got {length}")


def _window(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> NDArray[np.int64]:
    """`BOS` and the length - 1 bytes that follow a random offset of the corpus."""
    num_bytes = length - 1
    if len(corpus) < num_bytes:
        raise ValueError(f"tasks: corpus must have at least {num_bytes} bytes, got {len(corpus)}")
    start = int(rng.integers(0, len(corpus) - num_bytes + 1))
    return np.concatenate([[BOS], corpus[start : start + num_bytes]]).astype(np.int64)
