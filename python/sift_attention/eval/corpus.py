"""Evaluation text: the source of the running Python, its standard library, read, never copied."""

import functools
import importlib
import sysconfig
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "held_out"]

_SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "encodings",  # tables rather than text
    "pydoc_data",
}
_HELD_OUT_ONE_IN = 20


def standard_library_files(split: Split) -> list[Path]:
    """Source files of the standard library, in an order and a split that their relative paths fix.

    One file in twenty is held out. The CRC-32 of the relative path decides, so a file stays on its
    side from one Python version to the next, and a model trained under one version may be scored
    under another.

    Args:
        split (str): "train" or "held_out".

    Returns:
        list[Path]: the files, in pseudo-random but fixed order.

    Raises:
        ValueError: for an unknown split.
    """
    if split not in ("train", "held_out"):
        raise ValueError(
            f"standard_library_files: split must be 'train' or 'held_out', got {split!r}"
        )
    root = Path(sysconfig.get_paths()["stdlib"])
    hashed = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        machine_made = relative.name.startswith("_sysconfigdata")
        if machine_made or _SKIPPED_FOLDERS.intersection(relative.parts[:-1]):
            continue
        crc = zlib.crc32(relative.as_posix().encode())
        if (crc % _HELD_OUT_ONE_IN == 0) == (split == "held_out"):
            hashed.append((crc, relative.as_posix(), path))
    return [path for _, _, path in sorted(hashed)]


def read_standard_library(split: Split) -> NDArray[np.uint8]:
    """Bytes of `standard_library_files(split)`, joined by newlines.

    Returns:
        uint8 array [num_bytes]: about 10 MB for "train" and 0.5 MB for "held_out".

    Raises:
        FileNotFoundError: if this Python comes without the sources of its standard library.
    """
    contents = [path.read_bytes() for path in standard_library_files(split)]
    if not contents:
        raise FileNotFoundError(
            "read_standard_library: the standard library must be present as .py files, got none in "
            + sysconfig.get_paths()["stdlib"]
        )
    return np.frombuffer(b"\n".join(contents), dtype=np.uint8)


@functools.cache
def read_prose() -> NDArray[np.uint8]:
    """English prose: the chapters of the language reference that Python's `help()` shows.

    No part of either split: the folder they stand in is left out of both.

    Returns:
        uint8 array [num_bytes]: about 0.5 MB.

    Raises:
        FileNotFoundError: if this Python comes without them.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise FileNotFoundError(
            "read_prose: the standard library must have pydoc_data.topics, got none in "
            + sysconfig.get_paths()["stdlib"]
        ) from error
    return np.frombuffer("\n".join(topics.values()).encode(), dtype=np.uint8)
