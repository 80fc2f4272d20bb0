"""How often the examples of a property were of each class, so that none is missed unnoticed."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Sequence, Set
from typing import Any

from hypothesis import given
from making import key_sets, make
from strategies import EDGES, SEEDS, DecodeCase, as_choices, choices, decode_cases

from cases import Call
from oracle import KeySets

HITS: Counter[str] = Counter()  # of the property that is running

KEEPING_ALL = ("exact", "zero", "nan")
# Classes that are no field's value, and with which values of a field no example can be of them.
DERIVED: dict[str, dict[str, tuple[Any, ...]]] = {
    "no keys": {},
    "one key": {},
    "length at an edge": {},
    "lengths that differ": {},
    "more than one chunk": {},
    "transposed rows": {},
    "gaps between rows": {},
    "misaligned rows": {},
    "tail page": {"block_size": (None, 1)},
    "page without keys": {"block_size": (None,)},
    "everything loaded": {},
    "something dropped": {"law": KEEPING_ALL},
    "nothing passes": {"law": KEEPING_ALL},
    "borderline": {"law": KEEPING_ALL},
}


def decode_property(
    more: dict[str, Sequence[Any]] | None = None, rare: Set[str] = frozenset(), **fixed: Any
) -> Callable[[Any], Any]:
    """Makes a test a property.

    Its arguments are, by name: case, the call made of it, the call's key sets (keys), seed, and
    those in `more`. It fails, too, where no example was of some class.

    Args:
        more: see `decode_cases`.
        rare: classes that may be missed.
        fixed: see `decode_cases`.
    """

    def decorate(test: Any) -> Any:
        names = inspect.signature(test).parameters

        @functools.wraps(test)
        def check(drawn: tuple[DecodeCase, dict[str, Any]], seed: int) -> None:
            case, others = drawn
            call = make(case, seed)
            keys = key_sets(call)
            count_classes(case, call, keys)
            known = {"case": case, "call": call, "keys": keys, "seed": seed, **others}
            test(**{name: known[name] for name in names})

        check.__signature__ = inspect.signature(check, follow_wrapped=False)  # type: ignore[attr-defined]
        check.expected_classes = lambda: expected_classes(fixed) - rare  # type: ignore[attr-defined]
        return given(drawn=decode_cases(fixed, more or {}), seed=SEEDS)(check)

    return decorate


def expects(*names: str) -> Callable[[Any], Any]:
    """Makes a property of another kind fail where its examples missed one of these classes."""

    def decorate(test: Any) -> Any:
        test.hypothesis.inner_test.expected_classes = lambda: set(names)
        return test

    return decorate


def count_hits(found: dict[str, Any]) -> None:
    """Counts the classes whose value is true, or true somewhere."""
    HITS.update(name for name, value in found.items() if is_any(value))


def expected_classes(fixed: dict[str, Any]) -> set[str]:
    values = {**choices(), **as_choices(fixed)}
    derived = {
        name
        for name, without in DERIVED.items()
        if not any(set(values[field]) <= set(without[field]) for field in without)
    }
    return derived | {f"{field}={value}" for field in values for value in values[field]}


def count_classes(case: DecodeCase, call: Call, keys: KeySets) -> None:
    attended = call.attended()
    count = attended.sum(1)
    views = (case.q_view, case.k_view, case.v_view)
    row_bytes = [x.stride(-2) * x.element_size() for x in (call.q, call.k, call.v)]
    num_loaded = keys.loaded.sum(-1)
    has_keys = (count > 0)[:, None]
    found = {
        "no keys": count == 0,
        "one key": count == 1,
        "length at an edge": any(length in EDGES for length in case.lengths),
        "lengths that differ": len(set(case.lengths)) > 1,
        "more than one chunk": count > 1024,
        "transposed rows": any(view.transposed for view in views),
        "gaps between rows": any(view.gap > 0 for view in views),
        "misaligned rows": any(row % 16 != 0 for row in row_bytes),
        "tail page": case.block_size and any(x % case.block_size for x in case.lengths),
        "page without keys": case.block_size
        and (~attended.unflatten(1, (-1, case.block_size)).any(-1)).any(),
        "everything loaded": has_keys & (num_loaded == count[:, None]),
        "something dropped": num_loaded < count[:, None],
        "nothing passes": has_keys & ~keys.passing.any(-1),
        "borderline": keys.maybe,
    }
    count_hits(found)
    HITS.update(f"{field}={getattr(case, field)}" for field in choices())


def is_any(value: Any) -> bool:
    return bool(value.any()) if hasattr(value, "any") else bool(value)
