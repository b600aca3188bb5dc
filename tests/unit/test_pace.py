"""Work that goes on in order, a bounded time of it in every turn of the event loop."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from remit_broker.adapters.pace import FIRST, Pace
from remit_broker.adapters.world import SystemClock
from remit_broker.edges import bus
from remit_broker.ports import Limits
from remit_schemas import subjects


async def test_what_there_is_room_for_begins_at_once() -> None:
    pace, begun = Pace(), list[int]()
    for number in range(FIRST):
        pace.soon(partial(begun.append, number))
    assert begun == list(range(FIRST))


async def test_what_came_first_begins_first() -> None:
    pace, begun = Pace(), list[int]()
    for number in range(500):
        pace.soon(partial(begun.append, number))
    at_once = len(begun)
    assert at_once < 100
    await asyncio.sleep(0)
    pace.soon(partial(begun.append, 500))
    while len(begun) < 501:
        await asyncio.sleep(0)
    assert begun == list(range(501))


async def test_after_a_rest_there_is_room_again() -> None:
    pace, begun = Pace(), list[int]()
    for number in range(500):
        pace.soon(partial(begun.append, number))
    while len(begun) < 500:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    pace.soon(partial(begun.append, 500))
    assert begun[-1] == 500


async def test_timers_have_their_turn_however_much_waits() -> None:
    pace, left, loop = Pace(), 2000, asyncio.get_running_loop()

    async def work() -> None:
        nonlocal left
        left -= 1
        until = loop.time() + 0.001
        while loop.time() < until:
            pass

    tasks = list[asyncio.Task[None]]()
    for _ in range(left):
        pace.soon(lambda: tasks.append(asyncio.create_task(work())))
    # All of it takes two seconds. A timer in the midst waits for what began in its turn, and most of the rest comes after it.
    for _ in range(3):
        await asyncio.sleep(0.01)
    assert left > 1000
    while left:
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)


async def test_what_waits_to_begin_when_a_broker_stops_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = 0

    async def govern(*_: object) -> None:
        nonlocal answered
        await asyncio.sleep(0)
        answered += 1

    monkeypatch.setattr(bus, "govern", govern)
    ports: Any = SimpleNamespace(clock=SystemClock(), limits=Limits())
    nobody: Any = None
    edge = bus.BusEdge(nobody, "default", ports, nobody, {}, Pace().soon)
    request: Any = SimpleNamespace(
        subject=subjects.request("alice", "0" * 31 + "1", "agent", "bob", "help"), reply="", data=b""
    )
    for _ in range(200):
        await edge._on_request(request)
    await edge.stop(10)
    assert answered == 200
