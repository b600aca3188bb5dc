"""Scopes: what they cover, how they narrow, what is refused and what it says."""

from __future__ import annotations

import time
from typing import Any

import pytest

from remit_schemas.canonical import MAX_INTEGER
from remit_schemas.errors import Code, Refusal
from remit_schemas.patterns import _resource_segments
from remit_schemas.scope import EVERYTHING, MAX_ARGS, MAX_DETAILS, NOTHING, Detail, Scope, format_detail, parse_scope
from remit_schemas.values import MAX_PREFIXED, climbs

READ = "mcp/files/read_file"


def scope(*texts: str) -> Scope:
    return Scope.of(parse_scope(text) for text in texts)


def one(**args: dict[str, Any]) -> Scope:
    return Scope.of([Detail(READ, args)])


def refused(detail: Detail) -> Refusal:
    with pytest.raises(Refusal) as caught:
        Scope.of([detail])
    assert caught.value.body.ask
    return caught.value


# Patterns


@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        ("agent/x/y", ["agent/x/y"], ["agent/x/z", "agent/y/y", "mcp/x/y"]),
        ("agent/x/*", ["agent/x/y", "agent/x/z"], ["agent/y/x"]),
        ("agent/**", ["agent/x/y", "agent/a/b"], ["mcp/x/y"]),
        ("mcp/x/**", ["mcp/x/y"], ["mcp/y/y", "agent/x/y"]),
        ("*/x/*", ["mcp/x/y", "agent/x/y"], ["mcp/y/x"]),
        ("**", ["mcp/x/y", "agent/x/y"], []),
        ("mcp/x/$resource", ["mcp/x/$resource"], ["mcp/x/resource"]),
    ],
)
def test_a_pattern_covers_by_whole_segments(pattern: str, covered: list[str], not_covered: list[str]) -> None:
    assert all(scope(pattern).covers(resource, {}) for resource in covered)
    assert not any(scope(pattern).covers(resource, {}) for resource in not_covered)


@pytest.mark.parametrize(
    "resource",
    ["", "agent", "agent/x", "agent/x/y/z", "agent//y", "agent/x/", "agent/x/*", "agent/x/**", "tool/x/y", "agent/X/y",
     "agent/x/..", "agent/remit/y", "/agent/x/y", "agent/x/\ud800", "agent/x/" + "y" * 10_000],
)  # fmt: skip
def test_what_is_no_resource_is_never_covered(resource: str) -> None:
    assert not EVERYTHING.covers(resource, {})
    assert EVERYTHING.explain(resource, {})


@pytest.mark.parametrize(
    "pattern",
    ["", "agent", "agent/x", "agent/x/y/z", "agent/x/y/**", "**/x", "agent/**/y", "tool/x/y", "Agent/x/y", "agent/X/y",
     "agent/x*/y", "mcp/x/read_*", "mcp/x/", "mcp//y", "/x/y", "mcp/x/..", "mcp/x/a\nb", "mcp/x/\ud800", "mcp/broker/y",
     "mcp/x/" + "y" * 257, "mcp/" * 1000],
)  # fmt: skip
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    refusal = refused(Detail(pattern))
    assert refusal.body.code is Code.MALFORMED
    assert refusal.body.rule == "scope.pattern"


def test_a_name_that_is_not_normalised_is_refused_with_its_normal_form() -> None:
    refusal = refused(Detail("mcp/files/ｒead"))  # noqa: RUF001 - the look-alike is the point
    assert "not normalised" in refusal.body.message
    assert "'read'" in refusal.body.ask


def test_patterns_are_compared_exactly() -> None:
    assert not scope("mcp/files/read").covers("mcp/files/Read", {})
    assert not scope("mcp/files/café").covers("mcp/files/cafe", {})


@pytest.mark.parametrize(
    ("a", "b", "met"),
    [
        ("mcp/a/*", "mcp/a/c", "mcp/a/c"),
        ("mcp/*/c", "mcp/a/*", "mcp/a/c"),
        ("*/a/*", "mcp/**", "mcp/a/*"),
        ("agent/**", "agent/*/*", "agent/*/*"),
        ("**", "agent/x/y", "agent/x/y"),
    ],
)
def test_patterns_narrow_whichever_side_is_which(a: str, b: str, met: str) -> None:
    assert scope(a) & scope(b) == scope(b) & scope(a) == scope(met)


