"""An agent on the SDK against a real NATS server and a scripted broker: what crosses the wire, and what never runs a skill."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remit import Agent, Hop, Progress, Refused, ToolFailed, open_task
from remit_schemas.budget import Budget as Amount
from remit_schemas.callee import control_subject
from remit_schemas.claims import Actor
from remit_schemas.envelope import (
    FINAL,
    MAX_ENVELOPE,
    Error,
    Event,
    Result,
    Started,
    encode,
)
from remit_schemas.errors import Code
from remit_schemas.keys import KeySet, SigningKey
from tests.support.local_nats import LocalNats, local_nats
from tests.support.sdk_broker import (
    ISSUER,
    REPLICA,
    Heard,
    ScriptedBroker,
    accepted,
    dispatch,
    grant,
    no,
    root,
)

OTHER = SigningKey.from_seed(bytes(32))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[LocalNats]:
    async with local_nats(tmp_path) as running:
        yield running


@pytest.fixture
async def broker(server: LocalNats, tmp_path: Path) -> AsyncIterator[ScriptedBroker]:
    running = ScriptedBroker(server.url, tmp_path)
    await running.start(reconnect_time_wait=0.05, max_reconnect_attempts=-1)
    yield running
    await running.stop()


class Researcher:
    """An agent with a few skills, and what they saw."""

    def __init__(self, broker: ScriptedBroker, **credentials: Any) -> None:
        self.agent = Agent("researcher", broker.credentials("researcher", **credentials))
        self.ran: list[str] = []
        self.hop: Hop | None = None
        self.go = asyncio.Event()
        agent = self.agent

        @agent.skill(needs=["mcp/web/fetch"], title="Brief")
        async def brief(hop: Hop, topic: str, pages: int = 3) -> str:
            """A brief about a topic."""
            self.ran.append(topic)
            self.hop = hop
            await hop.progress("searching", 1, 2)
            await hop.event({"found": pages})
            return f"{hop.user} wants {pages} pages about {topic}"

        @agent.skill
        async def wait(hop: Hop) -> str:
            self.ran.append("wait")
            await self.go.wait()
            return "waited"

        @agent.skill
        async def relay(hop: Hop, resource: str) -> Any:
            self.hop = hop
            return await hop.call(resource, url="x")

        @agent.skill
        async def crash(hop: Hop) -> str:
            raise ValueError("the password is hunter2")

        @agent.skill
        async def large(hop: Hop) -> str:
            return "x" * MAX_ENVELOPE

        @agent.skill
        async def stubborn(hop: Hop) -> str:
            self.ran.append("stubborn")
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                asyncio.get_running_loop().call_soon(self.go.set)
                await asyncio.sleep(0)
            return "done anyway"


@pytest.fixture
async def researcher(broker: ScriptedBroker) -> AsyncIterator[Researcher]:
    made = Researcher(broker)
    await made.agent.start()
    yield made
    await made.agent.stop(0)


async def test_an_agent_registers_what_it_serves(broker: ScriptedBroker, researcher: Researcher) -> None:
    skills = {skill["name"]: skill for skill in (await broker.until_attached())["skills"]}
    assert set(skills) == {"brief", "wait", "relay", "crash", "large", "stubborn"}
    brief = skills["brief"]
    assert brief["title"] == "Brief" and brief["description"] == "A brief about a topic."
    assert brief["needs"] == ["mcp/web/fetch"] and "needs" not in skills["wait"]
    assert brief["input_schema"]["required"] == ["topic"]
    assert brief["input_schema"]["properties"]["pages"] == {"type": "integer", "default": 3}
    assert brief["output_schema"] == {"type": "string"}


async def test_a_hop_is_served_frame_by_frame(broker: ScriptedBroker, researcher: Researcher) -> None:
    heard = await broker.call("agent/researcher/brief", topic="NATS")
    final = await heard.final()
    kinds = [type(frame) for frame in heard.frames]
    assert kinds[0] is Started and kinds[-1] is Result and kinds[1:-1] == [Progress, Event]
    assert isinstance(final, Result) and final.value == "ann@example.org wants 3 pages about NATS"
    hop = researcher.hop
    assert hop is not None and hop.user == "ann@example.org" and hop.chain == ("researcher", "planner")
    assert hop.left == Amount(1_000_000, 1000, 8) and 0 < hop.remaining <= 30


async def test_the_wrong_arguments_never_reach_the_skill(broker: ScriptedBroker, researcher: Researcher) -> None:
    for args in ({}, {"topic": 1}, {"topic": "x", "more": 1}, {"topic": "x", "pages": "3"}):
        final = await (await broker.send(dispatch("agent/researcher/brief", args))).final()
        assert isinstance(final, Error) and final.error.code is Code.ARGUMENTS_INVALID and final.error.effect == "none"
    assert researcher.ran == []


HOSTILE: dict[str, Any] = {
    "another's grant": lambda: dispatch(
        "agent/researcher/brief", {"topic": "x"}, claimed={"aud": "critic", "act": Actor("planner")}
    ),
    "an expired grant": lambda: dispatch(
        "agent/researcher/brief", {"topic": "x"}, claimed={"iat": 1, "exp": int(time.time()) - 1}
    ),
    "a foreign key": lambda: dispatch("agent/researcher/brief", {"topic": "x"}, claimed={"key": OTHER}),
    "a foreign issuer": lambda: dispatch(
        "agent/researcher/brief", {"topic": "x"}, claimed={"iss": "https://evil.test"}
    ),
    "another hop's grant": lambda: dispatch(
        "agent/researcher/brief", {"topic": "x"}, grant=grant(secrets.token_hex(16), secrets.token_hex(8), "researcher")
    ),
    "no grant": lambda: dispatch("agent/researcher/brief", {"topic": "x"}, grant=""),
    "a broken signature": lambda: _tampered(dispatch("agent/researcher/brief", {"topic": "x"})),
    "another resource": lambda: dispatch("agent/critic/brief", {"topic": "x"}, grant="x"),
    "another version": lambda: dispatch("agent/researcher/brief", {"topic": "x"}, v=2),
}


def _tampered(good: Any) -> Any:
    import msgspec

    head, _, tail = good.grant.rpartition(".")
    return msgspec.structs.replace(good, grant=f"{head}.{'B' if tail[0] != 'B' else 'C'}{tail[1:]}")


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_dispatch_never_runs_the_skill(
    broker: ScriptedBroker, researcher: Researcher, what: str
) -> None:
    heard = await broker.send(HOSTILE[what](), subject="svc.agent.researcher.brief")
    final = await heard.final()
    assert isinstance(final, Error) and final.error.effect == "none"
    assert final.error.code in (Code.GRANT_INVALID, Code.GRANT_EXPIRED, Code.MALFORMED)
    assert researcher.ran == []


async def _settled(broker: ScriptedBroker, researcher: Researcher) -> None:
    """After a good hop everything sent before it was judged: messages of one connection arrive in order."""
    heard = await broker.call("agent/researcher/brief", topic="last")
    await heard.final()


async def test_a_dispatch_past_its_deadline_is_dropped(broker: ScriptedBroker, researcher: Researcher) -> None:
    heard = await broker.send(dispatch("agent/researcher/brief", {"topic": "late"}, seconds=-1))
    await _settled(broker, researcher)
    assert researcher.ran == ["last"] and heard.frames == []


async def test_a_repeated_dispatch_runs_once(broker: ScriptedBroker, researcher: Researcher) -> None:
    once = dispatch("agent/researcher/brief", {"topic": "once"})
    heard: Heard | None = None
    for _ in range(3):
        heard = await broker.send(once)
    await _settled(broker, researcher)
    assert heard is not None and isinstance(await heard.final(), Result)
    assert researcher.ran == ["once", "last"]
    assert sum(isinstance(frame, FINAL) for frame in heard.frames) == 1


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"v":1}', b"\xff", b'{"txn":"' + b"x" * 1000 + b'"}', b"[" * 5000]
)
async def test_garbage_is_dropped(broker: ScriptedBroker, researcher: Researcher, data: bytes) -> None:
    await broker.send(dispatch("agent/researcher/brief", {}), data=data)
    await _settled(broker, researcher)
    assert researcher.ran == ["last"] and broker.strays == []


async def test_ids_that_are_no_tokens_get_no_answer(broker: ScriptedBroker, researcher: Researcher) -> None:
    for replica in ("r1.>", "*", "a b", ""):
        await broker.send(dispatch("agent/researcher/brief", {"topic": "x"}, replica=replica))
    await _settled(broker, researcher)
    assert researcher.ran == ["last"] and broker.strays == []


async def test_an_exception_is_answered_without_its_text(broker: ScriptedBroker, researcher: Researcher) -> None:
    final = await (await broker.call("agent/researcher/crash")).final()
    assert isinstance(final, Error) and final.error.code is Code.INTERNAL and final.error.effect == "unknown"
    assert final.error.message == "the skill failed: ValueError" and b"hunter2" not in encode(final)


async def test_a_result_that_is_too_large_is_refused_clearly(broker: ScriptedBroker, researcher: Researcher) -> None:
    final = await (await broker.call("agent/researcher/large")).final()
    assert isinstance(final, Error) and final.error.code is Code.RESULT_INVALID and final.error.effect == "happened"


async def test_a_skill_is_stopped_at_its_deadline(broker: ScriptedBroker, researcher: Researcher) -> None:
    final = await (await broker.call("agent/researcher/wait", seconds=0.3)).final()
    assert isinstance(final, Error) and final.error.code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("skill", ["wait", "stubborn"])
async def test_a_cancelled_hop_ends_with_exactly_one_final_frame(
    broker: ScriptedBroker, researcher: Researcher, skill: str
) -> None:
    d = dispatch(f"agent/researcher/{skill}", {})
    heard = await broker.send(d)
    await heard.until(Started)
    subject = control_subject("researcher", heard.connection, d.txn, d.hop)
    for data in (b"nonsense", b"[]", b'{"cancel":true}'):
        await broker.nc.publish(subject, data)
    final = await heard.final()
    if skill == "wait":
        assert isinstance(final, Error) and final.error.code is Code.CANCELLED and final.error.effect == "unknown"
    await _settled(broker, researcher)
    assert sum(isinstance(frame, FINAL) for frame in heard.frames) == 1


async def test_stopping_lets_hops_in_hand_end(broker: ScriptedBroker) -> None:
    made = Researcher(broker)
    await made.agent.start()
    heard = await broker.call("agent/researcher/wait")
    await heard.until(Started)
    stopping = asyncio.create_task(made.agent.stop(10))
    asyncio.get_running_loop().call_later(0.1, made.go.set)
    await stopping
    final = await heard.final()
    assert isinstance(final, Result) and final.value == "waited"


async def test_stopping_at_once_still_answers(broker: ScriptedBroker) -> None:
    made = Researcher(broker)
    await made.agent.start()
    heard = await broker.call("agent/researcher/wait")
    await heard.until(Started)
    await made.agent.stop(0)
    final = await heard.final()
    assert isinstance(final, Error) and final.error.code is Code.CANCELLED


# Calls


async def test_a_call_carries_the_grant_and_comes_back_with_the_value(
    broker: ScriptedBroker, researcher: Researcher
) -> None:
    broker.scripts["mcp/web/fetch"] = lambda _: [
        accepted(),
        Progress(message="half"),
        Result(value={"page": 1}, cost=Amount(5, 0, 1)),
    ]
    d = dispatch("agent/researcher/relay", {"resource": "mcp/web/fetch"})
    final = await (await broker.send(d)).final()
    assert isinstance(final, Result) and final.value == {"page": 1}
    at, request = broker.requests[-1]
    assert (at.caller, at.txn, at.kind, at.name, at.op) == ("researcher", d.txn, "mcp", "web", "fetch")
    assert request.grant == d.grant and request.args == {"url": "x"}
    assert request.deadline is not None and request.deadline <= d.deadline
    assert researcher.hop is not None and researcher.hop.left == Amount(999_995, 1000, 7)


async def test_an_inner_refusal_reaches_the_outer_caller_as_it_is(
    broker: ScriptedBroker, researcher: Researcher
) -> None:
    body = no(Code.POLICY_DENIED, rule="no-web", ask="ask ann")
    broker.scripts["mcp/web/fetch"] = lambda _: [body]
    final = await (await broker.send(dispatch("agent/researcher/relay", {"resource": "mcp/web/fetch"}))).final()
    assert isinstance(final, Error)
    assert (final.error.code, final.error.rule, final.error.ask, final.error.effect) == (
        Code.POLICY_DENIED,
        "no-web",
        "ask ann",
        "none",
    )


async def test_a_task_calls_and_iterates_and_closes(broker: ScriptedBroker) -> None:
    hop = secrets.token_hex(8)
    broker.scripts["agent/researcher/brief"] = lambda _: [
        accepted(hop), Progress(message="one"), Event(data=2), Result(value="three", cost=Amount(0, 0, 2)),
    ]  # fmt: skip
    agent = Agent("cli", broker.credentials("cli"))
    async with agent.task(root("cli")) as task:
        run = await task.start("agent/researcher/brief", topic="NATS", key="job-81")
        assert run.id == hop
        assert [type(event) async for event in run] == [Progress, Event]
        assert await run.result() == "three"
        assert (await task.close())["txn"] == task.txn
        assert broker.requests[0][1].key == "job-81"
    assert not agent.connected


async def test_refusals_and_tool_errors_are_raised_with_all_they_say(broker: ScriptedBroker) -> None:
    broker.scripts["mcp/web/fetch"] = lambda _: [no(Code.RATE_LIMITED, rule="admit.rate", ask="wait", retry_after=2.5)]
    broker.scripts["mcp/web/fail"] = lambda _: [
        accepted(), Result(value={"content": [{"type": "text", "text": "no such page"}], "isError": True}, failed=True),
    ]  # fmt: skip
    async with open_task(grant=root("cli"), credentials=broker.credentials("cli")) as task:
        with pytest.raises(Refused) as no_:
            await task.call("mcp/web/fetch")
        assert (no_.value.code, no_.value.rule, no_.value.ask) == (Code.RATE_LIMITED, "admit.rate", "wait")
        assert no_.value.retryable and no_.value.retry_after == 2.5 and no_.value.effect == "none"
        with pytest.raises(ToolFailed, match="no such page") as failed:
            await task.call("mcp/web/fail")
        assert failed.value.value["isError"] is True


async def test_the_holder_of_the_root_closes_its_task(broker: ScriptedBroker) -> None:
    broker.scripts["mcp/web/fetch"] = lambda _: [accepted(), Result(value=1)]
    async with open_task(grant=root("cli"), credentials=broker.credentials("cli")) as task:
        assert await task.call("mcp/web/fetch") == 1
        await task.close()
    _, closed = broker.requests
    assert (closed[0].kind, closed[0].name, closed[0].op) == ("remit", "txn", "close") and closed[1].grant


async def test_cancelling_a_call_tells_the_broker(broker: ScriptedBroker) -> None:
    at = accepted()
    broker.scripts["agent/researcher/wait"] = lambda _: [at]
    async with open_task(grant=root("cli"), credentials=broker.credentials("cli")) as task:
        run = await task.start("agent/researcher/wait")
        waiting = asyncio.create_task(run.result())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(5):
            subject, data = await broker.controls.get()
        assert subject == f"ctl.cli.{REPLICA}.{at.txn}.{at.hop}" and data == b'{"cancel":true}'


async def test_leaving_a_task_cancels_what_it_started(broker: ScriptedBroker) -> None:
    broker.scripts["agent/researcher/wait"] = lambda _: [accepted()]
    async with open_task(grant=root("cli"), credentials=broker.credentials("cli")) as task:
        await task.start("agent/researcher/wait")
    async with asyncio.timeout(5):
        assert (await broker.controls.get())[0].startswith("ctl.cli.")


async def test_a_grant_of_somebody_else_is_refused_before_anything_is_sent(broker: ScriptedBroker) -> None:
    with pytest.raises(Refused) as no_:
        async with open_task(grant=root("planner"), credentials=broker.credentials("cli")):
            raise AssertionError
    assert no_.value.rule == "grant.audience" and broker.requests == []


async def test_an_answer_that_never_comes_ends_at_the_deadline(broker: ScriptedBroker) -> None:
    broker.scripts["mcp/web/fetch"] = lambda _: [accepted()]
    async with open_task(grant=root("cli"), credentials=broker.credentials("cli")) as task:
        with pytest.raises(Refused) as no_:
            await task.call("mcp/web/fetch", ttl="200ms")
        assert no_.value.code is Code.DEADLINE_EXCEEDED and no_.value.effect == "unknown"


async def test_a_request_that_is_too_large_is_never_published(broker: ScriptedBroker) -> None:
    async with open_task(grant=root("cli"), credentials=broker.credentials("cli")) as task:
        with pytest.raises(Refused) as no_:
            await task.call("mcp/web/fetch", body="x" * MAX_ENVELOPE)
        assert no_.value.code is Code.TOO_LARGE and no_.value.effect == "none" and broker.requests == []


async def test_an_answer_that_is_no_frame_ends_the_call(broker: ScriptedBroker) -> None:
    broker.scripts["mcp/web/fetch"] = lambda _: [{"frame": "nonsense"}]  # type: ignore[list-item]
    async with open_task(grant=root("cli"), credentials=broker.credentials("cli")) as task:
        with pytest.raises(Refused) as no_:
            await task.call("mcp/web/fetch")
        assert no_.value.code is Code.INTERNAL and no_.value.effect == "unknown"


async def test_nobody_on_the_bus_is_said_at_once(broker: ScriptedBroker) -> None:
    async with open_task(grant=root("cli"), credentials=broker.credentials("cli")) as task:
        await broker.go_deaf()
        with pytest.raises(Refused) as no_:
            await task.call("mcp/web/fetch")
        assert no_.value.code is Code.TARGET_UNAVAILABLE and no_.value.retryable


async def test_a_bus_that_is_not_there_is_refused(tmp_path: Path) -> None:
    broker = ScriptedBroker("nats://127.0.0.1:1", tmp_path)
    with pytest.raises(Refused) as no_:
        await Agent("cli", broker.credentials("cli")).connect()
    assert no_.value.code is Code.TARGET_UNAVAILABLE


# Lost connections


async def test_an_agent_serves_again_after_the_bus_was_away(
    server: LocalNats, broker: ScriptedBroker, researcher: Researcher
) -> None:
    await broker.until_attached()
    await server.kill()
    await server.start()
    await broker.until_attached()
    await _settled(broker, researcher)
    assert researcher.ran == ["last"]


async def test_a_result_waits_for_the_bus_to_come_back(
    server: LocalNats, broker: ScriptedBroker, researcher: Researcher
) -> None:
    heard = await broker.call("agent/researcher/wait")
    await heard.until(Started)
    await server.kill()
    researcher.go.set()
    await server.start()
    final = await heard.final(20)
    assert isinstance(final, Result) and final.value == "waited"


# What the credentials say, and what the bus permits


async def test_pinned_keys_win(broker: ScriptedBroker) -> None:
    made = Researcher(broker, jwks=KeySet([OTHER.public]).to_jwks())
    async with made.agent:
        final = await (await broker.call("agent/researcher/brief", topic="x")).final()
        assert isinstance(final, Error) and final.error.code is Code.GRANT_INVALID and made.ran == []


async def test_without_keys_in_the_file_those_of_the_broker_count(broker: ScriptedBroker) -> None:
    made = Researcher(broker, jwks=None, issuer=None)
    async with made.agent:
        final = await (await broker.call("agent/researcher/brief", topic="x")).final()
        assert isinstance(final, Result)


async def test_rotated_keys_are_read_again_from_the_file(broker: ScriptedBroker) -> None:
    made = Researcher(broker, jwks=KeySet([OTHER.public]).to_jwks())
    async with made.agent:
        broker.credentials("researcher", issuer=ISSUER)
        final = await (await broker.call("agent/researcher/brief", topic="x")).final()
        assert isinstance(final, Result)


async def test_an_agent_waits_for_a_broker_that_is_starting(broker: ScriptedBroker) -> None:
    answers = iter([[no(Code.LEDGER_UNAVAILABLE)], [no(Code.TARGET_UNAVAILABLE)]])
    put = broker._script

    def starting(at: Any, request: Any) -> Any:
        return next(answers, None) or put(at, request)

    broker._script = starting  # type: ignore[method-assign]
    made = Researcher(broker)
    async with made.agent:
        assert await broker.until_attached()


async def test_a_refused_registration_is_raised_and_disconnects(broker: ScriptedBroker) -> None:
    broker.scripts["remit/attach/put"] = lambda _: [no(Code.MALFORMED, rule="attach.name")]
    made = Researcher(broker)
    with pytest.raises(Refused) as no_:
        await made.agent.start()
    assert no_.value.rule == "attach.name" and not made.agent.connected
