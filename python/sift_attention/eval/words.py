"""Streams of words that must be counted: which are the most frequent, which are common.

A word is one byte from 128 up; what the answer needs is spread over the whole context, so no small
set of keys holds it.

Source of the shapes: Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context
Language Models?", 2024, section 3.3. The generators are ours.
"""

import numpy as np
from numpy.typing import NDArray

from .tokens import BOS, QRY, SEP, Sample, check_length

NUM_FREQUENT = 3
_ZIPF_EXPONENT = 1.5
NUM_COMMON = 4


def frequent(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """Words drawn by Zipf's law; after QRY SEP the three most frequent, most frequent first.

    The corpus is not used; all tasks share one signature.
    """
    check_length("frequent", length)
    words = rng.permutation(np.arange(128, 256))[: int(rng.integers(8, 65))]
    counts = frequent_counts(length - 3 - NUM_FREQUENT, np.ones(len(words), np.int64))
    return _stream(rng.permutation(np.repeat(words, counts)), words[:NUM_FREQUENT])


def common(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """Four common words, three times as frequent as the rest; after QRY SEP they, in byte order.

    The corpus is not used; all tasks share one signature.
    """
    check_length("common", length)
    words = rng.permutation(np.arange(128, 256))[: int(rng.integers(8, 25)) + NUM_COMMON]
    counts = common_counts(length - 3 - NUM_COMMON, np.ones(len(words), np.int64))
    return _stream(rng.permutation(np.repeat(words, counts)), np.sort(words[:NUM_COMMON]))


def frequent_counts(room: int, costs: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each word comes, most frequent first, by Zipf's law.

    Args:
        room (int): tokens that the stream may take.
        costs (int64 [W]): tokens of each word.

    Returns:
        int64 [W]: counts, which leave fewer tokens over than the first word has. In a room too
        small for that the first four need not differ.
    """
    share = np.arange(1, len(costs) + 1) ** -_ZIPF_EXPONENT
    num_words = room / ((share * costs).sum() / share.sum())
    counts: NDArray[np.int64] = np.floor(share / share.sum() * num_words).astype(np.int64)
    # What rounding leaves over makes the most frequent word more so.
    counts[0] += (room - (counts * costs).sum()) // costs[0]
    return counts


def common_counts(room: int, costs: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each word comes: the first `NUM_COMMON` at least three times as often as others.

    Args and returns as `frequent_counts`; in a room too small the last counts are 0.
    """
    shares = np.where(np.arange(len(costs)) < NUM_COMMON, 3, 1)
    counts: NDArray[np.int64] = shares * (room // (shares * costs).sum())
    counts[:NUM_COMMON] += (room - (counts * costs).sum()) // costs[:NUM_COMMON].sum()
    counts[0] += (room - (counts * costs).sum()) // costs[0]
    return counts


def _stream(words: NDArray[np.int64], answer: NDArray[np.int64]) -> Sample:
    """A stream of words, QRY SEP and the answer; only the answer can be predicted."""
    tokens = np.concatenate([[BOS], words, [QRY, SEP], answer])
    answers = np.arange(len(tokens)) >= len(tokens) - len(answer)
    weights = np.where(answers, len(tokens) / (4 * len(answer)), 0).astype(np.float32)
    return Sample(tokens, weights, answers, np.full(len(tokens), -1))
