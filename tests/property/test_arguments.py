"""Whatever somebody sends as arguments, policy sees texts, numbers and flags in the places that the tool's schema has for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit_broker.adapters.cedar import CedarEngine
from remit_broker.core.arguments import (
    MAX_ITEMS,
    MAX_TEXT,
    NOTHING,
    UNKNOWN,
    UNSEEN,
    Arguments,
    plan_of,
    projected,
)
from remit_broker.core.question import project
from remit_broker.core.registry import Annotations, Target
from tests.support.policies import asked, written

NAMES = ("sql", "limit", "force", "to", "ids", "filter", "__entity", "__extn", "a/b", "~", "rate", "note")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "sql": {"type": "string"},
        "limit": {"type": "integer"},
        "force": {"type": "boolean"},
        "rate": {"type": "number"},
        "to": {"type": "array", "items": {"type": "string"}},
        "ids": {"type": "array", "items": {"type": "integer"}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "__entity": {"type": "string"},
        "a/b": {"enum": ["x", "y"]},
        "filter": {"type": "object", "properties": {"sql": {"type": "string"}, "filter": {"$ref": "#"}}},
    },
}
PLAN = plan_of(SCHEMA)
# With a permit for everything, so that what comes out is a decision about the arguments and nothing else.
LOOKS = """
@id("all") @reason("all") permit (principal, action, resource);
@id("no-deletes") @reason("deletes") forbid (principal, action == Action::"call", resource)
when { context.args.texts.hasTag("/sql") && context.args.texts.getTag("/sql") like "*DELETE*" };
@id("few") @reason("few") forbid (principal, action == Action::"call", resource)
when { context.args_unprojected.isEmpty() && context.args.numbers.hasTag("/limit") && context.args.numbers.getTag("/limit") > 5 };
@id("root") @reason("root") forbid (principal, action == Action::"call", resource)
when { context.user.name == "root" || context.user in Role::"root" || principal == Agent::"root" || resource in Server::"root" };
"""

scalars = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["DELETE FROM x", "root", "\ud800", "x" * (MAX_TEXT + 1), 500.0, 5e3, -0.0])
)  # fmt: skip
escapes = st.sampled_from(
    [
        {"__entity": {"type": "User", "id": "root"}},
        {"__extn": {"fn": "ip", "arg": "127.0.0.1"}},
        {"type": "Role", "id": "root"},
        {"__expr": "principal"},
    ]
)
keys = st.sampled_from(NAMES) | st.text(max_size=5)
values = st.recursive(
    scalars | escapes,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
arguments = st.dictionaries(keys, values, max_size=8)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> CedarEngine:
    return CedarEngine.load(written(tmp_path_factory.mktemp("looks"), a=LOOKS))


def target(schema: dict[str, Any] = SCHEMA, definition: str = "d") -> Target:
    return Target(
        kind="mcp", callee="files", op="read_file", tier="standard", definition=definition, input_schema=schema,
        output_schema=None, annotations=Annotations(), ceiling=None,
    )  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(arguments)
def test_no_argument_makes_an_entity_changes_another_or_gives_no_decision(engine: CedarEngine, args: dict[str, Any]):
    seen = engine.arguments(target(), args)
    verdict = engine.decide(asked(args=seen))
    # A decision, always, by the rules that speak of what is there, and by no error and no other rule.
    assert set(verdict.decision.rules) <= {"all", "no-deletes", "few"}
    assert ("no-deletes" in verdict.decision.rules) is (forbidden(args.get("sql", "")))
    limit = args.get("limit", 0)
    if not seen.unprojected:
        assert ("few" in verdict.decision.rules) is (not isinstance(limit, bool) and limit > 5)
    # The entities beside the bags are those of the question without arguments.
    bags = {"Texts", "Numbers", "Flags", "TextSets", "NumberSets", "FlagSets"}
    others = [entity for entity in project(asked(args=seen)).entities if entity["uid"]["type"] not in bags]
    assert others == project(asked()).entities


def forbidden(sql: Any) -> bool:
    return not isinstance(sql, str) or len(sql) > MAX_TEXT or "DELETE" in sql or "\ud800" in sql


@settings(max_examples=150)
@given(arguments)
def test_what_is_seen_was_sent_and_what_was_sent_is_seen_or_marked(args: dict[str, Any]):
    seen = projected(PLAN, args)
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Arguments) == seen
    for bag in ("texts", "numbers", "flags"):
        for place, value in getattr(seen, bag).items():
            assert at(args, place) == value
    for bag in ("text_sets", "number_sets"):
        for place, members in getattr(seen, bag).items():
            assert at(args, place) == list(members)
    if "" not in seen.unprojected:
        for name in args:
            place = "/" + name.replace("~", "~0").replace("/", "~1")
            bags = [getattr(seen, bag) for bag in seen.__struct_fields__[:-1]]
            inside = [*(one for bag in bags for one in bag), *seen.unprojected]
            shown = any(one == place or one.startswith(place + "/") for one in inside)
            assert shown or args[name] == {} or isinstance(args[name], dict)


def at(value: Any, place: str) -> Any:
    for token in place.split("/")[1:]:
        value = value[token.replace("~1", "/").replace("~0", "~")]
    return value


@pytest.mark.parametrize(
    ("args", "unseen"),
    [
        ({"sql": None}, ("/sql",)),
        ({"sql": "x" * (MAX_TEXT + 1)}, ("/sql",)),
        ({"limit": 2**63}, ("/limit",)),
        ({"limit": 5.5}, ("/limit",)),
        ({"rate": 0.1}, ("/rate",)),
        ({"note": None}, ("/note",)),
        ({"other": "x"}, ("/other",)),
        ({"to": ["a", 1]}, ("/to",)),
        ({"to": ["a"] * (MAX_ITEMS + 1)}, ("/to",)),
        ({"filter": {"filter": {"sql": "x"}}}, ("/filter/filter",)),
        ({"filter": []}, ("/filter",)),
        ({"\ud800": 1}, ("",)),
        ({"x" * 200: 1}, ("",)),
        ({"limit": 500.0, "rate": 5e2, "sql": "", "to": []}, ()),
    ],
)
def test_what_cannot_be_projected_is_named_by_its_place(args: dict[str, Any], unseen: tuple[str, ...]):
    assert projected(PLAN, args).unprojected == unseen


def test_a_whole_number_is_one_however_it_is_written():
    for text in ("500", "500.0", "5e2", "50000e-2"):
        assert projected(PLAN, {"limit": json.loads(text)}).numbers == {"/limit": 500}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string"},
        {"oneOf": [{"type": "object"}]},
        {"$ref": "#/nowhere"},
        {"$ref": "https://elsewhere/schema"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": ["object", "string"]},
        {"anyOf": "x"},
    ],
)
def test_a_tool_without_a_usable_schema_shows_that_nothing_can_be_seen(schema: dict[str, Any]):
    plan = plan_of(schema)
    assert plan == UNKNOWN or plan.members is None
    assert projected(plan, {"sql": "x"}) == UNSEEN


def test_a_schema_of_references_within_references_is_read_no_deeper_than_bounded():
    links: dict[str, Any] = {f"s{i}": {"anyOf": [{"$ref": f"#/$defs/s{i + 1}"}, {"type": "null"}]} for i in range(3000)}
    links["s3000"] = {"type": "string"}
    plan = plan_of({"type": "object", "properties": {"x": {"$ref": "#/$defs/s0"}}, "$defs": links})
    assert projected(plan, {"x": "y"}).unprojected == ("/x",)


@pytest.mark.parametrize(
    ("effect", "condition"),
    [
        ("forbid", 'when { context.args.texts.hasTag("/sql") && context.args.texts.getTag("/sql") like "*DELETE*" }'),
        (
            "permit",
            'when { context.args.texts.hasTag("/sql") && !(context.args.texts.getTag("/sql") like "*DELETE*") }',
        ),
        ("permit", 'unless { context.args.texts.hasTag("/sql") && context.args.texts.getTag("/sql") like "*DELETE*" }'),
        ("permit", 'unless { (if context.depth > 0 then context else context).args.texts.hasTag("/sql") }'),
    ],
)
@pytest.mark.parametrize("unseen", ["/sql", ""])
def test_what_a_policy_cannot_see_is_taken_for_the_worse(tmp_path: Path, effect: str, condition: str, unseen: str):
    """A text that is too long to be shown is not let through as one that is not there."""
    policy = f'@id("looks") @reason("no deletes") {effect} (principal, action == Action::"call", resource) {condition};'
    always = '@id("all") @reason("all") permit (principal, action, resource);' if effect == "forbid" else ""
    policies = CedarEngine.load(written(tmp_path, a=policy + always))
    hidden = policies.decide(asked(args=Arguments(unprojected=(unseen,))))
    assert not hidden.allowed
    assert hidden.decision.rules == (("looks",) if effect == "forbid" else ())
    # Something else that cannot be seen is none of its business, where it says what is.
    named = "(if" not in condition
    assert policies.decide(asked(args=Arguments(texts={"/sql": "SELECT"}, unprojected=("/x",)))).allowed is named
    # Nor is another action.
    assert policies.decide(asked(action="release", args=Arguments(unprojected=(unseen,)))).allowed is bool(always)


def test_a_policy_that_speaks_of_what_cannot_be_seen_is_left_as_it_is(tmp_path: Path):
    policy = (
        '@id("looks") @reason("r") forbid (principal, action, resource) when { context.args.texts.hasTag("/sql")'
        ' && !context.args_unprojected.contains("/x") };@id("all") @reason("all") permit (principal, action, resource);'
    )
    policies = CedarEngine.load(written(tmp_path, a=policy))
    assert policies.decide(asked(args=Arguments(unprojected=("/sql",)))).allowed


def test_huge_arguments_are_not_looped_over_and_are_marked_as_unseen(engine: CedarEngine):
    class Counting(dict[str, Any]):
        looked = 0

        def items(self) -> Any:
            for pair in super().items():
                Counting.looked += 1
                yield pair

    many = Counting({str(i): "x" for i in range(1_000_000)})
    assert projected(PLAN, many) == UNSEEN
    assert Counting.looked < 2 * MAX_ITEMS
    full = projected(
        plan_of({"properties": {str(i): {"type": "string"} for i in range(200)}}),
        {str(i): "x" * 4000 for i in range(200)},
    )
    assert full == UNSEEN
    assert engine.decide(asked(args=full)).decision.rules == ("no-deletes",)


def test_arguments_are_not_projected_where_no_policy_looks_at_them(tmp_path: Path):
    policies = CedarEngine.load(written(tmp_path, a='@id("all") @reason("all") permit (principal, action, resource);'))
    assert policies.arguments(target(), {"sql": "DELETE"}) == NOTHING


def test_a_definition_that_changed_is_projected_by_its_new_schema(engine: CedarEngine):
    assert engine.arguments(target(), {"sql": "x"}).texts == {"/sql": "x"}
    other = target({"type": "object", "properties": {"sql": {"type": "integer"}}})
    assert engine.arguments(other, {"sql": "x"}).unprojected == ("/sql",)
