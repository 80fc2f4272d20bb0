"""Exported programs and C++ callers keep a signature: later versions must take their calls."""

from pathlib import Path

import pytest
import torch

import sift_attention  # noqa: F401  registers the operators

TEXT = (Path(__file__).parent / "schemas.txt").read_text()
RELEASED = [line for line in TEXT.splitlines() if line.startswith("sift_attention::")]

OLD = "sift_attention::op(Tensor q, float scale, int residual=0) -> (Tensor out, Tensor lse)"
NEWER = {
    "an argument last, with a default": (OLD.replace("=0)", "=0, Tensor? m=None)"), True),
    "an argument may be None": (OLD.replace("Tensor q", "Tensor? q"), True),
    "an argument in between": (OLD.replace("float scale", "float scale, bool b=False"), False),
    "another name": (OLD.replace("scale", "factor"), False),
    "another type": (OLD.replace("float scale", "int scale"), False),
    "another default": (OLD.replace("=0", "=1"), False),
    "no default": (OLD.replace("=0", ""), False),
    "by name only": (OLD.replace("int residual", "*, int residual"), False),
    "an argument less": (OLD.replace(", int residual=0", ""), False),
    "an argument written to": (OLD.replace("Tensor q", "Tensor(a!) q"), False),
    "an output more": (OLD.replace("Tensor lse", "Tensor lse, Tensor count"), False),
    "an output less": (OLD.replace(", Tensor lse", ""), False),
}


def takes_the_calls_of(new: str, old: str) -> bool:
    """What was called by the old schema can be called by the new one, with the same meaning."""
    parse = torch._C.parse_schema
    return bool(parse(new).is_backward_compatible_with(parse(old)))


def schemas() -> dict[str, str]:
    """Of the operators that are registered today."""
    every = torch._C._jit_get_all_schemas()
    return {schema.name: str(schema) for schema in every if schema.name.startswith("sift_att")}


def released(name: str) -> list[str]:
    return [line for line in RELEASED if line.partition("(")[0] == name]


@pytest.mark.row(43)
@pytest.mark.parametrize("change", NEWER)
def test_a_breaking_change_is_seen(change):
    new, is_compatible = NEWER[change]
    assert new != OLD
    assert takes_the_calls_of(new, OLD) == is_compatible


def test_every_released_operator_is_there():
    assert {line.partition("(")[0] for line in RELEASED} <= set(schemas())


@pytest.mark.row(43)
@pytest.mark.parametrize("name", sorted(schemas()))
def test_schemas_take_the_calls_of_every_release(name):
    for old in released(name):
        assert takes_the_calls_of(schemas()[name], old), old


@pytest.mark.parametrize("name", sorted(schemas()))
def test_schemas_are_recorded(name):
    assert released(name)[-1:] == [schemas()[name]], "add it to tests/schemas.txt"
