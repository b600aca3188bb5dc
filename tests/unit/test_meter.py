"""``hop.meter`` and ``hop.stream``, over models of every shape that is known, none of whose libraries is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace as Thing
from typing import Any

import pytest

from remit import Hop, Refused
from remit.usage import usage_of
from remit_schemas.budget import Budget
from remit_schemas.envelope import Event
from remit_schemas.errors import Refusal
from remit_schemas.model_prices import DEAREST, ModelPrice, ModelPrices, parse_model_price
from tests.support.sdk_broker import FakeLink, dispatch, verified

PRICES = {"gpt-4o*": "in=2.5,out=10", "default": "in=1,out=2,call=0.05"}
ANSWER = {"model": "gpt-4o", "usage": {"prompt_tokens": 1000, "completion_tokens": 100}}


def hop(**claimed: Any) -> tuple[Hop, FakeLink]:
    link = FakeLink()
    d = dispatch("agent/researcher/brief", {}, claimed=claimed)
    return Hop(link, verified(d), d, f"res.researcher.r1.{d.txn}.{d.hop}"), link


def events(link: FakeLink) -> list[Any]:
    return [frame.data for frame in link.frames() if isinstance(frame, Event)]


# Shapes


class Chat:
    """As a LangChain chat model."""

    model_name = "gpt-4o-mini"

    def invoke(self, text: str) -> Thing:
        return Thing(content=text.upper(), usage_metadata={"input_tokens": 1000, "output_tokens": 100})

    async def ainvoke(self, text: str) -> Thing:
        return self.invoke(text)

    async def astream(self, text: str) -> AsyncIterator[Thing]:
        yield Thing(content="a", usage_metadata={"input_tokens": 1000, "output_tokens": 0})
        yield Thing(content="b", usage_metadata=None)
        yield Thing(content="", usage_metadata={"input_tokens": 0, "output_tokens": 100})

    def stream(self, text: str) -> Iterator[Thing]:
        yield Thing(content="a", usage_metadata={"input_tokens": 1000, "output_tokens": 100})

    def bind_tools(self, tools: list[Any]) -> Chat:
        return Chat()

    def batch(self, texts: list[str]) -> list[Any]:
        raise AssertionError("it was called past the meter")


class OpenAI:
    """As a client of OpenAI: ``chat.completions.create``, ``responses.create``."""

    def __init__(self) -> None:
        self.chat = Thing(completions=Thing(create=self.create))
        self.responses = Thing(create=self.create)
        self.api_key = "key"

    async def create(self, *, model: str, stream: bool = False) -> Any:
        if stream:
            return self.pieces(model)
        return Thing(model=model, usage=Thing(prompt_tokens=1000, completion_tokens=100))

    async def pieces(self, model: str) -> AsyncIterator[Any]:
        yield Thing(model=model, usage=None)
        yield Thing(model=model, usage=Thing(prompt_tokens=1000, completion_tokens=100))


class Anthropic:
    """As a client of Anthropic: usage in the first event's message, and then sums."""

    def __init__(self) -> None:
        self.messages = Thing(create=self.create)

    async def create(self, *, model: str, stream: bool = False) -> Any:
        if stream:
            return self.pieces(model)
        return Thing(model=model, usage=Thing(input_tokens=900, output_tokens=100, cache_read_input_tokens=100))

    async def pieces(self, model: str) -> AsyncIterator[Any]:
        yield Thing(type="message_start", message=Thing(model=model, usage=Thing(input_tokens=1000, output_tokens=1)))
        yield Thing(type="message_delta", usage=Thing(output_tokens=50))
        yield Thing(type="message_delta", usage=Thing(output_tokens=100))


async def function(question: str) -> dict[str, Any]:
    return ANSWER


async def use_function(me: Hop) -> None:
    assert await me.meter(function, prices=PRICES)("q") == ANSWER


async def use_sync(me: Hop) -> None:
    assert me.meter(lambda: ANSWER, prices=PRICES)() == ANSWER


async def use_invoke(me: Hop) -> None:
    assert me.meter(Chat(), prices=PRICES).invoke("x").content == "X"


async def use_ainvoke(me: Hop) -> None:
    assert (await me.meter(Chat(), prices=PRICES).bind_tools([]).ainvoke("x")).content == "X"


async def use_astream(me: Hop) -> None:
    assert [piece.content async for piece in me.meter(Chat(), prices=PRICES).astream("x")] == ["a", "b", ""]


async def use_stream(me: Hop) -> None:
    assert [piece.content for piece in me.meter(Chat(), prices=PRICES).stream("x")] == ["a"]


async def use_openai(me: Hop) -> None:
    client = me.meter(OpenAI(), prices=PRICES)
    assert client.api_key == "key"
    assert (await client.chat.completions.create(model="gpt-4o")).model == "gpt-4o"


async def use_openai_stream(me: Hop) -> None:
    pieces = await me.meter(OpenAI(), prices=PRICES).responses.create(model="gpt-4o", stream=True)
    assert len([piece async for piece in pieces]) == 2


async def use_anthropic(me: Hop) -> None:
    await me.meter(Anthropic(), name="gpt-4o", prices=PRICES).messages.create(model="claude")


async def use_anthropic_stream(me: Hop) -> None:
    pieces = await me.meter(Anthropic(), name="gpt-4o", prices=PRICES).messages.create(model="claude", stream=True)
    assert len([piece async for piece in pieces]) == 3


USES = [use_function, use_sync, use_invoke, use_ainvoke, use_astream, use_stream, use_openai, use_openai_stream, use_anthropic,
        use_anthropic_stream]  # fmt: skip


