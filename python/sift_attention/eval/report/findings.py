"""What the tables say, in sentences and in one ranking, written from the numbers alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from .curves import AtBudget, best_and_tied, curve, interpolate, log_ratios
from .page import Table
from .results import Axis, Condition, Results, mean
from .tables import (
    RECALL_V_SHARE,
    WHAT,
    accuracy_change,
    asked,
    condition_names,
    contenders,
    measured,
    ordered,
    share_of,
    title,
)
from .texts import counted, joined, limit, milli, percent, points, reached, setting_labels, times

TEXT_KL = 0.002  # nats per token: what sifted text should not exceed
_PAPER_MODULE = "paper"  # file of the paper's procedure
RECALL_POINTS = 0.5  # percentage points below exact that recall may lose


def findings(results: Results, budgets: Sequence[float]) -> list[str]:
    """Sentences on the default: where it stands at equal bytes, the targets, the paper's way."""
    hero = results.hero
    if hero is None:
        return []
    ours = [family.name for family in results.families.values() if family.kind == "ours"]
    return [
        *(_wins(results, hero, ours, axis, budgets) for axis in WHAT),
        *_targets(results, hero),
        *_paper(results, hero),
    ]


def _wins(
    results: Results, hero: str, ours: Sequence[str], axis: Axis, budgets: Sequence[float]
) -> str:
    """How often the default, and the best of ours, hold against the policies of others."""
    contests = [
        measured(results, condition, axis, share_of(axis, budget))
        for budget in budgets
        for condition in results.conditions
    ]
    default = sum(_holds(results, column, [hero]) for column in contests)
    best = sum(_holds(results, column, ours) for column in contests)
    shares = joined([f"{round(100 * share_of(axis, b), 1):g}%" for b in budgets])
    return (
        f"At {shares} of the {WHAT[axis]} bytes, against the policies of others that need no "
        f"oracle, {hero} is best or tied with the best in {default} of {len(contests)} "
        f"comparisons (tasks and budgets); some policy of ours in {best}."
    )


def _holds(results: Results, column: dict[str, AtBudget], names: Sequence[str]) -> bool:
    """Whether one of our policies is best or tied with the best among those of others."""
    others = others_than_ours(results, column)
    return any(
        name == best or name in tied
        for name in names
        if name in column
        for best, tied in [best_and_tied({**others, name: column[name]})]
    )


def others_than_ours(results: Results, column: dict[str, AtBudget]) -> dict[str, AtBudget]:
    """The contenders that are not ours."""
    found = contenders(results, column)
    return {name: at for name, at in found.items() if results.families[name].kind != "ours"}


def standing(results: Results, budgets: Sequence[float]) -> Table:
    """The default against the policies of others, at every budget and on every task."""
    names = condition_names(results)
    rows = [
        [
            f"{round(100 * share_of(axis, budget), 1):g}% of {WHAT[axis]}",
            *(_place(results, c, axis, share_of(axis, budget)) for c in results.conditions),
        ]
        for axis in WHAT
        for budget in budgets
    ]
    return Table(
        [f"{results.hero} is", *(names[condition] for condition in results.conditions)],
        rows,
        "Among the policies of others that need no oracle, by KL at equal bytes. Tied: the spread "
        "of their ratio over the seeds does not tell them apart. A factor: how many times the KL "
        f"of the best, and which that is. {limit(results)}",
    )


def _place(results: Results, condition: Condition, axis: Axis, share: float) -> str:
    column = measured(results, condition, axis, share)
    own = column.get(results.hero or "")
    if own is None:
        return ""
    if not own.by_seed:
        return reached(own)
    best, tied = best_and_tied({**others_than_ours(results, column), "": own})
    if best is None or best == "":
        return "**best**"
    return f"*tied*, {best}" if "" in tied else f"{times(own.mean / column[best].mean)}x, {best}"


def _targets(results: Results, hero: str) -> Iterator[str]:
    """KL on text and recall within RECALL_V_SHARE of the V rows."""
    names = condition_names(results)
    within = {
        c: setting[1]
        for c in results.conditions
        if (setting := results.nearest_within(c, hero, RECALL_V_SHARE))
    }
    for c, cells in within.items():
        if c not in asked(results):
            kl = mean(cells, "kl")
            verdict = "within" if kl <= TEXT_KL else "above"
            yield (
                f"On {names[c]}, {hero} reads {percent(mean(cells, 'v_fraction'), 1)} of V at a KL "
                f"of {milli(kl)} thousandths of a nat per token, {verdict} the "
                f"{milli(TEXT_KL)} aimed at."
            )
    recalled = [c for c in within if c in asked(results)]
    kept, lost = [], []
    for c in recalled:
        change = statistics.fmean(100 * value for value in accuracy_change(within[c]))
        if change >= -RECALL_POINTS:
            kept.append(names[c])
        else:
            lost.append(f"{names[c]} ({points(accuracy_change(within[c]))} points)")
    if recalled:
        parts = [f"on {joined(kept)}"] if kept else []
        parts += [f"not on {joined(lost)}"] if lost else []
        yield (
            f"With at most {RECALL_V_SHARE:.0%} of V, {hero} recalls within {RECALL_POINTS} points "
            f"of exact attention {', '.join(parts)}."
        )


