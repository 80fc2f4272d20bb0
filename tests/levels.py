"""The instruction sets that the CPU operators can be held to.

They read SIFT_CPU_ISA at every call.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import sift_attention as sift

LEVELS = ("portable", "avx2", "avx512", "avx512_bf16")
VARIABLE = "SIFT_CPU_ISA"


@contextmanager
def at_level(level: str) -> Iterator[None]:
    """Holds the operators to one of LEVELS."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = level
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


@functools.cache
def supported_levels() -> tuple[str, ...]:
    """Those of this processor; the one alone to which the environment holds this process."""
    if VARIABLE in os.environ:
        return (os.environ[VARIABLE],)
    return tuple(level for level in LEVELS if is_supported(level))


def is_supported(level: str) -> bool:
    kv = torch.zeros(1, 1, 1, 32, device="cpu")
    try:
        with at_level(level):
            sift.decode(kv[0], kv, kv)
    except (RuntimeError, ValueError) as error:
        if "SIFT_CPU_ISA must be one of" not in str(error):
            raise
        return False
    return True
