"""Sifted decoding for Hugging Face transformers.

Importing this module registers the attention implementation "sift"; `enable` switches a model to
it. Without `enable`, a model loaded with that implementation is dense.
"""

from .enable import Handle, enable, enabled
from .stats import LayerStats, SiftStats

__all__ = ["Handle", "LayerStats", "SiftStats", "enable", "enabled"]
