"""Publishes that wait for their acks over one subscription and one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from remit_broker.adapters.jetstream import Acks, Unreachable
from remit_broker.adapters.nats_bus import FrameQueue
from remit_broker.ports import CallerCancelled
from remit_schemas.control import Control


class Wire:
    """As much of a NATS client as is needed: what was published, and a way to answer it."""

    def __init__(self) -> None:
        self.published: asyncio.Queue[str] = asyncio.Queue()
        self.answer: Callable[[Any], Awaitable[None]]

    def new_inbox(self) -> str:
        return "_INBOX.x"

    async def subscribe(self, subject: str, cb: Callable[[Any], Awaitable[None]], **_: Any) -> None:
        self.answer = cb

    async def publish(self, subject: str, payload: bytes, reply: str, headers: dict[str, str]) -> None:
        self.published.put_nowait(reply)


class Answer:
    def __init__(self, subject: str, data: bytes, status: str | None = None) -> None:
        self.subject, self.data = subject, data
        self.headers = {"Status": status} if status else None


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def acks(wire: Wire) -> Acks:
    return Acks(wire)  # type: ignore[arg-type]


async def test_each_publish_gets_its_own_answer_in_whatever_order_they_come(wire: Wire, acks: Acks) -> None:
    waiting = [asyncio.create_task(acks.publish("s", b"", {}, 5)) for _ in range(3)]
    replies = [await wire.published.get() for _ in waiting]
    for number in (2, 0, 1):
        await wire.answer(Answer(replies[number], str(number).encode()))
    assert await asyncio.gather(*waiting) == [b"0", b"1", b"2"]
    await wire.answer(Answer(replies[0], b"again"))  # nobody waits for it, nothing happens
    assert not acks._waiting


async def test_without_an_answer_each_ends_at_its_own_time(wire: Wire, acks: Acks) -> None:
    late = asyncio.create_task(acks.publish("s", b"", {}, 0.2))
    await wire.published.get()
    with pytest.raises(Unreachable):
        await acks.publish("s", b"", {}, 0.01)
    assert not late.done()
    with pytest.raises(Unreachable):
        await late
    assert not acks._waiting


async def test_where_nobody_listens_it_ends_at_once(wire: Wire, acks: Acks) -> None:
    publish = asyncio.create_task(acks.publish("s", b"", {}, 5))
    reply = await wire.published.get()
    await wire.answer(Answer(reply, b"", "503"))
    with pytest.raises(Unreachable):
        await publish


async def test_a_cancelled_publish_leaves_nothing_behind(wire: Wire, acks: Acks) -> None:
    publish = asyncio.create_task(acks.publish("s", b"", {}, 5))
    reply = await wire.published.get()
    publish.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publish
    await wire.answer(Answer(reply, b"late"))
    assert not acks._waiting


async def test_frames_end_at_their_deadline_also_when_some_came_before() -> None:
    queue = FrameQueue()
    due = asyncio.get_running_loop().time() + 0.05
    asyncio.get_running_loop().call_soon(queue.put, b"first")
    assert await queue.next(due - asyncio.get_running_loop().time()) == b"first"
    with pytest.raises(TimeoutError):
        await queue.next(due - asyncio.get_running_loop().time())
    queue.put(b"late")
    assert await queue.next(1) == b"late"
    queue.close()


async def test_a_frame_that_came_in_time_is_taken_although_its_waiter_was_not_woken_yet() -> None:
    """A busy broker wakes its waiters in turns, and this one's turn comes after its deadline."""
    turns: list[Callable[[], object]] = []
    queue = FrameQueue(turns.append)
    asyncio.get_running_loop().call_soon(queue.put, b"in time")
    assert await queue.next(0.02) == b"in time"
    assert len(turns) == 1
    turns[0]()  # nobody waits any more
    queue.close()


async def test_an_earlier_deadline_than_before_counts() -> None:
    queue = FrameQueue()
    asyncio.get_running_loop().call_soon(queue.put, b"first")
    await queue.next(3600)
    with pytest.raises(TimeoutError):
        await queue.next(0.01)
    queue.close()


async def test_a_wish_to_end_does_not_swallow_who_has_started() -> None:
    queue = FrameQueue()
    queue.put(b"started")
    queue.hear(Control(cancel=True))
    assert await queue.next(1) == b"started"
    for _ in range(2):
        with pytest.raises(CallerCancelled):
            await queue.next(1)