def test_patterns_that_share_nothing_meet_in_nothing() -> None:
    assert not scope("mcp/a/*") & scope("mcp/b/*")
    assert scope("mcp/a/*") & scope("agent/a/*") == NOTHING


def test_equal_patterns_are_equal_however_written() -> None:
    assert scope("agent/**") == scope("agent/*/*")
    assert scope("**").details == (Detail("*/*/*"),)


def test_a_detail_inside_another_is_dropped() -> None:
    wide = scope("mcp/files/*", 'mcp/files/read_file{"path":{"prefix":"docs/"}}', "mcp/files/read_file")
    assert wide == scope("mcp/files/*")
    assert len(wide.details) == 1


# Constraints


@pytest.mark.parametrize(
    ("constraint", "covered", "not_covered"),
    [
        ({"eq": 1}, [1, 1.0], [True, "1", 2, None, [1]]),
        ({"eq": True}, [True], [1, "true", False]),
        ({"eq": 0}, [0, 0.0, -0.0], [False, None, ""]),
        ({"eq": None}, [None], [False, 0, ""]),
        ({"eq": {"a": [1]}}, [{"a": [1.0]}], [{"a": [True]}, {"a": [1], "b": 2}, {"A": [1]}, [1]]),
        ({"eq": "é"}, ["é"], ["e\u0301", "É"]),
        ({"in": ["a", 1]}, ["a", 1], [True, "A", "b", ["a"]]),
        ({"range": {"min": 1, "max": 2}}, [1, 2, 1.5], [0, 3, 2.0001, "1", True, None, float("nan")]),
        ({"range": {"min": 1}}, [1, 1e9], [0, float("inf"), MAX_INTEGER + 1, 10**400]),
        ({"range": {"max": 1}}, [1, -1e9], [2, float("-inf"), -MAX_INTEGER - 1]),
        ({"prefix": "docs/"}, ["docs/", "docs/a", "docs/a..b", "docs/100%"], ["doc", "Docs/a", None, ["docs/"]]),
        ({"max_len": 2}, ["", "ab", [], [1, 2], "😀😀"], ["abc", [1, 2, 3], {}, 1, None]),
        ({"any": True}, [None, 1, "x", {}], []),
        ({"prefix": "a", "max_len": 2}, ["a", "ab"], ["abc", "b"]),
        ({"in": ["a", "bb"], "max_len": 1}, ["a"], ["bb", "c"]),
    ],
)  # fmt: skip
def test_a_constraint_admits(constraint: dict[str, Any], covered: list[Any], not_covered: list[Any]) -> None:
    held = one(x=constraint)
    for value in covered:
        assert held.covers(READ, {"x": value}), value
    for value in not_covered:
        assert not held.covers(READ, {"x": value}), value


CLIMBING = [
    "docs/..", "docs/../secret", "docs/a/../../b", "docs/..\\secret", "docs\\..\\x", "docs/%2e%2e/x", "docs/%2E./x",
    "docs/..%2fx", "docs/..%5Cx", "docs/%252e%252e/x", "docs/%25252e%25252e%25252fx", "docs/%" + "25" * 50 + "2e./x",
    "docs/.. /x", "docs/..;a=b/x", "docs/%c0%ae%c0%ae/x", "docs/\uff0e\uff0e/x", "docs/‥/x", "docs/.\u200b./x",
    "docs/..\x00", "docs/.\t./x", "docs/..%00", "docs/a\nb", "docs/%ff",
]  # fmt: skip


@pytest.mark.parametrize("value", CLIMBING)
def test_a_value_that_climbs_matches_no_prefix(value: str) -> None:
    assert not one(path={"prefix": "docs"}).covers(READ, {"path": value})
    assert not (one(path={"eq": value}) & one(path={"prefix": "docs"}))


