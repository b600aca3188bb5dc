"""Windows: a callee that is faster than its reader waits, so that what is on its way is bounded wherever it is kept."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from remit import Agent, Hop, Refused
from remit_broker.testing import Lab
from remit_schemas import subjects
from remit_schemas.envelope import Accepted, Event, Progress, Started, parse_frame
from tests.support.raw import arena_on, error_of, skill

TOTAL = 400


class Talker:
    """An agent that says a lot, and how much it has said."""

    def __init__(self) -> None:
        self.said = 0
        self.ended = asyncio.Event()

    async def agent(self, lab: Lab) -> Agent:
        me = Agent("talker", credentials=await lab.agent("talker"))

        @me.skill
        async def talk(hop: Hop, count: int = TOTAL, size: int = 100) -> int:
            try:
                for n in range(count):
                    if n % 2:
                        await hop.progress(f"{n}")
                    else:
                        await hop.event({"n": n, "text": "x" * size})
                    self.said += 1
                return count
            finally:
                self.ended.set()

        return me


async def test_a_reader_that_stops_reading_stops_the_writer(lab: Lab) -> None:
    """However much there is to say, never more than the window is anywhere between the callee and its reader."""
    talker, desk = Talker(), await lab.agent("desk")
    opened = await lab.grant("desk", "agent/**")
    window, seen, most = 16, 0, 0
    async with await talker.agent(lab), Agent("desk", credentials=desk).task(opened.grant) as task:
        run = await task.start("agent/talker/talk", window=window, ttl="50s")
        async with asyncio.timeout(10):
            while talker.said < window:
                await asyncio.sleep(0.01)
        # It waits now: nothing more comes however long nobody reads.
        await asyncio.sleep(0.3)
        assert talker.said == window and not talker.ended.is_set()
        link: Any = task._link
        waiting = sum(len(answer._frames) for answer in link._answers._open.values())
        assert waiting <= window
        async for _ in run:
            seen += 1
            most = max(most, talker.said - seen)
            if seen % 50 == 0:
                await asyncio.sleep(0.02)
        assert await run.result() == TOTAL
    assert seen == TOTAL, "nothing was lost on the way"
    assert most <= window


async def test_waiting_for_the_result_alone_reads_too(lab: Lab) -> None:
    talker, desk = Talker(), await lab.agent("desk")
    opened = await lab.grant("desk", "agent/**")
    async with await talker.agent(lab), Agent("desk", credentials=desk).task(opened.grant) as task:
        assert await task.call("agent/talker/talk", window=1, ttl="50s") == TOTAL
        assert await (await task.start("agent/talker/talk", window=1024, ttl="50s")).result() == TOTAL
        with pytest.raises(Refused, match="between 1 and 1024"):
            await task.call("agent/talker/talk", window=2000)


async def test_without_a_window_nobody_waits(lab: Lab) -> None:
    talker, desk = Talker(), await lab.agent("desk")
    opened = await lab.grant("desk", "agent/**")
    async with await talker.agent(lab), Agent("desk", credentials=desk).task(opened.grant) as task:
        run = await task.start("agent/talker/talk")
        await asyncio.wait_for(talker.ended.wait(), 20)
        assert talker.said == TOTAL
        assert await run.result() == TOTAL


async def test_a_caller_that_never_reads_is_ended_by_the_deadline(lab: Lab) -> None:
    talker = Talker()
    async with await talker.agent(lab), arena_on(lab) as arena:
        raw = await arena.agent("raw")
        opened = await lab.grant("raw", "agent/**")
        began = time.monotonic()
        frames = await raw.call("agent/talker/talk", opened.txn, opened.grant, window=4, want={"ttl_ms": 1000})
        assert time.monotonic() - began > 0.9
        assert error_of(frames).code == "DEADLINE_EXCEEDED"
        assert sum(isinstance(frame, Progress | Event) for frame in frames) == 4
        await asyncio.wait_for(talker.ended.wait(), 5)
    assert talker.said == 4


async def test_what_a_caller_has_read_is_told_to_its_own_callee_only_and_as_the_broker_says_it(lab: Lab) -> None:
    """Nonsense is not passed on, nor what is no news, nor the word of anybody else."""
    async with arena_on(lab) as arena:
        desk, worker, stranger = [await arena.agent(name) for name in ("desk", "worker", "stranger")]
        await worker.serve(skill("work"))
        opened = await lab.grant("desk", "agent/worker/work")
        inbox = desk.inbox()
        frames = await desk.nc.subscribe(inbox)
        request = {"v": 1, "args": {}, "grant": opened.grant, "window": 8}
        await desk.nc.publish(desk.subject("agent/worker/work", opened.txn), json.dumps(request).encode(), reply=inbox)
        accepted = parse_frame((await frames.next_msg(5)).data)
        assert isinstance(accepted, Accepted)
        taken = await worker.took(opened.txn)
        assert taken.dispatch.window == 8
        told = await worker.nc.subscribe(f"_INBOX_worker.{worker.connection}.ctl.{accepted.txn}.{accepted.hop}")
        await worker.nc.flush()
        await taken.say(Started(connection=worker.connection), Progress(message="begun"))
        assert isinstance(parse_frame((await frames.next_msg(5)).data), Progress)
        mine = subjects.control("desk", accepted.replica, accepted.txn, accepted.hop)
        for said in (
            '{"read":"4"}', '{"read":-1}', '{"read":1.5}', '{"read":99999999}', "[]", "", '{"read":null}', '{"read":true}',
            '{"read":2,"more":"' + "x" * 5000 + '"}', '{"read":2}', '{"read":1}', '{"read":5}',
        ):  # fmt: skip
            await desk.nc.publish(mine, said.encode())
        theirs = subjects.control("stranger", accepted.replica, accepted.txn, accepted.hop)
        await stranger.nc.publish(theirs, b'{"read":7}')
        await stranger.nc.flush()
        await desk.nc.flush()
        heard = [(await told.next_msg(5)).data for _ in range(2)]
        assert heard == [b'{"read":2}', b'{"read":5}']
        await taken.done()
        await frames.next_msg(5)
        assert told.pending_msgs == 0


async def test_a_callee_that_ignores_the_window_is_bounded_as_before(lab: Lab) -> None:
    async with arena_on(lab) as arena:
        desk, worker = await arena.agent("desk"), await arena.agent("worker")
        await worker.serve(skill("work"))
        opened = await lab.grant("desk", "agent/worker/work")
        calling = asyncio.ensure_future(desk.call("agent/worker/work", opened.txn, opened.grant, window=1))
        taken = await worker.took(opened.txn)
        await taken.say(Started(connection=worker.connection))
        for _ in range(60):
            await taken.say(Event(data="x" * 100_000))
        body = error_of(await calling)
        assert (body.code, body.rule) == ("RESULT_INVALID", "dispatch.frames")
