"""What an attach request may say, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from remit_broker.core.registry import (
    MAX_DEFINITION,
    MAX_DEFINITIONS,
    Definition,
    annotations_of,
    ceiling_of,
    definitions_of,
)
from remit_schemas.errors import Code, Refusal

TOOL: dict[str, Any] = {"name": "git_log", "inputSchema": {"type": "object"}}


def refused(kind: Any, args: Any) -> tuple[str, str]:
    """Code and rule."""
    with pytest.raises(Refusal) as no:
        definitions_of(kind, args)
    assert no.value.body.ask
    return str(no.value.body.code), no.value.body.rule


def test_a_tool_is_taken_as_its_server_describes_it() -> None:
    (found,) = definitions_of(
        "mcp", {"tools": [{**TOOL, "title": "Log", "description": "d", "annotations": {"readOnlyHint": True}}]}
    )
    assert (found.op, found.title, found.description) == ("git_log", "Log", "d")
    assert annotations_of(found.annotations).read_only


def test_an_agent_names_skills_and_a_server_tools() -> None:
    assert definitions_of("agent", {"skills": [{"name": "brief", "input_schema": {}}]})[0].op == "brief"
    assert refused("agent", {"tools": [TOOL]}) == ("MALFORMED", "attach.definitions")
    assert refused("mcp", {"skills": [TOOL]}) == ("MALFORMED", "attach.definitions")


@pytest.mark.parametrize("tools", [None, {}, "x", 1])
def test_what_is_no_list_is_refused(tools: Any) -> None:
    assert refused("mcp", {"tools": tools})[1] == "attach.definitions"


def test_more_than_the_cap_is_refused_and_the_cap_itself_is_not() -> None:
    tools = [{**TOOL, "name": f"t{number}"} for number in range(MAX_DEFINITIONS + 1)]
    assert refused("mcp", {"tools": tools})[1] == "attach.definitions"
    assert len(definitions_of("mcp", {"tools": tools[:-1]})) == MAX_DEFINITIONS


def test_two_tools_of_one_name_are_refused() -> None:
    assert refused("mcp", {"tools": [TOOL, TOOL]})[1] == "attach.collision"


@pytest.mark.parametrize("name", [None, 1, "", "a/b", "*", "a\x00b", "a\u200bb", "\uff47it", "x" * 257, ["a"]])
def test_a_name_that_could_be_taken_for_another_is_refused(name: Any) -> None:
    assert refused("mcp", {"tools": [{**TOOL, "name": name}]})[1] == "attach.name"


@pytest.mark.parametrize("tool", [None, 1, "git_log", []])
def test_a_definition_that_is_no_object_is_refused(tool: Any) -> None:
    assert refused("mcp", {"tools": [tool]})[1] == "attach.name"


@pytest.mark.parametrize(
    "change",
    [
        {"inputSchema": None}, {"inputSchema": []}, {"inputSchema": "x"}, {"outputSchema": []}, {"annotations": [1]},
        {"needs": "mcp/git/*"}, {"needs": [1]},
    ],
)  # fmt: skip
def test_a_definition_of_the_wrong_shape_is_refused(change: dict[str, Any]) -> None:
    assert refused("mcp", {"tools": [{**TOOL, **change}]}) == ("MALFORMED", "attach.definition")


def test_a_tool_without_a_schema_is_refused() -> None:
    assert refused("mcp", {"tools": [{"name": "git_log"}]})[1] == "attach.definition"


@pytest.mark.parametrize("need", ["", "nonsense", "mcp/git/a*", "mcp//x"])
def test_a_need_that_is_no_scope_is_refused(need: str) -> None:
    assert refused("agent", {"skills": [{**TOOL, "needs": [need]}]})[0] == "MALFORMED"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 2**60])
def test_a_schema_that_has_no_canonical_form_is_refused(number: Any) -> None:
    assert refused("mcp", {"tools": [{**TOOL, "inputSchema": {"maximum": number}}]})[1] == "attach.definition"


def test_a_definition_that_is_too_large_is_refused() -> None:
    assert refused("mcp", {"tools": [{**TOOL, "description": "x" * MAX_DEFINITION}]}) == (Code.TOO_LARGE, "attach.size")


def test_a_pin_changes_with_anything_a_model_would_read() -> None:
    base = Definition(op="a", input_schema={"type": "object"})
    changes: list[dict[str, Any]] = [
        {"op": "b"}, {"title": "t"}, {"description": "d"}, {"input_schema": {}}, {"output_schema": {}},
        {"annotations": {"readOnlyHint": True}}, {"needs": ()},
    ]  # fmt: skip
    digests = {Definition(**{"op": "a", "input_schema": {"type": "object"}, **change}).digest for change in changes}
    assert len(digests | {base.digest}) == len(changes) + 1


def test_a_pin_does_not_depend_on_the_order_of_keys() -> None:
    one, other = ({"a": {"x": 1, "y": 2}, "b": 1}, {"b": 1, "a": {"y": 2, "x": 1}})
    assert Definition(op="a", input_schema=one).digest == Definition(op="a", input_schema=other).digest


@pytest.mark.parametrize(
    ("raw", "read_only", "destructive"),
    [
        ({}, False, True),
        ({"readOnlyHint": True}, True, False),
        ({"readOnlyHint": True, "destructiveHint": True}, True, False),
        ({"destructiveHint": False}, False, False),
        ({"readOnlyHint": "true"}, False, True),
        ({"readOnlyHint": 1}, False, True),
        ({"destructiveHint": 0}, False, True),
        ({"destructiveHint": None}, False, True),
    ],
)
def test_hints_count_only_as_plain_booleans_and_their_absence_is_the_worst(
    raw: dict[str, Any], read_only: bool, destructive: bool
) -> None:
    found = annotations_of(raw)
    assert (found.read_only, found.destructive) == (read_only, destructive)


def test_a_tool_is_given_nothing_to_delegate_and_a_skill_what_it_needs() -> None:
    assert not ceiling_of("mcp", Definition(op="a", needs=("mcp/git/*",)))
    ceiling = ceiling_of("agent", Definition(op="a", needs=("mcp/git/*",)))
    assert ceiling is not None
    assert ceiling.covers("mcp/git/log", {})
    assert not ceiling.covers("mcp/web/fetch", {})


def test_a_skill_that_needs_nothing_gets_nothing_and_one_that_does_not_say_is_not_limited() -> None:
    assert ceiling_of("agent", Definition(op="a")) is None
    nothing = ceiling_of("agent", Definition(op="a", needs=()))
    assert nothing is not None
    assert not nothing
