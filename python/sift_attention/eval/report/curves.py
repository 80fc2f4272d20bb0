"""Families of policies compared at equal bytes: interpolation, spread over seeds, ties."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .results import Axis, Condition, Results, number

SMALLEST_KL = 1e-6  # nats; what is less counts as this, being nothing, and near rounding


@dataclass(frozen=True)
class Point:
    """A policy on its family's curve.

    Attributes:
        share: rows read over the rows that exact attention reads.
        kl: mean KL(exact || policy) per scored token, nats.
    """

    share: float
    kl: float


@dataclass(frozen=True)
class AtBudget:
    """What a family reaches with at most a share of the bytes.

    Attributes:
        by_seed: KL in nats; empty if the family needs more on some seed.
        share: bytes it takes, mean over seeds: the budget, or what its dearest setting takes where
            that is less. If it needs more than the budget on some seed: what its cheapest setting
            takes on the seed where that is most.
        stops_short: its dearest setting takes less than the budget.
    """

    by_seed: Mapping[int, float]
    share: float
    stops_short: bool = False

    @property
    def mean(self) -> float:
        """Mean over seeds, nats; NaN out of reach."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else math.nan

    @property
    def spread(self) -> float:
        """Sample standard deviation over seeds, nats; NaN with fewer than two."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else math.nan


def kv_share(v_share: float) -> float:
    """K + V rows over those of exact attention when every key and a share of V is read."""
    return (1 + v_share) / 2


def curve(
    results: Results, condition: Condition, family: str, axis: Axis
) -> dict[int, list[Point]]:
    """The family's points of every seed, fewest rows first."""
    by_seed: dict[int, list[Point]] = {}
    for cell in results.cells(condition, family):
        point = Point(number(cell, axis), max(number(cell, "kl"), SMALLEST_KL))
        if math.isfinite(point.share) and not math.isnan(point.kl):
            by_seed.setdefault(cell["seed"], []).append(point)
    return {
        seed: sorted(points, key=lambda point: (point.share, -point.kl))
        for seed, points in sorted(by_seed.items())
    }


def interpolate(points: Sequence[Point], share: float) -> float | None:
    """KL at a share of the rows: log KL over log share, linear between neighbouring settings.

    Args:
        points: at least one, fewest rows first.
        share: the budget.

    Returns:
        float or None: nats. Where every setting takes less than the budget, that of the dearest,
        since fewer bytes are within the budget too; None where every setting takes more.
    """
    if share < points[0].share:
        return None
    if share >= points[-1].share:
        return points[-1].kl
    right = next(i for i, point in enumerate(points) if point.share > share)
    low, high = points[right - 1], points[right]
    step = math.log(share / low.share) / math.log(high.share / low.share)
    return math.exp(math.log(low.kl) + step * math.log(high.kl / low.kl))


def at_budget(
    results: Results, condition: Condition, family: str, axis: Axis, share: float
) -> AtBudget | None:
    """What the family reaches at a share of the bytes; None if it was not measured."""
    points = curve(results, condition, family, axis)
    if not points:
        return None
    found = {seed: interpolate(p, share) for seed, p in points.items()}
    by_seed = {seed: kl for seed, kl in found.items() if kl is not None}
    if len(by_seed) < len(found):
        return AtBudget({}, max(p[0].share for p in points.values()))
    taken = statistics.fmean(min(share, p[-1].share) for p in points.values())
    return AtBudget(by_seed, taken, stops_short=taken < share - 0.005)


def best_and_tied(found: Mapping[str, AtBudget]) -> tuple[str | None, list[str]]:
    """The family with the lowest mean, and those that the seeds do not tell from it.

    All families see the same sequences, so they are compared seed by seed: a family is tied with
    the best if the mean over seeds of the log of their ratio is at most its standard deviation.

    Args:
        found: by family, those that may win.

    Returns:
        tuple: name of the best, None if no family is within reach; names of the tied ones.
    """
    reached = {name: at for name, at in found.items() if at.by_seed}
    if not reached:
        return None, []
    best = min(reached, key=lambda name: reached[name].mean)
    tied = [name for name, at in reached.items() if name != best and _tied(at, reached[best])]
    return best, tied


def log_ratios(one: AtBudget, other: AtBudget) -> list[float]:
    """Log of KL of one over that of the other, for every seed that both have."""
    return [
        math.log(kl / other.by_seed[seed])
        for seed, kl in one.by_seed.items()
        if seed in other.by_seed
    ]


def _tied(one: AtBudget, best: AtBudget) -> bool:
    logs = log_ratios(one, best)
    if not logs:
        return False
    spread = statistics.stdev(logs) if len(logs) > 1 else 0.0
    return statistics.fmean(logs) <= spread
