"""The tasks in a model's own tokens: English if it has a tokenizer, bytes and marks if not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from transformers import AutoConfig, AutoTokenizer

from .corpus import Split, read_standard_library
from .local import LOCAL_ONLY
from .pieces import Pieces
from .prompts import PROMPTS
from .tasks import EVALUATION_TASKS
from .tokens import VOCAB_SIZE, Sample

T = TypeVar("T")
Draw = Callable[[np.random.Generator, int], Sample]

# A folder without any of these has no tokenizer.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)


def tasks_of(model_folder: str | Path, split: Split = "held_out") -> dict[str, Draw]:
    """Generators of every evaluation task for a model on disk.

    Args:
        model_folder: folder in the form of Hugging Face.
        split: which files of the standard library to read; other files than those that are scored
            serve calibration.

    Returns:
        dict: by the names of `EVALUATION_TASKS`, in their order, functions of a random generator
        and a length to a Sample of exactly that length.

    Raises:
        ValueError: the folder has no tokenizer, and the model does not read `VOCAB_SIZE` tokens.
    """
    folder = Path(model_folder)
    check_vocabulary("tasks_of: model_folder", folder)
    if _has_tokenizer(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL_ONLY)
        pieces = Pieces(tokenizer, split)
        return {name: _drawing(PROMPTS[name], pieces) for name in EVALUATION_TASKS}
    corpus = read_standard_library(split)
    return {name: _drawing(task, corpus) for name, task in EVALUATION_TASKS.items()}


def check_vocabulary(argument: str, folder: Path) -> None:
    """Refuse, as the value of `argument`, a model whose tokens the tasks cannot be told in."""
    if _has_tokenizer(folder):
        return
    config = AutoConfig.from_pretrained(folder, **LOCAL_ONLY)
    vocab_size = config.get_text_config().vocab_size
    if vocab_size != VOCAB_SIZE:
        raise ValueError(
            f"{argument} must have a tokenizer or a vocab_size of {VOCAB_SIZE}, "
            f"got {vocab_size} in {folder}"
        )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in _TOKENIZER_FILES)


def _drawing(task: Callable[[np.random.Generator, int, T], Sample], material: T) -> Draw:
    """A generator with the text that it draws from."""
    return lambda rng, length: task(rng, length, material)
