"""A skill's JSON Schema and arguments come from its annotations."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

import msgspec
import pytest

from remit import Agent, Hop, Refused
from remit_schemas.errors import Code


class Page(msgspec.Struct):
    url: str
    size: int = 0


def agent() -> Agent:
    return Agent("researcher")


def test_required_optional_nested_and_constrained_arguments() -> None:
    me = agent()

    @me.skill
    async def brief(
        hop: Hop,
        topic: Annotated[str, msgspec.Meta(min_length=1)],
        pages: list[Page],
        mode: Literal["short", "long"] = "short",
        since: datetime.date | None = None,
        *,
        anything: Any = None,
    ) -> list[Page]:
        return pages

    skill = me.skills["brief"]
    schema = skill.input_schema
    assert schema["required"] == ["topic", "pages"] and schema["additionalProperties"] is False
    assert schema["properties"]["topic"] == {"type": "string", "minLength": 1}
    assert schema["properties"]["mode"] == {"enum": ["long", "short"], "default": "short"}
    assert schema["properties"]["pages"]["items"] == {"$ref": "#/$defs/Page"} and "Page" in schema["$defs"]
    assert skill.output_schema is not None and skill.output_schema["type"] == "array"
    bound = skill.bind({"topic": "x", "pages": [{"url": "u"}], "since": "2026-01-02"})
    assert bound == {"topic": "x", "pages": [Page("u")], "since": datetime.date(2026, 1, 2)}


@pytest.mark.parametrize("args", [{}, {"n": "1"}, {"n": 1.5}, {"n": True}, {"n": None}, {"n": 1, "m": 2}, {"N": 1}])
def test_arguments_that_do_not_fit_are_refused(args: dict[str, Any]) -> None:
    me = agent()

    @me.skill
    async def count(hop: Hop, n: int) -> None: ...

    with pytest.raises(Refused) as no:
        me.skills["count"].bind(args)
    assert no.value.code is Code.ARGUMENTS_INVALID and no.value.effect == "none"


def test_types_of_the_enclosing_function_can_be_named() -> None:
    class Local(msgspec.Struct):
        a: int

    me = agent()

    @me.skill
    async def take(hop: Hop, it: Local) -> int:
        return it.a

    assert me.skills["take"].bind({"it": {"a": 1}}) == {"it": Local(1)}


def test_without_annotations_anything_goes() -> None:
    me = agent()

    @me.skill(name="any thing", description="whatever")
    async def f(hop, x, y=1):
        return x

    skill = me.skills["any thing"]
    assert skill.input_schema["properties"] == {"x": {}, "y": {"default": 1}} and skill.output_schema is None
    assert skill.bind({"x": [None]}) == {"x": [None]}


def test_what_cannot_be_a_skill_is_said_when_it_is_declared() -> None:
    me = agent()
    with pytest.raises(TypeError, match="async"):
        me.skill(lambda hop: None)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="hop first"):

        @me.skill
        async def nothing() -> None: ...

    with pytest.raises(TypeError, match="name each argument"):

        @me.skill
        async def many(hop: Hop, *urls: str) -> None: ...

    with pytest.raises(TypeError, match="cannot name a skill"):

        @me.skill(name="a/b")
        async def slash(hop: Hop) -> None: ...

    with pytest.raises(TypeError, match="cannot be read"):

        @me.skill
        async def unknown(hop: Hop, x: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    with pytest.raises(TypeError, match="JSON Schema"):

        @me.skill
        async def odd(hop: Hop, x: complex) -> None: ...

    with pytest.raises(Refused, match="MALFORMED"):

        @me.skill(needs=["not a scope"])
        async def needy(hop: Hop) -> None: ...

    @me.skill
    async def twice(hop: Hop) -> None: ...

    with pytest.raises(TypeError, match="already"):
        me.skill(twice)


@pytest.mark.parametrize("name", ["", "Researcher", "a.b", "remit", "new", "a" * 64, "a b"])
def test_an_agent_needs_a_legal_name(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name an agent"):
        Agent(name)
