"""Byte tokens with four marks, and the sample that every task generates from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BOS = 256  # begins every sequence
SEP = 257  # between a key and its value; ends the list of pairs of `mqar`
KEY = 258  # opens a record: KEY key key SEP value value
QRY = 259  # opens a question: QRY key key SEP, to be answered by value value
VOCAB_SIZE = 260

MIN_LENGTH = 64
_MARKS = {BOS: "<bos>", SEP: "<sep>", KEY: "<key>", QRY: "<qry>"}


@dataclass(frozen=True)
class Sample:
    """One sequence of T tokens; entry t of the other arrays is about predicting tokens[t].

    Attributes:
        tokens (int64 [T]): token ids; in the byte tasks below `VOCAB_SIZE`, tokens[0] is `BOS`.
        weights (float32 [T]): training weight, 0 where the token cannot be predicted. A model
            trained with them predicts nothing meaningful there: compare models elsewhere.
        answers (bool [T]): whether tokens[:t] determine tokens[t], up to chance in `repeats`.
        sources (int64 [T]): where the context holds an answer; -1 where no single place does.
    """

    tokens: NDArray[np.int64]
    weights: NDArray[np.float32]
    answers: NDArray[np.bool_]
    sources: NDArray[np.int64]

    @property
    def scored(self) -> NDArray[np.bool_]:
        """What an evaluation scores, bool [T]: the answers, or without any all that has weight."""
        return self.answers if self.answers.any() else self.weights > 0


Task = Callable[[np.random.Generator, int, NDArray[np.uint8]], Sample]


def stacked(samples: Sequence[Sample], *names: str) -> tuple[Tensor, ...]:
    """Arrays of samples of equal length, by name: a tensor [B, T] each, as "tokens", "scored"."""
    return tuple(
        torch.from_numpy(np.stack([getattr(sample, name) for sample in samples])) for name in names
    )


def encode(text: str) -> NDArray[np.int64]:
    """Tokens of a text: its UTF-8 bytes, without `BOS`."""
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)


def decode(tokens: NDArray[np.int64]) -> str:
    """Text of tokens [T] as UTF-8 with replacement characters; the marks as <bos>, <sep>, ..."""
    parts = bytearray()
    for token in tokens.tolist():
        parts += _MARKS[token].encode() if token in _MARKS else bytes([token])
    return parts.decode(errors="replace")


def check_length(task: str, length: int) -> None:
    """Refuse sequences that are too short for a task."""
    if length < MIN_LENGTH:
        raise ValueError(f"{task}: length must be at least {MIN_LENGTH}, got {length}")


def window(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> NDArray[np.int64]:
    """`BOS` and the length - 1 bytes that follow a random offset of the corpus."""
    num_bytes = length - 1
    if len(corpus) < num_bytes:
        raise ValueError(f"tasks: corpus must have at least {num_bytes} bytes, got {len(corpus)}")
    start = int(rng.integers(0, len(corpus) - num_bytes + 1))
    return np.concatenate([[BOS], corpus[start : start + num_bytes]]).astype(np.int64)
