"""What an ancestor ends is told to whoever works below it, through whatever replica, and whatever stands in between."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from remit_broker.core.fold import fold_all
from remit_broker.testing import Lab
from remit_schemas import subjects
from remit_schemas.control import CANCEL
from remit_schemas.envelope import Accepted, Started, parse_frame
from tests.attacks.test_budget_race import two_replicas
from tests.support.raw import Arena, RawAgent, Taken, arena_on, error_of, skill


class Chain:
    """Desk calls middle, middle calls leaf: all raw, so that nobody is told anything but by the broker."""

    def __init__(self, desk: RawAgent, middle: RawAgent, leaf: RawAgent) -> None:
        self.desk, self.middle, self.leaf = desk, middle, leaf

    async def begin(self, lab: Lab, resource: str) -> tuple[Accepted, Taken, str]:
        """Desk's running call of ``resource``."""
        opened = await lab.grant("desk", "agent/**")
        accepted = await started(self.desk, resource, opened.txn, opened.grant)
        return accepted, await self.middle.took(opened.txn), opened.grant


async def started(caller: RawAgent, resource: str, txn: str, grant: str, calls: int = 5) -> Accepted:
    inbox = caller.inbox()
    frames = await caller.nc.subscribe(inbox)
    request = {"v": 1, "args": {}, "grant": grant, "want": {"budget": {"usd_micros": 0, "tokens": 0, "calls": calls}}}
    await caller.nc.publish(caller.subject(resource, txn), json.dumps(request).encode(), reply=inbox)
    accepted = parse_frame((await frames.next_msg(5)).data)
    assert isinstance(accepted, Accepted), accepted
    return accepted


async def known_to(second: Lab, first: Lab, name: str) -> None:
    """The second replica has heard of a principal, and of what it serves."""
    async with asyncio.timeout(10):
        while second.broker.registry.principal(name) is None or (
            first.broker.registry.attachment(name) != second.broker.registry.attachment(name)
        ):
            await asyncio.sleep(0.01)


async def chain(arena: Arena) -> Chain:
    desk, middle, leaf = [await arena.agent(name) for name in ("desk", "middle", "leaf")]
    await middle.serve(skill("work"))
    await leaf.serve(skill("work"))
    return Chain(desk, middle, leaf)


async def apart(arena: Arena, made: Chain) -> tuple[Accepted, Taken, Accepted, Taken]:
    """Desk's hop and the one below it, run by two replicas: chance shares requests out, so it is tried again."""
    for _ in range(40):
        above, at_middle, _ = await made.begin(arena.lab, "agent/middle/work")
        await at_middle.say(Started(connection=made.middle.connection))
        below = await started(made.middle, "agent/leaf/work", above.txn, at_middle.grant, calls=1)
        at_leaf = await made.leaf.took(above.txn)
        if above.replica != below.replica:
            return above, at_middle, below, at_leaf
    raise AssertionError("both replicas were never asked")


async def test_what_an_ancestor_ends_is_told_to_a_callee_at_another_replica(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (first, second), arena_on(first) as arena:
        made = await chain(arena)
        for name in ("desk", "middle", "leaf"):
            await known_to(second, first, name)
        above, _, below, at_leaf = await apart(arena, made)
        told = await made.leaf.nc.subscribe(f"_INBOX_leaf.{made.leaf.connection}.ctl.{below.txn}.{below.hop}")
        await made.leaf.nc.flush()
        await at_leaf.say(Started(connection=made.leaf.connection))
        began = time.monotonic()
        await made.desk.nc.publish(subjects.control("desk", above.replica, above.txn, above.hop), CANCEL)
        assert (await told.next_msg(5)).data == CANCEL
        assert time.monotonic() - began < 1.0
        ended: dict[str, str] = {}
        records: list[dict[str, Any]] = []
        async with asyncio.timeout(5):
            while len(ended) < 2:
                records = await first.records(above.txn)
                ended = {record["hop"]: record["outcome"] for record in records if record["kind"] == "hop.closed"}
        fold_all(records)
        assert ended == {above.hop: "cancelled", below.hop: "cancelled"}


async def test_a_hop_that_ended_before_its_replica_began_to_run_it_is_stopped(lab: Lab) -> None:
    """It was closed elsewhere between its opening and its dispatch: its callee hears of both at once."""
    async with arena_on(lab) as arena:
        made = await chain(arena)
        bus = lab.broker.ports.bus
        with pytest.MonkeyPatch.context() as patch:
            opened = await lab.grant("desk", "agent/**")
            told = await made.middle.nc.subscribe(f"_INBOX_middle.{made.middle.connection}.ctl.{opened.txn}.*")
            await made.middle.nc.flush()
            ids = type(lab.broker.ports.ids)
            patch.setattr(ids, "hop", lambda self: "ab" * 8)
            await bus.ended("default", opened.txn, "ab" * 8)
            await lab.broker.nats.core.flush()
            calling = asyncio.ensure_future(made.desk.call("agent/middle/work", opened.txn, opened.grant))
            taken = await made.middle.took(opened.txn)
            await taken.say(Started(connection=made.middle.connection))
            assert (await told.next_msg(5)).data == CANCEL
            assert error_of(await calling).code == "CANCELLED"


async def test_closing_a_task_stops_what_runs_in_it(lab: Lab) -> None:
    async with arena_on(lab) as arena:
        made = await chain(arena)
        above, at_middle, grant = await made.begin(lab, "agent/middle/work")
        told = await made.middle.nc.subscribe(f"_INBOX_middle.{made.middle.connection}.ctl.{above.txn}.{above.hop}")
        await made.middle.nc.flush()
        await at_middle.say(Started(connection=made.middle.connection))
        await made.desk.result("remit/txn/close", above.txn, grant)
        assert (await told.next_msg(5)).data == CANCEL