@pytest.mark.parametrize("use", USES)
async def test_a_metered_model_charges_what_it_used(use: Any) -> None:
    me, _ = hop()
    await use(me)
    me.settle()
    assert me.reported == Budget(3_500, 1100, 0), "1,000 tokens at $2.50 and 100 at $10 a million"


# What is missing

NOTHING: dict[str, Any] = {
    "no usage": {"text": "x"}, "an empty one": {"usage": {}}, "negative": {"usage": {"prompt_tokens": -1}},
    "a float": {"usage": {"prompt_tokens": 1.5}}, "a text": {"usage": {"prompt_tokens": "12"}},
    "a truth": {"usage": {"prompt_tokens": True}}, "more than there can be": {"usage": {"prompt_tokens": 10**12}},
    "not an object": {"usage": 7}, "a text instead": "hello",
}  # fmt: skip


@pytest.mark.parametrize("name", NOTHING)
async def test_usage_that_is_missing_is_charged_by_default(name: str) -> None:
    me, _ = hop()
    assert usage_of(NOTHING[name]) is None
    me.meter(lambda: NOTHING[name], prices=PRICES)()
    assert me.reported == Budget(50_000, 0, 0)
    me, _ = hop()
    me.meter(lambda: NOTHING[name])()
    assert me.reported == Budget(DEAREST.call, 0, 0), "also where there is no price at all"


async def test_a_call_that_fails_and_a_stream_that_is_left_are_charged_by_default() -> None:
    async def broken() -> None:
        raise ConnectionError

    me, _ = hop()
    with pytest.raises(ConnectionError):
        await me.meter(broken, prices=PRICES)()
    assert me.reported == Budget(50_000, 0, 0)
    me, _ = hop()
    pieces = await me.meter(OpenAI(), prices=PRICES).responses.create(model="gpt-4o", stream=True)
    assert me.reported == Budget(0, 0, 0)
    del pieces
    me.settle()
    me.settle()
    assert me.reported == Budget(50_000, 0, 0), "once"


async def test_what_could_call_a_model_past_the_meter_cannot_be_called() -> None:
    me, _ = hop()
    with pytest.raises(AttributeError, match="does not know what 'batch'"):
        me.meter(Chat(), prices=PRICES).batch(["x"])
    with pytest.raises(AttributeError):
        _ = me.meter(Chat(), prices=PRICES)._private
    manager = Thing(messages=Thing(stream=lambda: Thing(__aenter__=1)))
    with pytest.raises(Refused, match="with block"):
        me.meter(manager, prices=PRICES).messages.stream()


async def test_a_model_is_not_called_when_nothing_is_left() -> None:
    calls: list[str] = []

    def model() -> dict[str, Any]:
        calls.append("called")
        return {"model": "other", "usage": {"prompt_tokens": 10**6}}

    me, _ = hop(budget=Budget(1_500_000, 0, 3))
    metered = me.meter(model, prices=PRICES)
    metered(), metered()
    with pytest.raises(Refused) as no:
        metered()
    assert (no.value.code, no.value.rule, len(calls)) == ("BUDGET_EXCEEDED", "meter.budget", 2)
    me, _ = hop(budget=Budget(10**9, 5, 3))
    metered = me.meter(model, prices=PRICES)
    metered()
    with pytest.raises(Refused, match="nothing is left"):
        metered()


@pytest.mark.parametrize(
    "text", ["", "in=1", "in=1,out=x", "in=-1,out=1", "in=1,out=1,in=2", "in=1,out=1,call=0", "in=nan,out=1"]
)
def test_a_price_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refusal, match="no price of a model"):
        parse_model_price(text)


def test_the_longest_pattern_wins_and_the_default_is_for_the_rest() -> None:
    free, dear = parse_model_price("in=0,out=0"), parse_model_price("in=3,out=9,call=1")
    prices = ModelPrices({"*": free, "gpt-*": dear})
    assert (prices.of("gpt-4o"), prices.of("llama")) == (dear, free)
    assert free == ModelPrice(0, 0, 0) and ModelPrices({}).of("any") == DEAREST
    assert dear.cost((1, 0)) == 3 and parse_model_price("in=0.1,out=0.1").cost((1, 0)) == 1, "rounded up"


# Streams


class Graph:
    """As a compiled graph of LangGraph."""

    async def astream(self, state: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield {"plan": state}
        yield {"done": True}


class Typed:
    """As an agent whose ``run_stream`` is an async context manager."""

    def run_stream(self, text: str) -> Typed:
        return self

    async def __aenter__(self) -> Typed:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def stream_text(self, delta: bool) -> AsyncIterator[str]:
        yield "a"
        yield "b"


async def words() -> AsyncIterator[str]:
    for word in ("one ", "", "two"):
        yield word


async def test_what_a_source_says_is_sent_and_returned() -> None:
    for source, args, sent, returned in (
        (words(), (), ["one ", "two"], "one two"),
        (words, (), ["one ", "two"], "one two"),
        (iter([1, 2]), (), [1, 2], 2),
        (Chat(), ("x",), ["a", "b"], "ab"),
        (Graph(), ({"q": 1},), [{"plan": {"q": 1}}, {"done": True}], {"done": True}),
        (Typed(), ("x",), ["a", "b"], "ab"),
    ):
        me, link = hop()
        assert await me.stream(source, *args) == returned
        assert events(link) == sent
    me, link = hop()
    assert await me.stream(me.meter(Chat(), prices=PRICES), "x") == "ab"
    assert me.reported == Budget(3_500, 1100, 0)
    for wrong in (7, Thing(), None):
        with pytest.raises(Refused, match="does not stream"):
            await hop()[0].stream(wrong)