def _paper(results: Results, hero: str) -> Iterator[str]:
    """The paper's own procedure against the default, at the bytes that the procedure takes."""
    for family in (f for f in results.families.values() if f.module == _PAPER_MODULE):
        ratios = []
        for condition in results.conditions:
            own = curve(results, condition, hero, "v_fraction")
            for seed, settings in curve(results, condition, family.name, "v_fraction").items():
                for point in settings if seed in own else ():
                    kl = interpolate(own[seed], point.share)
                    ratios += [point.kl / kl] if kl else []
        if ratios:
            yield (
                f"At the V bytes that its settings take, {family.name} has {times(min(ratios))} to "
                f"{times(max(ratios))} times the KL of {hero}, median "
                f"{times(statistics.median(ratios))} ({counted(len(ratios), 'comparison')})."
            )


def _mean_ratio(one: AtBudget | None, other: AtBudget | None) -> float | None:
    logs = log_ratios(one, other) if one and other else []
    return math.exp(statistics.fmean(logs)) if logs else None


def ranking(results: Results, axis: Axis, budgets: Sequence[float]) -> Table | None:
    """KL of every family over the default's, over all tasks, best first.

    Returns:
        Table or None: None without a default.
    """
    hero = results.hero
    if hero is None:
        return None
    rows: list[tuple[float, list[str]]] = []
    columns = [
        {c: measured(results, c, axis, share_of(axis, budget)) for c in results.conditions}
        for budget in budgets
    ]
    winners = [_winners(results, list(column.values())) for column in columns]
    for family in ordered(results):
        cells, logs = [], []
        for column, won in zip(columns, winners, strict=True):
            ratios = [_mean_ratio(at.get(family.name), at.get(hero)) for at in column.values()]
            known = [math.log(ratio) for ratio in ratios if ratio]
            logs += known
            cells.append(_ranked(known, len(column), won.get(family.name, 0)))
        rows.append(
            (statistics.fmean(logs) if logs else math.inf, [title(results, family), *cells])
        )
    return Table(
        ["", *(f"{round(100 * share_of(axis, b), 1):g}% of {WHAT[axis]}" for b in budgets)],
        [row for _, row in sorted(rows, key=lambda pair: pair[0])],
        f"KL over that of the default at equal {WHAT[axis]} bytes, geometric mean over tasks and "
        "seeds; below 1 is better than the default. In brackets: on how many tasks the policy is "
        "the best that needs no oracle, or tied with it; and of how many, where not all can be "
        f"compared. {limit(results)}",
    )


def _winners(results: Results, columns: Sequence[dict[str, AtBudget]]) -> dict[str, int]:
    """On how many tasks each contender is best or tied."""
    wins: dict[str, int] = {}
    for column in columns:
        best, tied = best_and_tied(contenders(results, column))
        for name in filter(None, (best, *tied)):
            wins[name] = wins.get(name, 0) + 1
    return wins


def _ranked(logs: Sequence[float], num_tasks: int, num_wins: int) -> str:
    if not logs:
        return ""
    of = "" if len(logs) == num_tasks else f" of {len(logs)}"
    note = f" ({num_wins}{of})" if num_wins or of else ""
    ratio = math.exp(statistics.fmean(logs))
    return f"{times(ratio)}{note}"


def choice(results: Results, family: str) -> Table:
    """Every setting of a family over all tasks: what it reads, and the worst it does."""
    found: dict[str, list[tuple[Condition, list[dict[str, object]]]]] = {}
    for condition in results.conditions:
        for policy, cells in results.settings(condition, family).items():
            found.setdefault(policy, []).append((condition, cells))
    labels, names = setting_labels(list(found)), condition_names(results)
    rows = []
    for policy, by_condition in found.items():
        read = [mean(cells, "v_fraction") for _, cells in by_condition]
        kl, where = max((mean(cells, "kl"), names[c]) for c, cells in by_condition)
        changes = [
            (statistics.fmean(accuracy_change(cells)), names[c])
            for c, cells in by_condition
            if c in asked(results)
        ]
        worst = f"{100 * min(changes)[0]:+.1f} ({min(changes)[1]})" if changes else ""
        reads = f"{min(read):.1%} to {max(read):.1%}"
        rows.append([labels[policy], reads, f"{milli(kl)} ({where})", worst])
    return Table(
        [family, "V rows read", "highest KL", "lowest accuracy minus exact"],
        rows,
        "Over the tasks, means over seeds. KL in thousandths of a nat per scored token, accuracy "
        f"in percentage points. {limit(results)}",
    )
