"""Long work with the SDK against the running broker: grants that renew themselves, questions and answers, work that leaves its task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from remit import Agent, Hop, InputNeeded, Refused
from remit_broker.adapters.cedar import packaged
from remit_broker.hop import narrow, renew
from remit_broker.hop.txn import close_txn, revoke
from remit_broker.testing import Lab, running_broker
from remit_schemas.budget import Budget

DETACH = '@id("may-detach") @reason("yes") permit (principal, action == Action::"detach", resource);'
ASK, LONG, LATER = "agent/clerk/ask", "agent/clerk/long", "agent/archivist/file"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    policies = [("default.cedar", packaged("default.cedar")), ("detach.cedar", DETACH)]
    async with running_broker(tmp_path, policies=policies) as running:
        yield running


@pytest.fixture
def short_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grants of six seconds instead of sixty."""
    monkeypatch.setattr(narrow, "GRANT_TTL", 6)
    monkeypatch.setattr(renew, "GRANT_TTL", 6)


async def kinds(lab: Lab, txn: str) -> list[str]:
    return [record["kind"] for record in await lab.records(txn)]


async def clerk(lab: Lab, work: Callable[[Hop], Awaitable[Any]]) -> Agent:
    """An agent with the skill ``ask``, which does ``work``."""
    me = Agent(
        "clerk", await lab.agent("clerk") if "clerk" not in lab.seeds else lab.folder / "credentials" / "clerk.json"
    )

    @me.skill
    async def ask(hop: Hop, what: str = "") -> Any:
        return await work(hop)

    return me


# Renewal


async def test_a_hop_longer_than_its_grant_renews_it_and_goes_on_calling(lab: Lab, short_grants: None) -> None:
    desk, calls = await lab.agent("desk"), []
    echo = Agent("echo", await lab.agent("echo"))

    @echo.skill
    async def say(hop: Hop) -> str:
        return "echo"

    async def work(hop: Hop) -> str:
        first = hop.grant
        while hop.grant.jti.n < 3:
            calls.append(await hop.call("agent/echo/say", budget="1calls"))
            await asyncio.sleep(0.05)
        assert hop.grant.claims.exp > first.claims.exp and hop.user == "ann" and hop.chain == ("clerk", "desk")
        return "done"

    root = await lab.grant("desk", "agent/**", budget="usd=1,calls=2000")
    async with echo, await clerk(lab, work), Agent("desk", desk).task(root.grant) as task:
        assert await task.call(ASK, ttl="60s", budget="1900calls") == "done"
    assert (await kinds(lab, root.txn)).count("grant.renewed") >= 2
    assert len(calls) > 3 and set(calls) == {"echo"}


async def test_a_skill_whose_hop_has_ended_is_stopped(lab: Lab, short_grants: None, monkeypatch: Any) -> None:
    """Nobody told it: the refusal of its renewal does."""
    desk, stopped, begun = await lab.agent("desk"), asyncio.Event(), asyncio.Event()

    async def work(hop: Hop) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async def untold(*_: Any) -> None:
        pass

    root = await lab.grant("desk", "agent/**")
    async with await clerk(lab, work), Agent("desk", desk).task(root.grant) as task:
        run = await task.start(ASK, ttl="60s")
        await begun.wait()
        monkeypatch.setattr(type(lab.broker.ports.bus), "cancel", untold)
        monkeypatch.setattr(type(lab.broker.ports.bus), "ended", untold)
        await close_txn("default", root.txn, "ops", "closed", lab.broker.ports)
        await asyncio.wait_for(stopped.wait(), 10)
        run.abandon()


# Asking


async def test_a_skill_asks_waits_and_goes_on_where_it_was(lab: Lab) -> None:
    desk, ran = await lab.agent("desk"), []

    async def work(hop: Hop) -> str:
        ran.append(hop.id)
        before = hop.grant
        hop.cost(usd="0.001")
        answer = await hop.ask({"which": ["a", "b"]})
        assert hop.grant.jti.n == before.jti.n + 1 and hop.user == "ann" and hop.chain == ("clerk", "desk")
        assert hop.left == Budget(5000, 0, 3), "the budget is that of the resumption"
        hop.cost(usd="0.002")
        return f"{answer} it is"

    root = await lab.grant("desk", "agent/**")
    async with await clerk(lab, work), Agent("desk", desk).task(root.grant) as task:
        left = task.left
        with pytest.raises(InputNeeded) as need:
            await task.call(ASK, budget="0.01usd 10calls", what="x")
        assert need.value.request == {"which": ["a", "b"]} and need.value.resource == ASK
        assert task.left == left.minus(Budget(1000, 0, 1)), "what was not used is ours again"
        assert await need.value.answer("b", budget="0.005usd 4calls") == "b it is"
        assert task.left == left.minus(Budget(3000, 0, 2))
    assert len(ran) == 1
    assert await kinds(lab, root.txn) == ["txn.opened", "hop.opened", "hop.parked", "hop.resumed", "hop.closed"]


