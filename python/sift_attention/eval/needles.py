"""Records hidden in text, and questions about them: multi-key needles, a passkey, variable chains.

A record is KEY k k SEP v v, a question QRY k k SEP v v, with alphanumeric bytes. Records stand in
the first half of a sequence, questions in the second, and no key is asked twice, so that no answer
can be copied from an earlier one.

Source of the shapes: Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context
Language Models?", 2024, section 3. The generators are ours.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .tokens import KEY, QRY, SEP, Sample, check_length, window

_ALPHANUMERIC = np.frombuffer(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", dtype=np.uint8
)
_RECORD = 6  # tokens of a record or a question with its answer
_SLOT = 12  # records sit on a grid this wide, so they never touch
_HOPS = 3  # of a chain of variables
_CHAIN_QUESTION = 3 + 3 * _HOPS  # QRY x x, then SEP and the next variable for every hop


@dataclass
class _Page:
    """A text under construction: filler first, then what is written over it."""

    tokens: NDArray[np.int64]
    weights: NDArray[np.float32]
    answers: NDArray[np.bool_]
    sources: NDArray[np.int64]

    @classmethod
    def of_text(cls, rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> "_Page":
        weights = np.full(length, 0.5, np.float32)
        weights[0] = 0
        none = np.full(length, -1)
        return cls(window(rng, length, corpus), weights, np.zeros(length, np.bool_), none)

    def write(self, start: int, tokens: list[int]) -> None:
        self.tokens[start : start + len(tokens)] = tokens
        self.weights[start : start + len(tokens)] = 0

    def answer(self, start: int, source: int) -> None:
        """Two tokens at `start` are determined by those at `source`."""
        self.answers[start : start + 2] = True
        self.sources[start : start + 2] = [source, source + 1]

    def sample(self, share: float) -> Sample:
        """The finished sample; answers take `share` of its training weight."""
        others = float(self.weights.sum())
        self.weights[self.answers] = share / (1 - share) * others / self.answers.sum()
        return Sample(self.tokens, self.weights, self.answers, self.sources)


def needles(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """Multi-key needles: one record for every 64 tokens; each is asked once, in random order."""
    check_length("needles", length)
    page = _Page.of_text(rng, length, corpus)
    early, late = _slots(rng, length, _RECORD)
    num_records = min(max(1, length // 64), len(early), len(late))
    keys = _distinct_names(rng, num_records)
    values = rng.choice(_ALPHANUMERIC, (num_records, 2))
    records = rng.permutation(early)[:num_records]
    questions = rng.permutation(late)[:num_records]
    for key, value, record, question in zip(keys, values, records, questions, strict=True):
        page.write(record, [KEY, *key, SEP, *value])
        page.write(question, [QRY, *key, SEP, *value])
        page.answer(question + 4, record + 4)
    return page.sample(share=0.4)


def passkey(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """One record anywhere in the first nine tenths, and its question at the end."""
    check_length("passkey", length)
    page = _Page.of_text(rng, length, corpus)
    key, value = _distinct_names(rng, 1)[0], rng.choice(_ALPHANUMERIC, 2)
    question = length - _RECORD
    record = int(rng.integers(1, min(length * 9 // 10, question - _RECORD)))
    page.write(record, [KEY, *key, SEP, *value])
    page.write(question, [QRY, *key, SEP, *value])
    page.answer(question + 4, record + 4)
    return page.sample(share=0.2)


def tracking(rng: np.random.Generator, length: int, corpus: NDArray[np.uint8]) -> Sample:
    """Chains of variables: KEY x x SEP y y assigns x to y; a question walks a chain to its end.

    A question is QRY x x SEP y y SEP z z ...: up to three hops from the chain's first variable.
    The assignments of all chains are mixed; those of one chain stand in order. One chain for every
    192 tokens.
    """
    check_length("tracking", length)
    page = _Page.of_text(rng, length, corpus)
    early, late = _slots(rng, length, _CHAIN_QUESTION)
    hops = min(_HOPS, len(early))
    num_chains = min(max(1, length // 192), len(early) // hops, len(late))
    names = _distinct_names(rng, num_chains * (hops + 1)).reshape(num_chains, hops + 1, 2)
    places = np.sort(rng.permutation(early)[: num_chains * hops].reshape(num_chains, hops))
    questions = rng.permutation(late)[:num_chains]
    for chain, records, question in zip(names, places, questions, strict=True):
        page.write(question, [QRY, *chain[0]])
        for hop, record in enumerate(records):
            page.write(record, [KEY, *chain[hop], SEP, *chain[hop + 1]])
            start = question + 3 * (hop + 1)
            page.write(start, [SEP, *chain[hop + 1]])
            page.answer(start + 1, record + 4)
    return page.sample(share=0.4)


def _slots(
    rng: np.random.Generator, length: int, last: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts of records in the first half and of questions, `last` tokens long, in the second."""
    slots = np.arange(1 + int(rng.integers(0, _SLOT)), length, _SLOT)
    early = slots[slots < length // 2]
    return early, slots[(slots >= length // 2) & (slots <= length - last)]


def _distinct_names(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Distinct pairs of alphanumeric bytes [count, 2]."""
    numbers = rng.choice(len(_ALPHANUMERIC) ** 2, count, replace=False)
    names: NDArray[np.uint8] = _ALPHANUMERIC[np.stack(np.divmod(numbers, len(_ALPHANUMERIC)), 1)]
    return names
