"""Waiting for a person with the SDK: a task waits, a hop parks and holds nothing, and the identical call goes through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remit import Agent, Hop, InputNeeded, Refused
from remit_broker.adapters.cedar import packaged
from remit_broker.hop.decide import Approver, Verdict, decide
from remit_broker.hop.txn import Opened
from remit_broker.testing import Lab, running_broker
from tests.support.raw import arena_on

SEND, ASK, PASS = "mcp/mail/send", "agent/clerk/ask", "agent/chief/ask"


class Desk:
    """A running broker, a mail server behind an approval, and somebody who decides."""

    def __init__(self, lab: Lab, boss: Path) -> None:
        self.lab, self.boss = lab, boss
        self.sent: list[dict[str, Any]] = []

    async def root(self, *scopes: str) -> Opened:
        """A task of the agent boss."""
        return await self.lab.grant("boss", *scopes)

    async def waiting(self, txn: str, count: int = 1) -> str:
        """The id of the newest request of a task, once there are ``count``."""
        async with asyncio.timeout(15):
            while True:
                fold = await self.lab.broker.ledger.newest("default", txn)
                if len(fold.requests) >= count:
                    return max(fold.requests.values(), key=lambda one: one.asked.seq).id
                await self.lab.broker.ports.bus.until_ended((txn, ""), 0.05)

    async def says(self, txn: str, verdict: Verdict = "approve", reason: str = "", count: int = 1) -> str:
        name = await self.waiting(txn, count)
        by = Approver(who="local:eve", user="eve", tenant="default", auth="local", roles=("approver",))
        await decide(txn, name, verdict, reason, by, self.lab.broker.ports)
        return name

    async def state(self, txn: str, hop: str) -> str:
        return (await self.lab.broker.ledger.newest("default", txn)).nodes[hop].state

    async def kinds(self, root: Opened) -> list[str]:
        return [record["kind"] for record in await self.lab.records(root.txn)]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    policies = [("default.cedar", packaged("default.cedar"))]
    async with running_broker(tmp_path, policies=policies) as lab, arena_on(lab) as arena:
        made, mail = Desk(lab, await lab.agent("boss")), await arena.agent("mail", "mcp")

        async def send(taken: Any) -> None:
            made.sent.append(taken.dispatch.args)
            await taken.done("sent")

        mail.handlers["send"] = send
        await mail.serve({"name": "send", "inputSchema": {"type": "object"}})
        yield made


async def agent(lab: Lab, name: str, work: Any) -> Agent:
    """An agent with the skill ``ask``, which does ``work``."""
    me = Agent(name, await lab.agent(name))

    @me.skill
    async def ask(hop: Hop) -> Any:
        return await work(hop)

    return me


async def _awaited(call: Any) -> Any:
    return await call


async def test_a_task_waits_and_the_identical_call_goes_through(desk: Desk) -> None:
    root = await desk.root("mcp/**")
    async with Agent("boss", desk.boss).task(root.grant) as task:
        calling = asyncio.ensure_future(_awaited(task.call(SEND, to="ann", wait_for_approval=True)))
        name = await desk.says(root.txn)
        assert await calling == "sent"
    assert desk.sent == [{"to": "ann"}]
    opened = next(record for record in await desk.lab.records(root.txn) if record["kind"] == "hop.opened")
    assert opened["approval"] == name


async def test_what_is_denied_raises_with_the_reason(desk: Desk) -> None:
    root = await desk.root("mcp/**")
    async with Agent("boss", desk.boss).task(root.grant) as task:

        async def call() -> Any:
            return await task.call(SEND, to="ann", wait_for_approval="20s")

        calling = asyncio.ensure_future(call())
        await desk.says(root.txn, "deny", "not to her")
        with pytest.raises(Refused, match="not to her") as no:
            await calling
    assert (no.value.code, no.value.rule, desk.sent) == ("APPROVAL_INVALID", "approve.denied", [])


async def test_who_does_not_wait_is_told_the_id_and_may_name_it(desk: Desk) -> None:
    root = await desk.root("mcp/**")
    async with Agent("boss", desk.boss).task(root.grant) as task:
        with pytest.raises(Refused) as no:
            await task.call(SEND, to="ann")
        assert no.value.approval == await desk.says(root.txn) and no.value.approval in (no.value.approval_url or "")
        assert await task.approved(no.value) == no.value.approval
        assert await task.call(SEND, to="ann", approval=no.value.approval) == "sent"
        other = Refused(no.value.body.__class__(code=no.value.code, message="nobody"))
        with pytest.raises(Refused, match="nobody"):
            await task.approved(other)


async def test_nobody_waits_longer_than_they_say(desk: Desk) -> None:
    root = await desk.root("mcp/**")
    async with Agent("boss", desk.boss).task(root.grant) as task:
        with pytest.raises(Refused) as no:
            await task.call(SEND, to="ann", wait_for_approval=0.6)
    assert (no.value.code, no.value.rule, no.value.effect) == ("APPROVAL_REQUIRED", "client.approval", "none")


async def test_a_hop_parks_until_it_is_decided_and_goes_on_where_it_was(desk: Desk) -> None:
    ran: list[str] = []

    async def work(hop: Hop) -> Any:
        ran.append(hop.id)
        return await hop.call(SEND, to="ann", wait_for_approval=True)

    root = await desk.root("mcp/**", "agent/**")
    async with (
        await agent(desk.lab, "clerk", work),
        Agent("boss", desk.boss).task(root.grant) as task,
    ):
        with pytest.raises(InputNeeded) as need:
            await task.call(ASK, ttl="8s")
        asked = need.value.request["approval"]
        assert asked["id"] == await desk.waiting(root.txn) and asked["url"].endswith(asked["id"])
        assert await desk.state(root.txn, need.value.id) == "parked", "it holds nothing while a person thinks"
        await desk.says(root.txn)
        assert await need.value.answer({"approval": {"id": asked["id"]}}) == "sent"
    assert len(ran) == 1 and desk.sent == [{"to": "ann"}]
    assert await desk.kinds(root) == [
        "txn.opened", "hop.opened", "approval.requested", "hop.parked", "approval.decided", "hop.resumed", "hop.opened",
        "hop.closed", "hop.closed",
    ]  # fmt: skip


async def test_a_question_goes_up_through_agents_and_the_task_waits_for_it(desk: Desk) -> None:
    async def work(hop: Hop) -> Any:
        return await hop.call(SEND, to="ann", wait_for_approval=True)

    async def hand_on(hop: Hop) -> Any:
        return await hop.call(ASK, wait_for_approval=True)

    root = await desk.root("mcp/**", "agent/**")
    async with (
        await agent(desk.lab, "clerk", work),
        await agent(desk.lab, "chief", hand_on),
        Agent("boss", desk.boss).task(root.grant) as task,
    ):

        async def call() -> Any:
            return await task.call(PASS, wait_for_approval=True)

        calling = asyncio.ensure_future(call())
        await desk.says(root.txn)
        assert await calling == "sent"
    kinds = await desk.kinds(root)
    assert (kinds.count("hop.parked"), kinds.count("hop.resumed"), desk.sent) == (2, 2, [{"to": "ann"}])


async def test_a_skill_that_is_run_again_makes_the_call_and_hears_no_answer_of_its_own(desk: Desk) -> None:
    inputs: list[Any] = []

    async def work(hop: Hop) -> Any:
        inputs.append(hop.input)
        try:
            return await hop.call(SEND, to="ann")
        except Refused as no:
            about = {"approval": {"id": no.approval, "url": "", "message": ""}}
            await hop.park(about)

    root = await desk.root("mcp/**", "agent/**")
    async with (
        await agent(desk.lab, "clerk", work),
        Agent("boss", desk.boss).task(root.grant) as task,
    ):

        async def call() -> Any:
            return await task.call(ASK, wait_for_approval=True)

        calling = asyncio.ensure_future(call())
        name = await desk.says(root.txn)
        assert await calling == "sent"
    assert inputs == [None, {"approval": {"id": name}}]
