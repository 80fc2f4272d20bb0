"""SiftAttention: sparse decode attention for long contexts.

Each decode step computes every attention probability exactly and loads only the value rows whose
probability exceeds a threshold that follows a power law in the sequence length.
"""

import importlib
from pathlib import Path
from types import ModuleType

from . import reference
from .config import SiftConfig
from .estimator import PowerLawEstimator, PowerLawFit
from .law import DecodeStats, PowerLaw
from .ops import decode, fit_power_law, score_quantile
from .sdpa import scaled_dot_product_attention
from .state import SiftState

__all__ = [
    "DecodeStats",
    "PowerLaw",
    "PowerLawEstimator",
    "PowerLawFit",
    "SiftConfig",
    "SiftState",
    "cmake_prefix_path",
    "decode",
    "fit_power_law",
    "hf",
    "reference",
    "scaled_dot_product_attention",
    "score_quantile",
]

# What users pass to CMake as CMAKE_PREFIX_PATH to find the package SiftAttention.
cmake_prefix_path = str(Path(__file__).parent / "share" / "cmake")


def __getattr__(name: str) -> ModuleType:
    """Imports `hf` when it is first used: it needs transformers, which the operators do not."""
    if name == "hf":
        return importlib.import_module(".hf", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
