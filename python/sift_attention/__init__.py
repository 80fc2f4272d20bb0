"""SiftAttention: sparse decode attention for long contexts.

Each decode step computes every attention probability exactly and loads only the value rows whose
probability exceeds a threshold that follows a power law in the sequence length.
"""

from . import reference
from .config import SiftConfig
from .law import DecodeStats, PowerLaw

__all__ = [
    "DecodeStats",
    "PowerLaw",
    "SiftConfig",
    "reference",
]
