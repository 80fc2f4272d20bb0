"""What prompts are made of: pieces of text in a tokenizer's tokens, put together to a length.

Pieces are tokenised one by one, so that the same piece is the same tokens wherever it stands, an
answer begins at the border of a token, and a sequence has exactly as many tokens as it should.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .corpus import Split, read_prose, standard_library_files
from .tokens import Sample

MIN_LENGTH = 256
_NUM_WORDS = 512
_MAX_SOURCE_BYTES = 2_000_000  # more than any window needs


class Piece(NamedTuple):
    """A stretch of text in a prompt.

    Attributes:
        text: tokenised alone.
        fact: what the piece tells, under any name; None for mere wording.
        asked: whether the context determines the piece: then its tokens are answers, and their
            source is the piece that told the same fact, if there was one.
    """

    text: str
    fact: Hashable = None
    asked: bool = False


class Pieces:
    """A tokenizer with the texts and words that it is to read.

    Args:
        tokenizer: of Hugging Face.
        split: which files of the standard library to read.
    """

    def __init__(self, tokenizer: Any, split: Split = "held_out") -> None:
        self._tokenizer = tokenizer
        self._split: Split = split
        self._known: dict[str, list[int]] = {}
        self._anchor = self._encode("\n")
        bos = tokenizer.bos_token_id
        self.start: list[int] = [] if bos is None else [bos]  # of every sequence

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return tokens

    def tokens(self, text: str) -> list[int]:
        """Tokens of a piece as they are inside a text.

        Some tokenizers put a space before whatever they are given. The piece is therefore read
        after a line break, unless it forms a token with that.
        """
        if text not in self._known:
            tokens, anchor = self._encode("\n" + text), self._anchor
            within = tokens[: len(anchor)] == anchor
            self._known[text] = tokens[len(anchor) :] if within else self._encode(text)
        return self._known[text]

    def size(self, pieces: Sequence[Piece]) -> int:
        """How many tokens pieces take."""
        return sum(len(self.tokens(piece.text)) for piece in pieces)

    @cached_property
    def _source_text(self) -> str:
        texts, num_bytes = [], 0
        for path in standard_library_files(self._split):
            texts.append(path.read_text(errors="replace"))
            num_bytes += path.stat().st_size
            if num_bytes > _MAX_SOURCE_BYTES:
                break
        return "\n".join(texts)

    @cached_property
    def source(self) -> NDArray[np.int64]:
        """Tokens of source files of the standard library."""
        return self._plain(self._source_text)

    @cached_property
    def prose(self) -> NDArray[np.int64]:
        """Tokens of `corpus.read_prose`."""
        return self._plain(read_prose().tobytes().decode())

    def _plain(self, text: str) -> NDArray[np.int64]:
        """Tokens of a long text without the tokenizer's marks, which some source files spell."""
        tokens = np.array(self._encode(text))
        return tokens[~np.isin(tokens, self._tokenizer.all_special_ids)]

    @cached_property
    def words(self) -> list[str]:
        """Plain words of the source files, each after a space: those of the fewest tokens."""
        counts = Counter(re.findall(r"\b[a-z]{4,8}\b", self._source_text))
        words = [f" {word}" for word, count in counts.items() if count >= 5]
        return sorted(words, key=lambda word: (len(self.tokens(word)), word))[:_NUM_WORDS]


class Draft:
    """A prompt of a given length under construction, with filler from the source files.

    Args:
        task: its name, for messages.
        rng: chooses the filler.
        length: tokens of the finished prompt.
        pieces: tokenizer and texts.
    """

    def __init__(self, task: str, rng: np.random.Generator, length: int, pieces: Pieces) -> None:
        if length < MIN_LENGTH:
            raise ValueError(f"{task}: length must be at least {MIN_LENGTH}, got {length}")
        self._task, self.length, self.pieces = task, length, pieces
        self._tokens = list(pieces.start)
        self._answers: list[int] = []
        self._sources: dict[int, int] = {}
        self._told: dict[Hashable, int] = {}
        self._filler = iter(self.window(rng, pieces.source, length).tolist())

    def __len__(self) -> int:
        return len(self._tokens)

    def window(
        self, rng: np.random.Generator, corpus: NDArray[np.int64], length: int
    ) -> NDArray[np.int64]:
        """As many tokens that follow a random offset of a text."""
        if len(corpus) < length:
            raise ValueError(
                f"{self._task}: length must be at most the {len(corpus)} tokens of the corpus, "
                f"got {length}"
            )
        start = int(rng.integers(0, len(corpus) - length + 1))
        return corpus[start : start + length]

    def room(self, end: int, *blocks: Sequence[Piece]) -> int:
        """Tokens that are left before position `end` once the blocks are written.

        Raises:
            ValueError: fewer than none.
        """
        room = end - len(self) - sum(self.pieces.size(block) for block in blocks)
        self.check(room >= 0)
        return room

    def check(self, fits: bool) -> None:
        """Refuse a length that is too short for what has to stand in it."""
        if not fits:
            raise ValueError(
                f"{self._task}: length must be larger with this tokenizer, got {self.length}"
            )

    def write(self, block: Sequence[Piece]) -> None:
        """Append pieces."""
        for text, fact, asked in block:
            tokens, start = self.pieces.tokens(text), len(self)
            self._tokens += tokens
            if asked:
                self._answers += range(start, start + len(tokens))
                if fact in self._told:
                    for place in range(len(tokens)):
                        self._sources[start + place] = self._told[fact] + place
            elif fact is not None:
                self._told[fact] = start

    def fill(self, num_tokens: int) -> None:
        """Append what comes next in the source files."""
        self._tokens += [next(self._filler) for _ in range(num_tokens)]

    def spread(self, rng: np.random.Generator, blocks: Sequence[Sequence[Piece]], end: int) -> None:
        """Append blocks in their order, with filler at random places among them, up to `end`."""
        room = self.room(end, *blocks)
        cuts = np.sort(rng.integers(0, room + 1, len(blocks)))
        for num_tokens, block in zip(np.diff(cuts, prepend=0).tolist(), blocks, strict=True):
            self.fill(num_tokens)
            self.write(block)
        self.fill(end - len(self))

    def sample(self) -> Sample:
        """The finished prompt, cut to its length; all answers weigh the same."""
        tokens = np.array(self._tokens[: self.length], np.int64)
        answers = np.zeros(self.length, np.bool_)
        sources = np.full(self.length, -1)
        for position in self._answers:
            if position < self.length:
                answers[position] = True
                sources[position] = self._sources.get(position, -1)
        return Sample(tokens, answers.astype(np.float32), answers, sources)
