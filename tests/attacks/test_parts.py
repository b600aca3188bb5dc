"""Results in parts by callees that lie about them, and callers that do not take them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import pytest_asyncio

from remit_broker.core.fold import fold_all
from remit_broker.hop.txn import Opened
from remit_schemas.control import Control, encode_control
from remit_schemas.envelope import MAX_ENVELOPE, Accepted, Error, Frame, Part, Result, Started, parse_frame
from remit_schemas.parts import AHEAD, Joiner, split
from remit_schemas.subjects import control
from tests.support.raw import Arena, RawAgent, Taken, error_of, skill

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORK = "agent/eve/work"
AWS = "AKIA" + "Q3EGRIZ7MJ2VKXHD"
LARGE = {"rows": [f"row {n} of some length, so that there is enough of it" for n in range(40_000)]}


class Stage:
    def __init__(self, arena: Arena, alice: RawAgent, eve: RawAgent, bob: RawAgent) -> None:
        self.arena, self.alice, self.eve, self.bob = arena, alice, eve, bob

    async def root(self) -> Opened:
        return await self.arena.lab.grant("alice", "agent/**")

    async def begin(self, root: Opened, resource: str = WORK, **fields: Any) -> tuple[asyncio.Task[list[Frame]], Taken]:
        callee = self.eve if resource == WORK else self.bob
        calling = asyncio.ensure_future(self.alice.call(resource, root.txn, root.grant, **fields))
        return calling, await callee.took(root.txn)

    async def closed(self, root: Opened) -> dict[str, Any]:
        records = await self.arena.lab.records(root.txn)
        assert [record["kind"] for record in records] == ["txn.opened", "hop.opened", "hop.closed"]
        fold_all(records)
        return records[-1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(arena: Arena) -> Stage:
    alice, eve, bob = [await arena.agent(name) for name in ("alice", "eve", "bob")]
    await eve.serve(skill("work"))
    await bob.serve(skill("work"))
    return Stage(arena, alice, eve, bob)


async def hear(stage: Stage, root: Opened, seconds: float = 20) -> tuple[list[Frame], Taken]:
    """A call by hand, whose caller says that it has taken the parts."""
    inbox = stage.alice.inbox()
    ear = await stage.alice.nc.subscribe(inbox)
    request = json.dumps({"v": 1, "grant": root.grant, "args": {}, "parts": True}).encode()
    await stage.alice.nc.publish(stage.alice.subject(WORK, root.txn), request, reply=inbox)
    taken = await stage.eve.took(root.txn)
    asyncio.ensure_future(answer(taken, LARGE))  # noqa: RUF006 - awaited through what is heard
    frames: list[Frame] = []
    async with asyncio.timeout(seconds):
        while not (frames and isinstance(frames[-1], Result | Error)):
            frames.append(parse_frame((await ear.next_msg(seconds)).data))
            if isinstance(frames[-1], Part):
                at = frames[0]
                assert isinstance(at, Accepted)
                said = encode_control(Control(parts=frames[-1].seq + 1))
                await stage.alice.nc.publish(control("alice", at.replica, at.txn, at.hop), said)
    await ear.unsubscribe()
    return frames, taken


async def answer(taken: Taken, value: Any) -> None:
    """All parts at once: fewer than may be ahead."""
    parts = list(split(value))
    assert 2 < len(parts) <= AHEAD + 4
    await taken.say(Started(connection=taken.callee.connection), *parts, Result(value=None, parts=len(parts)))


async def test_a_result_in_parts_is_digested_and_recorded_as_the_whole(stage: Stage) -> None:
    root = await stage.root()
    frames, taken = await hear(stage, root)
    assert taken.dispatch.parts == 16 << 20
    final, joiner = frames[-1], Joiner(1 << 24)
    assert isinstance(final, Result) and final.value is None
    for frame in frames:
        if isinstance(frame, Part):
            joiner.take(frame)
    assert joiner.whole(final).value == LARGE
    closed = await stage.closed(root)
    text = json.dumps(LARGE, separators=(",", ":"), sort_keys=True).encode()
    assert closed["result_size"] == len(text) > MAX_ENVELOPE
    assert closed["result_digest"] == stage.arena.lab.broker.ports.digester.digest(root.txn, text)
    assert stage.arena.lab.broker.ports.room.bytes == 0  # type: ignore[attr-defined]


async def test_a_secret_across_two_parts_is_found(stage: Stage) -> None:
    """The whole is inspected: where it was cut changes nothing."""
    root = await stage.root()
    calling, taken = await stage.begin(root, parts=True)
    text = json.dumps({"text": f"key {AWS} end"})
    cut = text.index(AWS) + 9
    parts = [Part(seq=0, data=text[:cut]), Part(seq=1, data=text[cut:])]
    await taken.say(Started(connection=stage.eve.connection), *parts, Result(value=None, parts=2))
    final = (await calling)[-1]
    assert isinstance(final, Result) and AWS not in json.dumps(final.value)
    assert (await stage.closed(root))["redacted"] == ["/text"]


PARTS = list(split("x" * 500_000))
WRONG: dict[str, tuple[list[Frame], str]] = {
    "one is missing": ([PARTS[0], PARTS[2], Result(value=None, parts=3)], "parts.order"),
    "the last is missing": ([PARTS[0], PARTS[1], Result(value=None, parts=3)], "parts.count"),
    "one comes twice": ([PARTS[0], PARTS[0], PARTS[1], Result(value=None, parts=3)], "parts.order"),
    "out of order": ([PARTS[1], PARTS[0], PARTS[2], Result(value=None, parts=3)], "parts.order"),
    "an empty one": ([Part(seq=0, data=""), Result(value=None, parts=1)], "parts.order"),
    "no JSON": ([Part(seq=0, data='{"a":'), Result(value=None, parts=1)], "parts.value"),
    "a name twice": ([Part(seq=0, data='{"a":1,'), Part(seq=1, data='"a":2}'), Result(value=None, parts=2)], "parts.value"),
    "none came": ([Result(value=None, parts=3)], "parts.count"),
    "a value besides": ([*PARTS, Result(value="other", parts=3)], "parts.count"),
    "a whole one besides": ([*PARTS, Result(value="other")], "parts.count"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
async def test_parts_that_do_not_make_a_whole_are_refused(stage: Stage, name: str) -> None:
    frames, rule = WRONG[name]
    root = await stage.root()
    calling, taken = await stage.begin(root, parts=True)
    await taken.say(Started(connection=stage.eve.connection), *frames)
    body = error_of(await calling)
    assert (body.code, body.rule) == ("RESULT_INVALID", rule)
    assert (await stage.closed(root))["outcome"] == "refused"
    assert stage.arena.lab.broker.ports.room.bytes == 0  # type: ignore[attr-defined]


async def test_a_result_in_parts_that_nobody_asked_for_is_refused(stage: Stage) -> None:
    root = await stage.root()
    calling, taken = await stage.begin(root)
    assert taken.dispatch.parts == 0
    await taken.say(Started(connection=stage.eve.connection), *PARTS, Result(value=None, parts=len(PARTS)))
    body = error_of(await calling)
    assert (body.code, body.rule) == ("RESULT_INVALID", "parts.unasked")


async def test_a_result_that_is_too_large_is_refused_while_it_comes(stage: Stage) -> None:
    """The callee is told to stop, and what was held is given back."""
    root = await stage.root()
    stops = await stage.eve.nc.subscribe(f"_INBOX_eve.{stage.eve.connection}.ctl.{root.txn}.*")
    await stage.eve.nc.flush()
    calling, taken = await stage.begin(root, parts=True)
    await taken.say(Started(connection=stage.eve.connection))
    sent = 0
    for seq in range(100):
        await taken.say(Part(seq=seq, data="x" * 200_000))
        sent += 200_000
        if calling.done():
            break
    body = error_of(await calling)
    assert (body.code, body.rule) in {("RESULT_INVALID", "parts.size"), ("RESULT_INVALID", "parts.room")}
    assert (16 << 20) - 200_000 < sent < 20 << 20
    said = [(await stops.next_msg(4)).data for _ in range(stops.pending_msgs)]
    assert said[-1] == b'{"cancel":true}' and b'{"parts":4}' in said
    assert stage.arena.lab.broker.ports.room.bytes == 0  # type: ignore[attr-defined]
    await stops.unsubscribe()


async def test_parts_that_never_end_leave_room_for_those_of_others(stage: Stage) -> None:
    """Eve holds all that one callee may; another of hers is refused, and Bob's comes through."""
    room = stage.arena.lab.broker.ports.room
    first, second, third = [await stage.root() for _ in range(3)]
    calling, taken = await stage.begin(first, parts=True)
    await taken.say(Started(connection=stage.eve.connection))
    for seq in range((16 << 20) // 200_000):
        await taken.say(Part(seq=seq, data="x" * 200_000))
    async with asyncio.timeout(10):
        while room.bytes < (16 << 20) - 200_000:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
    again, more = await stage.begin(second, parts=True)
    await more.say(Started(connection=stage.eve.connection), *PARTS, Result(value=None, parts=3))
    body = error_of(await again)
    assert (body.code, body.rule) == ("RESULT_INVALID", "parts.room")
    other, taken_by_bob = await stage.begin(third, "agent/bob/work", parts=True)
    await taken_by_bob.say(Started(connection=stage.bob.connection), *PARTS, Result(value=None, parts=3))
    assert (await other)[-1].value == "x" * 500_000  # type: ignore[union-attr]
    await taken.say(Result(value=None, parts=999))
    assert error_of(await calling).rule == "parts.count"
    assert room.bytes == 0  # type: ignore[attr-defined]