@pytest.mark.parametrize(
    "value", ["docs/.hidden", "docs/a.b", "docs/...", "docs/..a", "docs/ünï.md", "docs/50%25 off", "docs/."]
)
def test_an_ordinary_value_does_not_climb(value: str) -> None:
    assert one(path={"prefix": "docs/"}).covers(READ, {"path": value})


def test_a_constrained_argument_must_be_present_unless_optional() -> None:
    assert not one(x={"any": True}).covers(READ, {})
    assert not one(x={"eq": None}).covers(READ, {})
    assert one(x={"eq": 1, "optional": True}).covers(READ, {})
    assert not one(x={"eq": 1, "optional": True}).covers(READ, {"x": 2})


def test_a_case_variant_is_another_argument() -> None:
    assert not one(path={"prefix": "docs/"}).covers(READ, {"Path": "docs/a"})


def test_arguments_that_are_not_constrained_are_free() -> None:
    assert one(x={"eq": 1}).covers(READ, {"x": 1, "y": object()})


@pytest.mark.parametrize("name", ["regex", "Prefix", "EQ", "", "eq ", "not"])
def test_an_unknown_constraint_covers_nothing(name: str) -> None:
    unknown = one(x={name: "a", "optional": True})
    assert not unknown
    assert not unknown.covers(READ, {}) and not unknown.covers(READ, {"x": "a"})
    assert not unknown & EVERYTHING
    assert not one(x={"any": True, name: 1})
    assert "unknown constraint" in unknown.explain(READ, {})


@pytest.mark.parametrize(
    ("a", "b", "met"),
    [
        ({"eq": 1}, {"eq": 1.0}, {"eq": 1}),
        ({"eq": 1}, {"eq": True}, None),
        ({"in": [1, 2, 3]}, {"in": [3, 2, "x"]}, {"in": [2, 3]}),
        ({"in": [1, 2]}, {"in": [2]}, {"eq": 2}),
        ({"range": {"min": 1}}, {"range": {"max": 5}}, {"range": {"min": 1, "max": 5}}),
        ({"range": {"min": 1}}, {"range": {"max": 1}}, {"eq": 1}),
        ({"range": {"min": 2}}, {"range": {"max": 1}}, None),
        ({"prefix": "docs/"}, {"prefix": "docs/a/"}, {"prefix": "docs/a/"}),
        ({"prefix": "docs/"}, {"prefix": "src/"}, None),
        ({"prefix": "docs/"}, {"max_len": 9}, {"prefix": "docs/", "max_len": 9}),
        ({"prefix": "docs/"}, {"max_len": 5}, {"eq": "docs/"}),
        ({"prefix": "docs/"}, {"max_len": 4}, None),
        ({"prefix": "docs/"}, {"max_len": MAX_PREFIXED}, {"prefix": "docs/"}),
        ({"max_len": 4}, {"max_len": 2}, {"max_len": 2}),
        ({"eq": 3}, {"range": {"min": 1, "max": 5}}, {"eq": 3}),
        ({"eq": 9}, {"range": {"min": 1, "max": 5}}, None),
        ({"in": ["docs/a", "src/b"]}, {"prefix": "docs/"}, {"eq": "docs/a"}),
        ({"range": {"min": 1}}, {"prefix": "a"}, None),
        ({"any": True}, {"max_len": 3}, {"max_len": 3}),
        ({"eq": 1, "optional": True}, {"eq": 1}, {"eq": 1}),
        ({"eq": 1, "optional": True}, {"any": True, "optional": True}, {"eq": 1, "optional": True}),
        ({"eq": 1, "optional": True}, {"eq": 2, "optional": True}, {"in": [], "optional": True}),
    ],
)  # fmt: skip
def test_constraints_narrow(a: dict[str, Any], b: dict[str, Any], met: dict[str, Any] | None) -> None:
    expected = NOTHING if met is None else one(x=met)
    assert one(x=a) & one(x=b) == one(x=b) & one(x=a) == expected
    if met is not None:
        assert expected.details[0].args == {"x": met}


def test_a_meet_of_optional_arguments_without_a_common_value_lets_them_only_be_missing() -> None:
    met = one(x={"eq": 1, "optional": True}) & one(x={"eq": 2, "optional": True})
    assert met.covers(READ, {})
    assert not met.covers(READ, {"x": 1})


