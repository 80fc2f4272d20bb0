"""How families look: one colour and marker each, the same in every plot."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

from .results import KINDS, Kind, Results

HERO_COLOUR = "#0047ab"
KIND_COLOURS: dict[Kind, str] = {
    "ours": "#6fa8dc",
    "reads every key": "#d55e00",
    "estimates scores": "#009e73",
    "evicts": "#aa4499",
    "oracle": "#333333",
}
_COLOURS = (
    "#d55e00",
    "#009e73",
    "#aa4499",
    "#e69f00",
    "#56b4e9",
    "#882255",
    "#7f6000",
    "#444444",
    "#66a61e",
    "#e7298a",
)
_MARKERS = "osD^vP*X<>"
_DASHES = ((5, 2), (5, 2, 1, 2), (1, 1.5), (8, 2, 1, 1, 1, 2))


@dataclass(frozen=True)
class Style:
    """Of a family's line."""

    colour: str
    marker: str
    dashes: tuple[float, ...]  # empty: a full line
    width: float
    above: int  # zorder


def styles(results: Results) -> dict[str, Style]:
    """By family: the default strong, oracles dark and dashed, the others told apart in a kind."""
    found = {}
    for kind in KINDS:
        looks = zip(cycle(_COLOURS), cycle(_MARKERS), cycle(_DASHES), strict=False)
        for family in (f for f in results.families.values() if f.kind == kind):
            if family.name == results.hero:
                found[family.name] = Style(HERO_COLOUR, "o", (), 3.0, 5)
                continue
            colour, marker, dashes = next(looks)
            if family.is_oracle:
                found[family.name] = Style(KIND_COLOURS["oracle"], "", dashes, 1.3, 4)
            else:
                found[family.name] = Style(colour, marker, (), 1.5, 3)
    return found
