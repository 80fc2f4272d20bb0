"""The tasks of `tasks.py` in English, for models with a tokenizer: `PROMPTS`, by the same names.

What the context determines is worded as it was told, so that a base model too can answer. An answer
of several tokens counts token by token.

Source of the shapes: Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context
Language Models?", 2024, section 3. Generators and sentences are ours.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .pieces import Draft, Piece, Pieces
from .tasks import repeated
from .tokens import Sample
from .words import NUM_COMMON, NUM_FREQUENT, common_counts, frequent_counts

Prompt = Callable[[np.random.Generator, int, Pieces], Sample]
Block = list[Piece]

_HOPS = 3  # of a chain of variables
_MAX_PAIRS = 64


def text(rng: np.random.Generator, length: int, pieces: Pieces) -> Sample:
    """A window of source files. Nothing is an answer: text is scored by its likelihood."""
    draft = Draft("text", rng, length, pieces)
    draft.fill(length - len(draft))
    return _as_text(draft.sample().tokens, [0])


def repeats(rng: np.random.Generator, length: int, pieces: Pieces) -> Sample:
    """A segment of 8 to length/2 tokens, repeated to the end; the copies are the answers.

    The segment is text in one of four samples, else random tokens that occur in source files.
    """
    draft = Draft("repeats", rng, length, pieces)
    period = int(rng.integers(8, length // 2 + 1))
    if rng.random() < 0.25:
        segment = draft.window(rng, pieces.source, period)
    else:
        segment = rng.choice(np.unique(pieces.source), period)
    return repeated(pieces.start, segment, length)


def mqar(rng: np.random.Generator, length: int, pieces: Pieces) -> Sample:
    """Multi-query associative recall: pairs of words, then all of them again in random order.

    4 to 64 pairs that take at most half of the prompt; it is asked round after round.

    Source: Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models",
        2023, section 4.
    """
    draft = Draft("mqar", rng, length, pieces)
    draft.write([Piece("Pairs of words:")])
    keys = rng.permutation(pieces.words)[:_MAX_PAIRS]
    pairs = [
        [Piece(f"\n{key[1:]} ->"), Piece(value, fact=key)]
        for key, value in zip(keys.tolist(), rng.choice(pieces.words, len(keys)), strict=True)
    ]
    most = _num_fitting([pieces.size(pair) for pair in pairs], draft.room(length // 2))
    draft.check(most >= 4)
    pairs = pairs[: int(rng.integers(4, most + 1))]
    for pair in pairs:
        draft.write(pair)
    draft.write([Piece("\n\nThe same pairs in other orders:")])
    while len(draft) < length:
        for pair in rng.permutation(len(pairs)):
            draft.write(_asked(pairs[pair]))
    return draft.sample()


def needles(rng: np.random.Generator, length: int, pieces: Pieces) -> Sample:
    """Multi-key needles: codes of things in the first half; each is asked once in the second.

    One for every 128 tokens, or as many as fit.
    """
    draft = Draft("needles", rng, length, pieces)
    draft.write([Piece("Between the lines stand codes of things. Each will be asked for.\n")])
    things = rng.permutation(pieces.words)[: 2 * max(1, length // 128)].reshape(-1, 2)
    records = [
        [Piece(f"\nThe code of the{first}{second} is"), Piece(_number(rng), first), Piece(".\n")]
        for first, second in things.tolist()
    ]
    num_records = _num_fitting([pieces.size(record) for record in records], draft.room(length // 2))
    draft.check(num_records > 0)
    draft.spread(rng, records[:num_records], length // 2)
    questions = [_asked(records[record]) for record in rng.permutation(num_records)]
    draft.spread(rng, questions, length)
    return draft.sample()


def passkey(rng: np.random.Generator, length: int, pieces: Pieces) -> Sample:
    """One number anywhere in the first nine tenths, and its question at the end."""
    draft = Draft("passkey", rng, length, pieces)
    draft.write([Piece("Between the lines stands a pass key. It will be asked for at the end.\n")])
    told = [Piece("\nThe pass key is"), Piece(_number(rng), fact="key")]
    record = [*told, Piece(". Remember it.\n")]
    room = draft.room(length, record, told)
    draft.fill(int(rng.integers(0, 9 * room // 10 + 1)))
    draft.write(record)
    draft.fill(draft.room(length, told))
    draft.write(_asked(told))
    return draft.sample()


def tracking(rng: np.random.Generator, length: int, pieces: Pieces) -> Sample:
    """Chains of variables, assigned in the first half; in the second each is walked to its end.

    One chain for every 384 tokens, or as many as fit. The assignments of all chains are mixed;
    those of one chain stand in order.
    """
    draft = Draft("tracking", rng, length, pieces)
    draft.write([Piece("Lines that begin with let assign names. A trace follows them on.\n")])
    names = _coded_words(rng, max(1, length // 384) * (_HOPS + 1)).reshape(-1, _HOPS + 1)
    hops = [_hops(chain) for chain in names.tolist()]
    sizes = [sum(pieces.size(hop) for hop in chain) for chain in hops]
    num_chains = _num_fitting(sizes, draft.room(length // 2))
    draft.check(num_chains > 0)
    order = rng.permutation(np.repeat(np.arange(num_chains), _HOPS))
    draft.spread(rng, [hops[chain].pop(0) for chain in order], length // 2)
    traces = [_trace(names[chain].tolist()) for chain in rng.permutation(num_chains)]
    draft.spread(rng, traces, length)
    return draft.sample()


def frequent(rng: np.random.Generator, length: int, pieces: Pieces) -> Sample:
    """Invented words drawn by Zipf's law, then the three most frequent, most frequent first."""
    words = _coded_words(rng, int(rng.integers(8, 65))).tolist()
    draft = Draft("frequent", rng, length, pieces)
    question = f"\nThe {NUM_FREQUENT} most frequent words, most frequent first:"
    return _counted(draft, rng, words, frequent_counts, question, words[:NUM_FREQUENT])


