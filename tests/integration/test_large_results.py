"""Results larger than an envelope, from callee to caller through the real thing."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from remit import Agent, Hop, Refused
from remit_broker.adapters import releasing
from remit_broker.hop import inspect_result as inspection
from remit_broker.testing import Lab, running_broker
from remit_schemas.envelope import MAX_ENVELOPE
from tests.support.raw import arena_on, error_of


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": n, "name": f"row “{n}”", "note": 'some "text" and \\ what has to be escaped'} for n in range(count)]


async def giver(lab: Lab) -> Agent:
    me = Agent("giver", credentials=await lab.agent("giver"))

    @me.skill
    async def give(hop: Hop, count: int) -> list[dict[str, Any]]:
        return rows(count)

    return me


async def test_a_large_result_comes_whole_and_is_inspected_aside(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    me, desk = await giver(lab), await lab.agent("desk")
    opened = await lab.grant("desk", "agent/**")
    size = len(json.dumps(rows(60_000)))
    assert 4 << 20 < size < 16 << 20
    looking: set[int] = set()
    look = inspection._look

    def watched(*args: Any) -> Any:
        looking.add(threading.get_ident())
        return look(*args)

    monkeypatch.setattr(inspection, "_look", watched)
    async with me, Agent("desk", credentials=desk).task(opened.grant) as task:
        assert await task.call("agent/giver/give", count=60_000) == rows(60_000)
        assert looking and threading.get_ident() not in looking, "the loop goes on while it is inspected"
        assert (await task.call("agent/giver/give", count=1)) == rows(1)
    closed = [record for record in await lab.records(opened.txn) if record["kind"] == "hop.closed"]
    assert [record["outcome"] for record in closed] == ["ok", "ok"]
    assert closed[0]["result_size"] > MAX_ENVELOPE


async def test_a_caller_without_parts_is_told_that_it_is_too_large(lab: Lab) -> None:
    me = await giver(lab)
    async with me, arena_on(lab) as arena:
        raw = await arena.agent("raw")
        opened = await lab.grant("raw", "agent/**")
        body = error_of(await raw.call("agent/giver/give", opened.txn, opened.grant, {"count": 20_000}))
    assert (body.code, body.rule) == ("RESULT_INVALID", "result.size")
    assert str(MAX_ENVELOPE - 256) in body.message


async def test_more_than_the_broker_takes_is_refused_by_the_callee_itself(tmp_path: Any) -> None:
    async with running_broker(tmp_path, {"limits": {"result_bytes": 1 << 20}}) as lab:
        me, desk = await giver(lab), await lab.agent("desk")
        opened = await lab.grant("desk", "agent/**")
        async with me, Agent("desk", credentials=desk).task(opened.grant) as task:
            assert len(await task.call("agent/giver/give", count=11_000)) == 11_000
            with pytest.raises(Refused) as no:
                await task.call("agent/giver/give", count=20_000)
    assert (no.value.code, no.value.rule) == ("RESULT_INVALID", "result.size")


async def test_a_slow_caller_gets_a_large_result_whole(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on its way to a caller never exceeds a few parts, however slowly it takes them."""
    me, desk = await giver(lab), await lab.agent("desk")
    opened = await lab.grant("desk", "agent/**")
    ahead: list[int] = []
    say = releasing.Releasing.hear

    def hear(self: releasing.Releasing, said: Any) -> None:
        say(self, said)
        ahead.append(said.parts)

    monkeypatch.setattr(releasing.Releasing, "hear", hear)
    async with me, Agent("desk", credentials=desk).task(opened.grant) as task:
        run = await task.start("agent/giver/give", count=60_000)
        frames: Any = run._frames
        most = 0
        while not run.done:
            await asyncio.sleep(0.02)
            most = max(most, sum(len(data) for data in frames._frames))
            await run._next()
        assert await run.result() == rows(60_000)
    assert ahead == sorted(ahead) and len(ahead) >= 5
    assert 0 < most < 12 * 800_000, "no more than may be ahead waits for a caller"


async def test_a_caller_that_takes_no_parts_any_more_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releasing, "PATIENCE", 0.2)
    me = await giver(lab)
    room: Any = lab.broker.ports.room
    async with me, arena_on(lab) as arena:
        raw = await arena.agent("raw")
        opened = await lab.grant("raw", "agent/**")
        with pytest.raises(TimeoutError):
            await raw.call("agent/giver/give", opened.txn, opened.grant, {"count": 40_000}, parts=True)
        async with asyncio.timeout(10):
            while room.bytes:
                await asyncio.sleep(0.02)
        records = await lab.records(opened.txn)
        assert (records[-1]["kind"], records[-1]["outcome"]) == ("hop.closed", "ok")
