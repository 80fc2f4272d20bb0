"""Decode policies: ours, the ceiling, oracles and rivals. Each file adds its own to `families`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence

from .base import Policy, Read, Rows

__all__ = ["Policy", "Read", "Rows", "families"]


def families() -> Mapping[str, Sequence[Policy]]:
    """Every family of policies, with its settings from the most to the fewest rows read.

    A new policy is a new file in this folder with a dict `FAMILIES` of its settings.
    """
    found: dict[str, Sequence[Policy]] = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        found.update(getattr(loaded, "FAMILIES", {}))
    return found