@pytest.mark.parametrize(
    "constraint",
    [{}, {"optional": True}, {"optional": 1, "eq": 1}, {"in": "ab"}, {"in": {"a": 1}}, {"range": {}}, {"range": 1},
     {"range": {"min": "1"}}, {"range": {"min": True}}, {"range": {"min": None}}, {"range": {"low": 1}},
     {"range": {"min": float("nan")}}, {"range": {"max": float("inf")}}, {"range": {"max": 2**60}}, {"prefix": 1},
     {"prefix": "a/../b"}, {"prefix": "%2e%2e/"}, {"prefix": "a\x00"}, {"prefix": "\ud800"}, {"max_len": -1},
     {"max_len": 1.5}, {"max_len": True}, {"any": False}, {"any": 1}, {"eq": float("nan")}, {"eq": 2**60},
     {"eq": "\ud800"}, {"eq": object()}, {"eq": {1: 2}}, "docs/", None, [{"eq": 1}]],
)  # fmt: skip
def test_an_operand_that_does_not_fit_is_refused(constraint: Any) -> None:
    refusal = refused(Detail(READ, {"x": constraint}))
    assert refusal.body.code is Code.MALFORMED


def test_details_are_made_anew() -> None:
    operand = {"k": [1]}
    held = one(x={"eq": operand})
    operand["k"].append(2)
    held.details[0].args["x"]["eq"]["k"].append(3)
    assert held.covers(READ, {"x": {"k": [1]}})
    assert not held.covers(READ, {"x": {"k": [1, 2]}})


# Caps


@pytest.mark.parametrize(
    "detail",
    [
        Detail(READ, {"x": {"eq": "a" * 5000}}),
        Detail(READ, {"x": {"eq": list(range(1000))}}),
        Detail(READ, {"x": {"eq": {"k" * 5000: 1}}}),
        Detail(READ, {"x": {"in": list(range(257))}}),
        Detail(READ, {"x": {"prefix": "a" * 1025}}),
        Detail(READ, {"x" * 257: {"any": True}}),
        Detail(READ, {f"x{n}": {"any": True} for n in range(MAX_ARGS + 1)}),
    ],
    ids=range(7),
)
def test_what_is_over_a_cap_is_refused(detail: Detail) -> None:
    assert refused(detail).body.code is Code.TOO_LARGE


def test_a_scope_of_too_many_details_is_refused() -> None:
    details = [Detail(f"mcp/s/t{n}") for n in range(MAX_DETAILS + 1)]
    assert len(Scope.of(details[:-1]).details) == MAX_DETAILS
    with pytest.raises(Refusal) as caught:
        Scope.of(details)
    assert caught.value.body.code is Code.TOO_LARGE


def test_details_are_counted_as_they_are_written() -> None:
    with pytest.raises(Refusal) as caught:
        Scope.of([Detail(READ)] * (MAX_DETAILS + 1))
    assert caught.value.body.code is Code.TOO_LARGE


def test_a_value_too_long_to_be_looked_through_matches_no_prefix() -> None:
    held = one(x={"prefix": "docs/"})
    assert held.covers(READ, {"x": "docs/".ljust(MAX_PREFIXED, "a")})
    assert not held.covers(READ, {"x": "docs/".ljust(MAX_PREFIXED + 1, "a")})


def test_an_overlong_resource_is_not_remembered() -> None:
    before = _resource_segments.cache_info().currsize
    assert not EVERYTHING.covers("agent/x/" + "y" * 100_000, {})
    assert _resource_segments.cache_info().currsize == before


def test_a_meet_of_too_many_details_is_refused_whichever_side_is_which() -> None:
    a = Scope.of(Detail("mcp/*/*", {f"a{n}": {"eq": n}}) for n in range(9))
    b = Scope.of(Detail("mcp/*/*", {f"b{n}": {"eq": n}}) for n in range(9))
    for left, right in ((a, b), (b, a)):
        with pytest.raises(Refusal) as caught:
            left & right
        assert caught.value.body.code is Code.TOO_LARGE


