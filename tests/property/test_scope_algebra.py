"""The scope algebra against an independent reading of the rules, and its laws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from remit_schemas.canonical import canonical
from remit_schemas.scope import EVERYTHING, NOTHING, Detail, Scope, format_detail, parse_scope

SCALARS = [None, True, False, 0, 1, 1.0, 2, 2.5, 10, "", "a", "ab", "abc", "a/../b", "b"]
EXAMPLES = [*SCALARS, [], ["a"], [1], [True], {}, {"k": 1}, {"k": True}, {"k": 1, "l": [None]}]
VALUES = st.sampled_from(EXAMPLES)
NUMBERS = st.sampled_from([-1, 0, 1, 1.0, 2, 2.5, 10])
PREFIXES = st.sampled_from(["", "a", "ab", "abc", "b"])


def _ranges() -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(["min", "max"]), NUMBERS, min_size=1)


CONSTRAINTS = st.fixed_dictionaries(
    {},
    optional={
        "eq": VALUES,
        "in": st.lists(VALUES, max_size=4),
        "range": _ranges(),
        "prefix": PREFIXES,
        "max_len": st.integers(0, 4),
        "any": st.just(True),
        "regex": st.just(".*"),
        "optional": st.booleans(),
    },
).filter(lambda raw: raw.keys() - {"optional"} and len(raw) <= 3)
ARGS = st.dictionaries(st.sampled_from("xyz"), CONSTRAINTS, max_size=2)
PATTERNS = st.sampled_from(
    ["**", "agent/**", "mcp/**", "mcp/s/**", "mcp/s/*", "mcp/*/t", "mcp/s/t", "mcp/s/u", "*/s/t", "*/*/t", "agent/s/t"]
)
DETAILS = st.builds(Detail, PATTERNS, ARGS)
SCOPES = st.lists(DETAILS, max_size=3).map(Scope.of)
RESOURCES = st.sampled_from(["mcp/s/t", "mcp/s/u", "mcp/r/t", "agent/s/t", "agent/s/v"])
CALLS = st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3)

thorough = settings(max_examples=200, deadline=None)


# The rules, read a second time: by definition, slowly, on what is written


def _by_definition(name: str, operand: Any, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match name:
        case "eq":
            return canonical(value) == canonical(operand)
        case "in":
            return any(canonical(value) == canonical(choice) for choice in operand)
        case "range":
            return number and operand.get("min", value) <= value <= operand.get("max", value)
        case "prefix":
            return isinstance(value, str) and value[: len(operand)] == operand and ".." not in value.split("/")
        case "max_len":
            return isinstance(value, str | list) and len(value) <= operand
        case "any":
            return True
        case _:
            return False


def _matches(pattern: str, resource: str) -> bool:
    want, have = pattern.split("/"), resource.split("/")
    if want[-1] == "**":
        have, want = have[: len(want) - 1], want[:-1]
    return len(want) == len(have) and all(w in ("*", h) for w, h in zip(want, have, strict=True))


def _covers(detail: Detail, resource: str, args: Mapping[str, Any]) -> bool:
    for name, raw in detail.args.items():
        if not raw.keys() <= {"eq", "in", "range", "prefix", "max_len", "any", "optional"}:
            return False
        if name not in args:
            if not raw.get("optional", False):
                return False
        elif not all(_by_definition(key, raw[key], args[name]) for key in raw if key != "optional"):
            return False
    return _matches(detail.resource, resource)


# What a scope covers


@thorough
@given(st.lists(DETAILS, max_size=3), RESOURCES, CALLS)
def test_a_scope_covers_what_one_of_its_details_covers(
    details: list[Detail], resource: str, args: dict[str, Any]
) -> None:
    assert Scope.of(details).covers(resource, args) == any(_covers(detail, resource, args) for detail in details)


@thorough
@given(SCOPES, SCOPES, RESOURCES, CALLS)
def test_the_meet_covers_exactly_what_both_sides_cover(a: Scope, b: Scope, resource: str, args: dict[str, Any]) -> None:
    assert (a & b).covers(resource, args) == (a.covers(resource, args) and b.covers(resource, args))


@thorough
@given(DETAILS, DETAILS, RESOURCES, CALLS)
def test_what_is_inside_another_covers_no_more(a: Detail, b: Detail, resource: str, args: dict[str, Any]) -> None:
    left, right = Scope.of([a]), Scope.of([b])
    if left <= right and left.covers(resource, args):
        assert right.covers(resource, args)


@thorough
@given(SCOPES, SCOPES, RESOURCES, CALLS)
def test_equal_scopes_cover_the_same(a: Scope, b: Scope, resource: str, args: dict[str, Any]) -> None:
    met = a & b
    assert (met == a) == (a <= b)
    if met == a and a.covers(resource, args):
        assert b.covers(resource, args)


@thorough
@given(SCOPES, RESOURCES, CALLS)
def test_an_explanation_is_given_exactly_where_a_call_is_not_covered(
    scope: Scope, resource: str, args: dict[str, Any]
) -> None:
    assert bool(scope.explain(resource, args)) == (not scope.covers(resource, args))


# One argument, with every example value


ONE = CONSTRAINTS.map(lambda raw: Detail("mcp/s/t", {"x": raw}))
EVERY_CALL: list[dict[str, Any]] = [{}, *({"x": value} for value in EXAMPLES)]


@settings(max_examples=1000, deadline=None)
@given(ONE, ONE)
def test_constraints_of_one_argument_meet_exactly(a: Detail, b: Detail) -> None:
    left, right = Scope.of([a]), Scope.of([b])
    met = left & right
    for args in EVERY_CALL:
        assert left.covers("mcp/s/t", args) == _covers(a, "mcp/s/t", args)
        both = left.covers("mcp/s/t", args) and right.covers("mcp/s/t", args)
        assert met.covers("mcp/s/t", args) == both
        assert not (left <= right and left.covers("mcp/s/t", args)) or right.covers("mcp/s/t", args)


# The laws


@thorough
@given(SCOPES)
def test_the_meet_is_idempotent(a: Scope) -> None:
    again = Scope.of(a.details)
    assert a & again == a == again
    assert hash(a) == hash(again)


@thorough
@given(SCOPES, SCOPES)
def test_the_meet_is_commutative(a: Scope, b: Scope) -> None:
    assert a & b == b & a
    assert (a & b).details == (b & a).details
    assert hash(a & b) == hash(b & a)


@thorough
@given(SCOPES, SCOPES, SCOPES)
def test_the_meet_is_associative(a: Scope, b: Scope, c: Scope) -> None:
    assert (a & b) & c == a & (b & c)
    assert ((a & b) & c).details == (a & (b & c)).details


@thorough
@given(SCOPES, SCOPES)
def test_the_meet_is_never_larger_than_either_side(a: Scope, b: Scope) -> None:
    assert a & b <= a
    assert a & b <= b


@thorough
@given(SCOPES, SCOPES, SCOPES)
def test_the_meet_is_the_largest_scope_inside_both(a: Scope, b: Scope, c: Scope) -> None:
    below = c & a & b
    assert below <= a & b
    if c <= a and c <= b:
        assert c <= a & b


@thorough
@given(SCOPES, SCOPES, SCOPES)
def test_the_order_is_reflexive_antisymmetric_and_transitive(a: Scope, b: Scope, c: Scope) -> None:
    assert a <= a
    assert not (a <= b and b <= a) or a == b
    assert not (a <= b and b <= c) or a <= c
    assert a & b & c <= a & b <= a


@thorough
@given(SCOPES)
def test_everything_and_nothing_are_the_ends_of_the_order(a: Scope) -> None:
    assert NOTHING <= a <= EVERYTHING
    assert a & EVERYTHING == a
    assert a & NOTHING == NOTHING


# The written form


@thorough
@given(SCOPES, st.randoms(use_true_random=False))
def test_the_normal_form_does_not_depend_on_the_order_of_the_details(a: Scope, random: Any) -> None:
    details = list(a.details)
    random.shuffle(details)
    assert Scope.of(details).details == a.details


@thorough
@given(SCOPES)
def test_no_detail_of_a_scope_lies_inside_another(a: Scope) -> None:
    parts = [Scope.of([detail]) for detail in a.details]
    assert all(parts)
    assert not any(p <= q for p in parts for q in parts if p is not q)


@thorough
@given(SCOPES)
def test_details_survive_json_and_the_command_line(a: Scope) -> None:
    as_json = msgspec.json.decode(msgspec.json.encode(a.details), type=tuple[Detail, ...])
    assert Scope.of(as_json) == a
    assert Scope.of(parse_scope(format_detail(detail)) for detail in a.details) == a
