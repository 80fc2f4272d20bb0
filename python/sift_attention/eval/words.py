"""Streams of words that must be counted: which are the most frequent, which are common.

A word is one byte from 128 up; what the answer needs is spread over the whole context, so no small
set of keys holds it.

Source of the shapes: Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context
Language Models?", 2024, section 3.3. The generators are ours.
"""

import numpy as np
from numpy.typing import NDArray

from .tokens import BOS, QRY, SEP, Sample, check_length

_NUM_FREQUENT = 3
_ZIPF_EXPONENT = 1.5
_NUM_COMMON = 4


def frequent(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """Words drawn by Zipf's law; after QRY SEP the three most frequent, most frequent first.

    The corpus is not used; all tasks share one signature.
    """
    check_length("frequent", length)
    num_words = length - 3 - _NUM_FREQUENT
    words = rng.permutation(np.arange(128, 256))[: int(rng.integers(8, 65))]
    share = np.arange(1, len(words) + 1) ** -_ZIPF_EXPONENT
    counts = np.floor(share / share.sum() * num_words).astype(np.int64)
    # Rounding leaves some words over; the gaps between the first four counts stay clear.
    counts[0] += num_words - counts.sum()
    return _stream(rng.permutation(np.repeat(words, counts)), words[:_NUM_FREQUENT])


def common(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """Four common words, three times as frequent as the rest; after QRY SEP they, in byte order.

    The corpus is not used; all tasks share one signature.
    """
    check_length("common", length)
    num_words = length - 3 - _NUM_COMMON
    words = rng.permutation(np.arange(128, 256))[: int(rng.integers(8, 25)) + _NUM_COMMON]
    num_rest = len(words) - _NUM_COMMON
    each = num_words // (3 * _NUM_COMMON + num_rest)
    counts = np.concatenate([np.full(_NUM_COMMON, 3 * each), np.full(num_rest, each)])
    counts[:_NUM_COMMON] += (num_words - counts.sum()) // _NUM_COMMON
    counts[0] += num_words - counts.sum()
    return _stream(rng.permutation(np.repeat(words, counts)), np.sort(words[:_NUM_COMMON]))


def _stream(words: NDArray[np.int64], answer: NDArray[np.int64]) -> Sample:
    """A stream of words, QRY SEP and the answer; only the answer can be predicted."""
    tokens = np.concatenate([[BOS], words, [QRY, SEP], answer])
    answers = np.arange(len(tokens)) >= len(tokens) - len(answer)
    weights = np.where(answers, len(tokens) / (4 * len(answer)), 0).astype(np.float32)
    return Sample(tokens, weights, answers, np.full(len(tokens), -1))