def test_details_that_are_absorbed_in_a_meet_do_not_count() -> None:
    a = Scope.of(Detail("mcp/*/*", {f"a{n}": {"eq": n}}) for n in range(MAX_DETAILS))
    wider = Scope.of(Detail("mcp/*/*", {f"a{n}": {"range": {"min": 0}}}) for n in range(MAX_DETAILS))
    assert a & wider == a


@pytest.mark.parametrize(
    "value",
    ["docs/%" + "25" * 4000, "docs/" + "%25" * 300_000, "docs/" + "../" * 300_000, "docs/" + "\ufdfa" * 2700,
     "docs/" + "%" * 8000, [[]] * 300_000, {str(n): n for n in range(100_000)}, "a" * 900_000],
    ids=range(8),
)  # fmt: skip
def test_a_large_value_is_judged_quickly(value: Any) -> None:
    constraints: list[dict[str, Any]] = [{"prefix": "docs/"}, {"eq": [[], [1]]}, {"in": [{"a": 1}, "b"]}]
    held = Scope.of(Detail("mcp/files/*", {"x": constraint}) for constraint in constraints)
    start = time.process_time()
    assert not held.covers(READ, {"x": value}) or not climbs(value)
    assert time.process_time() - start < 0.5


# What it says


def test_an_explanation_names_the_argument_and_its_constraint_but_no_value() -> None:
    text = one(path={"prefix": "docs/"}).explain(READ, {"path": "s3cret/../x"})
    assert "'path'" in text and '{"prefix":"docs/"}' in text and ".." in text
    assert "s3cret" not in text
    assert "missing" in one(path={"any": True}).explain(READ, {})


def test_an_explanation_names_the_patterns_there_are() -> None:
    text = scope("mcp/git/log", "agent/x/*").explain(READ, {})
    assert "mcp/git/log" in text and "agent/x/*" in text
    assert NOTHING.explain(READ, {}) == "the scope is empty"
    assert EVERYTHING.explain(READ, {}) == ""


# The command line


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("mcp/files/read_file", Detail("mcp/files/read_file")),
        (" agent/** ", Detail("agent/**")),
        ('mcp/files/read_file{"path":{"prefix":"docs/"}}', Detail(READ, {"path": {"prefix": "docs/"}})),
        ('mcp/files/* {"n": {"range": {"max": 3}, "optional": true}}',
         Detail("mcp/files/*", {"n": {"range": {"max": 3}, "optional": True}})),
        ("mcp/files/odd{name", Detail("mcp/files/odd{name")),
        ("mcp/files/t{}", Detail("mcp/files/t")),
    ],
)  # fmt: skip
def test_a_scope_is_read_from_the_command_line(text: str, detail: Detail) -> None:
    assert parse_scope(text) == detail
    assert parse_scope(format_detail(detail)) == detail


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("files/read_file", "too few"),
        ('mcp/files/read_file{"path":"docs/"}', "a value where a constraint belongs"),
        ('mcp/files/read_file{"path":{"prefx":"docs/"}}', "did you mean prefix"),
        ('mcp/files/read_file{"path":{"matches":"docs/"}}', "use eq, in, range"),
        ('mcp/files/read_file{"path":{"in":[]}}', "nothing satisfies"),
        ('mcp/files/read_file{"path":{"eq":1,"prefix":"a"}}', "nothing satisfies"),
        ('mcp/files/read_file{"path":{"eq":1},"path":{"eq":2}}', "same name twice"),
        ('mcp/files/read_file{"path":{"eq":NaN}}', "NaN"),
        ('mcp/files/read_file{"path":}', "not a JSON"),
        ('mcp/files/read_file{"\\ud800":{"eq":1}}', "lone surrogates"),
        ('mcp/files/read_file{"path":"\\ud800"}', "lone surrogates"),
        ("mcp/files/read_file{\ud800}", "UTF-8"),
        ('mcp/files/read_file{"a":{"eq":1}}}', "not a JSON"),
        ("mcp/files/t{" + '"a":' * 3000 + "}", "at most"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_refused_with_what_to_write(text: str, said: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_scope(text)
    body = caught.value.body
    assert body.code in (Code.MALFORMED, Code.TOO_LARGE)
    assert said in f"{body.message} {body.ask}"
    assert body.ask