def common(rng: np.random.Generator, length: int, pieces: Pieces) -> Sample:
    """Four common words, three times as frequent as the rest; then they, in alphabetical order."""
    words = rng.permutation(pieces.words)[: int(rng.integers(8, 25)) + NUM_COMMON].tolist()
    draft = Draft("common", rng, length, pieces)
    question = f"\nThe {NUM_COMMON} words that are more common than the others, by alphabet:"
    return _counted(draft, rng, words, common_counts, question, sorted(words[:NUM_COMMON]))


def topic_shift(rng: np.random.Generator, length: int, pieces: Pieces) -> Sample:
    """Source files that give way to English prose in the middle; scored as text is."""
    draft = Draft("topic_shift", rng, length, pieces)
    middle = length // 2
    draft.fill(length - len(draft))
    tokens = draft.sample().tokens
    tokens[middle:] = draft.window(rng, pieces.prose, length - middle)
    return _as_text(tokens, [0, middle])


def _as_text(tokens: NDArray[np.int64], unpredictable: list[int]) -> Sample:
    weights = np.ones(len(tokens), np.float32)
    weights[unpredictable] = 0
    return Sample(tokens, weights, np.zeros(len(tokens), np.bool_), np.full(len(tokens), -1))


def _asked(block: Block) -> Block:
    """The same wording as a question, in which the context determines every fact."""
    return [piece._replace(asked=piece.fact is not None) for piece in block]


def _num_fitting(sizes: Sequence[int], room: int) -> int:
    """How many of the first sizes sum to no more than `room`."""
    return int(np.searchsorted(np.cumsum(sizes), room, side="right"))


def _number(rng: np.random.Generator) -> str:
    return f" {rng.integers(10_000, 100_000)}"


def _coded_words(rng: np.random.Generator, count: int) -> NDArray[np.str_]:
    """Distinct invented words of three syllables, each after a space [count]."""
    syllables = np.array([first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"])
    numbers = rng.choice(len(syllables) ** 3, count, replace=False)
    parts = np.unravel_index(numbers, (len(syllables),) * 3)
    return np.array([" " + "".join(word) for word in zip(*syllables[np.array(parts)], strict=True)])


def _hops(chain: Sequence[str]) -> list[Block]:
    """The assignments that lead through a chain of names."""
    return [
        [Piece("\nlet"), Piece(name), Piece(" ="), Piece(following, fact=following), Piece("\n")]
        for name, following in itertools.pairwise(chain)
    ]


def _trace(chain: Sequence[str]) -> Block:
    """A question that walks a chain from its first name: trace x = y = z."""
    block = [Piece("\ntrace"), Piece(chain[0])]
    for name in chain[1:]:
        block += [Piece(" ="), Piece(name, fact=name, asked=True)]
    return [*block, Piece("\n")]


def _counted(
    draft: Draft,
    rng: np.random.Generator,
    words: Sequence[str],
    counts_of: Callable[[int, NDArray[np.int64]], NDArray[np.int64]],
    question: str,
    answer: Sequence[str],
) -> Sample:
    """Words in random order, a question and its answer; filler before them makes up the length."""
    head = [Piece("\nA list of words, which will be counted:")]
    end = [Piece(question), *(Piece(word, asked=True) for word in answer)]
    room = draft.room(draft.length, head, end)
    costs = np.array([draft.pieces.size([Piece(word)]) for word in words])
    counts = counts_of(room, costs)
    others = counts[len(answer) :].max()
    draft.check(bool(counts[: len(answer)].min() > others > 0))
    draft.fill(room - int((counts * costs).sum()))
    draft.write(head)
    order = rng.permutation(np.repeat(np.arange(len(words)), counts))
    draft.write([Piece(words[word]) for word in order])
    draft.write(end)
    return draft.sample()


PROMPTS: dict[str, Prompt] = {
    "text": text,
    "repeats": repeats,
    "mqar": mqar,
    "needles": needles,
    "passkey": passkey,
    "tracking": tracking,
    "frequent": frequent,
    "common": common,
    "topic_shift": topic_shift,
}
