"""Sifted decoding for Hugging Face transformers.

Importing this module registers the attention implementation "sift"; `enable` switches a model to
it. Without `enable`, a model loaded with that implementation is dense. `export` makes programs that
run without transformers, and packaged without Python.
"""

from . import version as version  # first, since the others import what old transformers lack
from .enable import Handle, enable, enabled
from .export import ExportedDecoder, export
from .layout import Layout
from .stats import LayerStats, SiftStats

__all__ = [
    "ExportedDecoder",
    "Handle",
    "LayerStats",
    "Layout",
    "SiftStats",
    "enable",
    "enabled",
    "export",
]