async def test_a_skill_may_ask_more_than_once(lab: Lab) -> None:
    desk = await lab.agent("desk")

    async def work(hop: Hop) -> list[Any]:
        return [await hop.ask(number) for number in range(3)]

    root = await lab.grant("desk", "agent/**")
    async with await clerk(lab, work), Agent("desk", desk).task(root.grant) as task:
        run = await task.start(ASK)
        for number in range(3):
            with pytest.raises(InputNeeded) as need:
                await run.result()
            assert need.value.request == number and run.asks
            run = await task.resume(run.id, input=number * 10)
        assert await run.result() == [0, 10, 20]


async def test_who_waits_no_longer_is_run_again_with_the_input(lab: Lab) -> None:
    desk, ran = await lab.agent("desk"), []

    async def work(hop: Hop) -> str:
        ran.append(hop.input)
        return f"{await hop.ask('well?', wait='50ms')}!"

    root = await lab.grant("desk", "agent/**")
    agent = await clerk(lab, work)
    async with agent, Agent("desk", desk).task(root.grant) as task:
        with pytest.raises(InputNeeded) as need:
            await task.call(ASK, what="x")
        while len(agent._worker or ()):
            await asyncio.sleep(0.01)
        assert await need.value.answer("yes") == "yes!"
    assert ran == [None, "yes"]


async def test_a_skill_that_parks_ends_and_another_process_takes_the_input(lab: Lab) -> None:
    desk, ran = await lab.agent("desk"), []

    async def work(hop: Hop) -> str:
        ran.append(hop.input)
        if hop.input is None:
            await hop.park("yes or no?")
        return f"{hop.input}, then"

    root = await lab.grant("desk", "agent/**")
    async with Agent("desk", desk).task(root.grant) as task:
        async with await clerk(lab, work):
            run = await task.start(ASK, what="x")
            with pytest.raises(InputNeeded):
                await run.result()
        with pytest.raises(Refused) as no:
            await (await task.resume(run.id, input="no")).result()
        assert (no.value.code, no.value.effect) == ("TARGET_UNAVAILABLE", "none")
        async with await clerk(lab, work):
            # As after a crash of the caller, who knows what it had called.
            again = await task.resume(run.id, ASK, input="yes", what="x")
            assert await again.result() == "yes, then"
    assert ran == [None, "yes"]


async def test_an_agent_that_stops_while_it_waits_leaves_the_hop_parked(lab: Lab) -> None:
    desk = await lab.agent("desk")
    root = await lab.grant("desk", "agent/**")

    async def work(hop: Hop) -> Any:
        return await hop.ask("still there?")

    async with Agent("desk", desk).task(root.grant) as task:
        agent = await clerk(lab, work)
        await agent.start()
        with pytest.raises(InputNeeded) as need:
            await task.call(ASK)
        began = time.monotonic()
        await agent.stop()
        assert time.monotonic() - began < 8, "nobody is waited for who waits for somebody else"
        assert (await kinds(lab, root.txn))[-1] == "hop.parked"
        async with await clerk(lab, work):
            assert await need.value.answer("yes") == "yes"


async def test_waiting_is_not_working_and_takes_none_of_the_time(lab: Lab) -> None:
    desk = await lab.agent("desk")

    async def work(hop: Hop) -> bool:
        first = hop.deadline
        await hop.ask("when?")
        return hop.deadline > first and hop.remaining > 5

    root = await lab.grant("desk", "agent/**")
    async with await clerk(lab, work), Agent("desk", desk).task(root.grant) as task:
        with pytest.raises(InputNeeded) as need:
            await task.call(ASK, ttl="4s")
        await asyncio.sleep(4.2)
        assert await need.value.answer(1, ttl="20s") is True


