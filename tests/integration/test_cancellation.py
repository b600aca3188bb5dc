"""A caller that does not wait any more: the callee is told, the hop is closed and charged, and nobody else can do that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from remit import Agent, Hop, Refused
from remit_broker.testing import Lab
from remit_schemas import subjects
from remit_schemas.envelope import Accepted, Error, Result, parse_frame
from tests.support.raw import Arena, arena_on, skill

CANCEL = b'{"cancel":true}'


@pytest.fixture
async def arena(lab: Lab) -> AsyncIterator[Arena]:
    async with arena_on(lab) as running:
        yield running


async def test_a_cancelled_run_stops_the_skill_and_closes_its_hop(lab: Lab):
    desk, worker = await lab.agent("desk"), await lab.agent("worker")
    begun, stopped = asyncio.Event(), asyncio.Event()
    me = Agent("worker", credentials=worker)

    @me.skill
    async def wait(hop: Hop) -> str:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped.set()
            raise
        return "never"

    opened = await lab.grant("desk", "agent/worker/wait", budget="usd=1,calls=10")
    async with me, Agent("desk", credentials=desk).task(opened.grant) as task:
        run = await task.start("agent/worker/wait", budget="usd=0.2,calls=2")
        await asyncio.wait_for(begun.wait(), 5)
        await run.cancel()
        with pytest.raises(Refused) as no:
            await run.result()
        await asyncio.wait_for(stopped.wait(), 5)
    assert (no.value.code, no.value.effect) == ("CANCELLED", "unknown")
    closed = (await lab.records(opened.txn))[-1]
    assert (closed["kind"], closed["outcome"], closed["code"]) == ("hop.closed", "cancelled", "CANCELLED")
    assert closed["spent"] == {"usd_micros": 200_000, "tokens": 0, "calls": 2}


async def test_only_the_caller_cancels(arena: Arena):
    desk, worker, stranger = await arena.agent("desk"), await arena.agent("worker"), await arena.agent("stranger")
    await worker.serve(skill("work"))
    opened = await arena.lab.grant("desk", "agent/worker/work")
    inbox = desk.inbox()
    frames = await desk.nc.subscribe(inbox)
    request = b'{"v":1,"args":{},"grant":"%s"}' % opened.grant.encode()
    await desk.nc.publish(desk.subject("agent/worker/work", opened.txn), request, reply=inbox)
    accepted = parse_frame((await frames.next_msg(5)).data)
    assert isinstance(accepted, Accepted)
    taken = await worker.took(opened.txn)
    for raw in (stranger, worker):
        at = subjects.control(raw.name, accepted.replica, accepted.txn, accepted.hop)
        await raw.nc.publish(at, CANCEL)
        await raw.nc.publish(at.replace(f"ctl.{raw.name}.", "ctl.desk."), CANCEL)
        await raw.nc.flush()
        async with asyncio.timeout(5):  # the server's word comes when it comes
            while not any("permissions violation" in error.lower() for error in raw.errors):
                await asyncio.sleep(0.01)
    mine = subjects.control("desk", accepted.replica, accepted.txn, accepted.hop)
    await desk.nc.publish(mine, b'{"cancel":1}')
    await desk.nc.flush()
    await taken.done("worked")
    final = parse_frame((await frames.next_msg(5)).data)
    assert isinstance(final, Result)
    assert not isinstance(final, Error)
