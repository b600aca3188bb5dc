"""A caller that is gone when its result comes finds it again; nobody else does, and nothing of it can be read where it lies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from nats.js.errors import KeyNotFoundError

from remit import Agent, Hop, Refused
from remit_broker.adapters.kept_results import PIECE, KvResults
from remit_broker.testing import Lab
from remit_schemas.envelope import Accepted, Error, Result, Started
from tests.support.buckets import contents
from tests.support.process import process_lab
from tests.support.raw import RawAgent, arena_on, error_of, skill

SECRET = "the answer that only its caller may read"

CALLER = """
import asyncio, sys
from remit import open_task

async def main():
    grant, credentials = sys.argv[1:]
    async with open_task(grant=grant, as_="desk", credentials=credentials) as task:
        run = await task.start("agent/worker/work", key="job-81", keep=True, ttl="40s")
        print(run.id, flush=True)
        await run.result()

asyncio.run(main())
"""


class Worker:
    """An agent that answers when it is let."""

    def __init__(self) -> None:
        self.begun, self.let = asyncio.Event(), asyncio.Event()
        self.calls = 0

    async def agent(self, lab: Lab) -> Agent:
        me = Agent("worker", credentials=await lab.agent("worker"))

        @me.skill
        async def work(hop: Hop, size: int = 0) -> dict[str, Any]:
            self.calls += 1
            self.begun.set()
            await self.let.wait()
            hop.cost(usd="0.002")
            return {"answer": SECRET, "more": "x" * size}

        @me.skill
        async def fail(hop: Hop) -> None:
            raise ValueError("no")

        return me


async def test_a_caller_that_is_killed_finds_its_result_again(lab: Lab) -> None:
    """kill -9 while the call runs: by the id of the hop, and by making the same call again, which is not made again."""
    worker, desk = Worker(), await lab.agent("desk")
    opened = await lab.grant("desk", "agent/**")
    async with await worker.agent(lab):
        caller = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CALLER, opened.grant, str(desk), stdout=asyncio.subprocess.PIPE
        )
        assert caller.stdout is not None
        hop = (await asyncio.wait_for(caller.stdout.readline(), 20)).decode().strip()
        await asyncio.wait_for(worker.begun.wait(), 20)
        os.kill(caller.pid, signal.SIGKILL)
        await caller.wait()
        async with Agent("desk", credentials=desk).task(opened.grant) as task:
            early = await task.resume(hop)
            waiting = asyncio.create_task(early.result())
            done, _ = await asyncio.wait({waiting}, timeout=0.3)
            assert not done, "it runs still"
            worker.let.set()
            assert (await asyncio.wait_for(waiting, 20))["answer"] == SECRET
            assert early.id == hop
            again = await task.start("agent/worker/work", key="job-81", keep=True)
            assert (await again.result())["answer"] == SECRET
            assert again.id == hop
            assert (await task.call("agent/worker/work", key="job-81", keep=True))["answer"] == SECRET
            with pytest.raises(Refused) as no:
                await task.call("agent/worker/work", size=1, key="job-81", keep=True)
            assert no.value.code == "CONFLICT"
    assert worker.calls == 1


async def test_a_large_result_is_found_again_whole(lab: Lab) -> None:
    worker, desk = Worker(), await lab.agent("desk")
    worker.let.set()
    opened = await lab.grant("desk", "agent/**")
    async with await worker.agent(lab), Agent("desk", credentials=desk).task(opened.grant) as task:
        run = await task.start("agent/worker/work", size=3_000_000, key="k", keep=True)
        value = await run.result()
        assert await (await task.resume(run.id)).result() == value
    assert len(value["more"]) == 3_000_000
    room: Any = lab.broker.ports.room
    async with asyncio.timeout(5):
        while room.bytes:
            await asyncio.sleep(0.01)


async def test_how_a_call_ended_is_said_of_one_that_was_not_kept_or_failed(lab: Lab) -> None:
    worker, desk = Worker(), await lab.agent("desk")
    worker.let.set()
    opened = await lab.grant("desk", "agent/**")
    async with await worker.agent(lab), Agent("desk", credentials=desk).task(opened.grant) as task:
        plain = await task.start("agent/worker/work", key="plain")
        await plain.result()
        with pytest.raises(Refused, match="ended ok; its result was not kept") as no:
            await (await task.resume(plain.id)).result()
        assert (no.value.rule, no.value.effect) == ("result.not-kept", "happened")
        failed = await task.start("agent/worker/fail", key="failed", keep=True)
        with pytest.raises(Refused):
            await failed.result()
        with pytest.raises(Refused, match="the skill failed: ValueError") as no:
            await (await task.resume(failed.id)).result()
        assert no.value.code == "INTERNAL"
        worker.let.clear()
        late = await task.start("agent/worker/work", key="late", keep=True, ttl="500ms")
        with pytest.raises(Refused) as no:
            await (await task.resume(late.id)).result()
        assert (no.value.code, no.value.effect) == ("DEADLINE_EXCEEDED", "unknown")
        with pytest.raises(Refused, match="has a key"):
            await task.call("agent/worker/work", keep=True)


async def test_nobody_else_finds_a_result_or_learns_that_there_is_one(lab: Lab) -> None:
    """The key, the id and another grant of the same task are not enough, and what there is not looks the same."""
    async with arena_on(lab) as arena:
        desk, worker, other = [await arena.agent(name) for name in ("desk", "worker", "other")]
        await worker.serve(skill("work"))
        await other.serve(skill("work"))
        opened = await lab.grant("desk", "agent/**")
        worker.handlers["work"] = lambda taken: taken.done(SECRET)
        frames = await desk.call("agent/worker/work", opened.txn, opened.grant, key="k", keep=True)
        assert isinstance(frames[0], Accepted)
        mine = {"hop": frames[0].hop}, {"resource": "agent/worker/work", "key": "k"}
        for which in mine:
            found = await desk.call("remit/result/get", opened.txn, opened.grant, which)
            assert [type(frame) for frame in found] == [Accepted, Result]
            assert found[-1] == frames[-1], "what its caller heard, with what it cost"
        # Another agent of the same task, with a grant of its own, and the user's next task.
        calling = asyncio.ensure_future(desk.call("agent/other/work", opened.txn, opened.grant))
        theirs = (await other.took(opened.txn)).grant
        foreign = await lab.grant("desk", "agent/**")
        nothing = {"hop": "ab" * 8}, {"resource": "agent/worker/work", "key": "another"}
        told = set()
        for raw, txn, grant in ((other, opened.txn, theirs), (desk, foreign.txn, foreign.grant)):
            for which in (*mine, *nothing):
                body = error_of(await raw.call("remit/result/get", txn, grant, which))
                told.add((body.code, body.rule, body.message, body.ask))
        assert len(told) == 1 and next(iter(told))[:2] == ("UNKNOWN_TARGET", "result.unknown")
        for stolen in (None, opened.grant):
            assert error_of(await other.call("remit/result/get", opened.txn, stolen, mine[0])).code == "GRANT_INVALID"
        assert error_of(await desk.call("remit/result/get", "new", None, mine[0])).code == "GRANT_INVALID"
        for wrong in ({}, {"hop": 7}, {"hop": "x", "key": "k"}, {"key": "k"}, {"resource": "no", "key": "k"}):
            assert error_of(await desk.call("remit/result/get", opened.txn, opened.grant, wrong)).code == "MALFORMED"
        bare = error_of(await desk.call("agent/worker/work", opened.txn, opened.grant, keep=True))
        assert (bare.code, bare.rule) == ("MALFORMED", "admit.keep")
        await other.dispatched[-1].done()
        await calling


async def test_nothing_of_a_kept_result_can_be_read_where_it_lies(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    worker, desk = Worker(), await lab.agent("desk")
    worker.let.set()
    opened = await lab.grant("desk", "agent/**")
    async with await worker.agent(lab), Agent("desk", credentials=desk).task(opened.grant) as task:
        await task.call("agent/worker/work", key="kept", keep=True)
        await task.call("agent/worker/work", key="not kept")
    js = lab.broker.nats.core.jetstream()
    stored = list((await contents(js, "results")).values())
    assert len(stored) == 1, "only what was asked for"
    assert len(stored[0]) > 100 and SECRET.encode() not in stored[0]
    info = await js.stream_info("KV_results")
    assert info.config.max_age == 900
    places = [path for path in (lab.folder / "data").rglob("*") if path.is_file()]
    assert [path for path in places if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in caplog.text


async def test_pieces_cannot_be_exchanged(lab: Lab) -> None:
    """Neither those of two results nor those of one."""
    faults: list[str] = []
    results = KvResults(b"k" * 32, lambda where, error: faults.append(where))
    js = lab.broker.nats.core.jetstream()
    await results.start(js, 1, 900.0, 1 << 30)
    one, other = ("default", "1" * 32, "a" * 16), ("default", "1" * 32, "b" * 16)
    data = os.urandom(2 * PIECE + 10)
    assert await results.put(one, data) and await results.put(other, data)
    assert await results.get(one) == data
    kv = await js.key_value("results")
    whole = [(await kv.get(f"{'.'.join(one)}.{n}")).value or b"" for n in range(3)]
    await kv.put(f"{'.'.join(one)}.1", whole[2])
    assert await results.get(one) is None
    await kv.put(f"{'.'.join(one)}.1", (await kv.get(f"{'.'.join(other)}.1")).value or b"")
    assert await results.get(one) is None
    await kv.put(f"{'.'.join(one)}.1", whole[1][:-1] + bytes([whole[1][-1] ^ 1]))
    assert await results.get(one) is None
    assert faults == ["results.get"] * 3
    await kv.delete(f"{'.'.join(one)}.1")
    assert await results.get(one) is None
    stranger = KvResults(b"o" * 32, lambda *_: None)
    await stranger.start(js, 1, 900.0, 1 << 30)
    assert await stranger.get(other) is None
    with pytest.raises(KeyNotFoundError):
        await kv.get(f"{'.'.join(one)}.1")


KEPT: dict[str, Any] = {
    "key": "once",
    "keep": True,
    "want": {"budget": {"usd_micros": 1000, "tokens": 0, "calls": 3}, "ttl_ms": 1500},
}


@pytest.mark.slow
@pytest.mark.parametrize("point", ["close", "keep"])
async def test_a_broker_that_dies_around_the_close_loses_no_closed_result_and_gives_out_no_other(
    tmp_path: Path, point: str
) -> None:
    """Killed when the hop is closed and its caller not answered: the result is found. When it is stored and not closed: it is not."""
    async with process_lab(tmp_path) as lab:
        await lab.start(failpoint=point)
        await lab.agent("desk")
        await lab.agent("worker")
        desk = await RawAgent(lab, "desk", "agent").connect()  # type: ignore[arg-type]
        worker = await RawAgent(lab, "worker", "agent").connect()  # type: ignore[arg-type]
        await worker.serve(skill("work"))
        txn, grant = await lab.grant("desk", "agent/worker/work")
        calling = asyncio.ensure_future(desk.call("agent/worker/work", txn, grant, **KEPT))
        taken = await worker.took(txn)
        await taken.say(Started(connection=worker.connection), Result(value=SECRET))
        assert await lab.died() == -signal.SIGKILL
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        await desk.close()
        await worker.close()

        await lab.start()
        desk = await RawAgent(lab, "desk", "agent").connect()  # type: ignore[arg-type]
        asked = {"resource": "agent/worker/work", "key": "once"}
        subject = desk.subject("remit/result/get", txn)
        request = {"v": 1, "grant": grant, "args": asked, "deadline": int((time.time() + 20) * 1000)}
        frames = await desk.ask(subject, json.dumps(request).encode(), seconds=25)
        closed = (await lab.settled(txn))[-1]
        if point == "close":
            assert isinstance(frames[-1], Result) and frames[-1].value == SECRET
            assert closed["outcome"] == "ok"
        else:
            assert isinstance(frames[-1], Error) and frames[-1].error.code == "DEADLINE_EXCEEDED"
            assert (closed["outcome"], closed["result_digest"]) == ("unknown", "")
        await desk.close()
