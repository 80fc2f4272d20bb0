"""Numbers and policies as the report writes them."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence

from .curves import AtBudget
from .results import Results

KL_UNIT = (
    "KL to exact attention in 10^-3 nats per scored token, mean ± standard deviation over seeds"
)


def milli(nats: float) -> str:
    """Thousandths with two or three significant digits; nothing for NaN."""
    value = 1000 * nats
    if math.isnan(value):
        return ""
    if 0 <= value < 0.001:
        return "<0.001"
    return f"{value:,.{max(0, min(3, 1 - math.floor(math.log10(abs(value)))))}f}" if value else "0"


def counted(number: int, noun: str) -> str:
    """A number with a noun in singular or plural: 1 seed, 3 seeds."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def percent(share: float, digits: int = 0) -> str:
    """A share in percent; nothing for NaN."""
    return "" if math.isnan(share) else f"{share:.{digits}%}"


def times(ratio: float) -> str:
    """A ratio with two or three significant digits."""
    return f"{ratio:,.{2 if ratio < 10 else 0}f}"


def points(differences: Sequence[float]) -> str:
    """Differences of shares over seeds in percentage points: mean and standard deviation."""
    known = [100 * value for value in differences if not math.isnan(value)]
    if not known:
        return ""
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):+.1f}{spread}"


def reached(at: AtBudget | None) -> str:
    """KL at a budget, or what the family needs instead."""
    if at is None:
        return ""
    if not at.by_seed:
        return f"needs {at.share:.1%}"
    spread = "" if math.isnan(at.spread) else f" ± {milli(at.spread)}"
    return f"{milli(at.mean)}{spread}" + (f" at {at.share:.0%}" if at.stops_short else "")


def marked(text: str, name: str, best: str | None, tied: Sequence[str]) -> str:
    """Bold for the best, italic for those that the seeds do not tell from it."""
    return f"**{text}**" if name == best else f"*{text}*" if name in tied else text


def joined(names: Sequence[str]) -> str:
    """A, B and C."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def setting_labels(policies: Sequence[str]) -> dict[str, str]:
    """What tells the policies of a family apart: the arguments of their repr that differ.

    Args:
        policies: reprs of dataclasses, such as "Uniform(c=2.0, residual='mean')".

    Returns:
        dict: by policy, "c=2.0"; the whole repr where nothing differs.
    """
    arguments = {
        policy: re.findall(r"(\w+=(?:\([^()]*\)|'[^']*'|[^,()]+))", policy) for policy in policies
    }
    common = set.intersection(*map(set, arguments.values())) if len(arguments) > 1 else set()
    return {
        policy: ", ".join(a for a in found if a not in common) or policy
        for policy, found in arguments.items()
    }


def limit(results: Results) -> str:
    """What the numbers do not say; one sentence for every caption."""
    parameters = results.environment.get("parameters") or 0
    if parameters >= 1e9:
        return "One model and synthetic tasks: others may order the policies differently."
    model = f"A model of {parameters / 1e6:.1f} M parameters" if parameters else "A tiny model"
    return f"{model} cannot show large-model quality."