@pytest.mark.parametrize("how", ["cancelled", "closed", "revoked"])
async def test_a_skill_that_waits_for_an_input_is_stopped_when_none_will_come(lab: Lab, how: str) -> None:
    desk, stopped = await lab.agent("desk"), asyncio.Event()

    async def work(hop: Hop) -> Any:
        try:
            return await hop.ask("well?")
        finally:
            stopped.set()

    root = await lab.grant("desk", "agent/**")
    async with await clerk(lab, work), Agent("desk", desk).task(root.grant) as task:
        with pytest.raises(InputNeeded) as need:
            await task.call(ASK)
        match how:
            case "cancelled":
                await need.value.cancel()
            case "closed":
                await task.close()
            case _:
                await revoke("default", f"{root.txn}.{need.value.id}.1", "ops", "", lab.broker.ports)
                with pytest.raises(Refused) as no:
                    await need.value.answer("x")
                assert no.value.code == "GRANT_REVOKED"
                await task.close()
        await asyncio.wait_for(stopped.wait(), 5)
    assert (await lab.records(root.txn))[3]["outcome" if how != "revoked" else "kind"] in ("cancelled", "grant.revoked")


async def test_a_question_goes_up_through_an_agent_that_hands_it_on(lab: Lab) -> None:
    desk, middle = await lab.agent("desk"), Agent("middle", await lab.agent("middle"))

    @middle.skill
    async def brief(hop: Hop) -> str:
        try:
            return str(await hop.call(ASK))
        except InputNeeded as need:
            answer = await hop.ask({"clerk asks": need.request})
            return str(await need.answer(answer))

    async def work(hop: Hop) -> str:
        return f"{await hop.ask('which?')} it is"

    root = await lab.grant("desk", "agent/**")
    async with middle, await clerk(lab, work), Agent("desk", desk).task(root.grant) as task:
        with pytest.raises(InputNeeded) as need:
            await task.call("agent/middle/brief", budget="0.1usd 20calls")
        assert need.value.request == {"clerk asks": "which?"}
        assert await need.value.answer("the second", budget="0.1usd 20calls") == "the second it is"


async def test_a_question_that_a_skill_does_not_handle_is_an_error_that_says_so(lab: Lab) -> None:
    desk, middle = await lab.agent("desk"), Agent("middle", await lab.agent("middle"))

    @middle.skill
    async def brief(hop: Hop) -> str:
        return str(await hop.call(ASK))

    async def work(hop: Hop) -> Any:
        return await hop.ask("which?")

    root = await lab.grant("desk", "agent/**")
    async with middle, await clerk(lab, work), Agent("desk", desk).task(root.grant) as task:
        with pytest.raises(Refused, match="asks for an input"):
            await task.call("agent/middle/brief", budget="0.1usd 20calls")


async def test_a_call_that_was_not_made_here_is_named_in_full(lab: Lab) -> None:
    desk = await lab.agent("desk")
    root = await lab.grant("desk", "agent/**")
    async with Agent("desk", desk).task(root.grant) as task:
        with pytest.raises(Refused, match="name its resource"):
            await task.resume("f" * 16, input=1)


# Detaching


async def test_detached_work_goes_on_when_its_hop_has_ended(lab: Lab) -> None:
    desk, archivist = await lab.agent("desk"), Agent("archivist", await lab.agent("archivist"))
    go, left = asyncio.Event(), []
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @archivist.skill
    async def file(hop: Hop, what: str) -> str:
        await go.wait()
        return f"{what} filed for {hop.user}"

    async def work(hop: Hop) -> str:
        before = hop.left
        detached = await hop.detach(LATER, budget="0.01usd 3calls", ttl="1h", what="the report")
        left.append(before.minus(hop.left))
        told.set_result(detached)
        return detached.txn

    root = await lab.grant("desk", "agent/**")
    async with archivist, await clerk(lab, work), Agent("desk", desk).task(root.grant) as task:
        txn = await task.call(ASK, budget="0.1usd 20calls")
        await task.close()
        assert left == [Budget(10_000, 0, 3)]
        detached = await told
        assert detached.txn == txn != root.txn
        go.set()
        assert await detached.result() == "the report filed for ann"
    records = await lab.records(txn)
    assert [record["kind"] for record in records] == ["txn.opened", "hop.opened", "hop.closed", "txn.closed"]
    assert records[0]["budget"] == {"usd_micros": 10_000, "tokens": 0, "calls": 2}
    assert records[0]["continues"].startswith(root.txn)


async def test_detaching_without_a_policy_is_refused(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as lab:
        desk = await lab.agent("desk")
        archivist = Agent("archivist", await lab.agent("archivist"))

        @archivist.skill
        async def file(hop: Hop) -> None: ...

        root = await lab.grant("desk", "agent/**")
        async with archivist, Agent("desk", desk).task(root.grant) as task:
            with pytest.raises(Refused) as no:
                await task.detach(LATER)
        assert no.value.code == "POLICY_DENIED" and "detach" in no.value.ask
