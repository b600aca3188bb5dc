"""How many connections one principal may have, so that the others get in."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nats
import pytest

from remit_broker.adapters.nats_presence import COMING, Connected
from remit_broker.testing import Lab, running_broker
from tests.support.raw import RawAgent

MOST = {"limits": {"connections_per_agent": 3}}


async def until(lab: Lab, name: str, count: int) -> None:
    async with asyncio.timeout(COMING + 5):
        while lab.broker.connected.count(name) != count:
            await asyncio.sleep(0.02)


async def test_one_principal_cannot_use_up_the_connections_of_the_others(tmp_path: Path) -> None:
    async with running_broker(tmp_path, MOST) as lab:
        await lab.agent("greedy")
        await lab.agent("bob")
        made = [await RawAgent(lab, "greedy", "agent").connect() for _ in range(3)]
        for _ in range(2):
            with pytest.raises(nats.errors.Error):
                await RawAgent(lab, "greedy", "agent").connect()
        made.append(await RawAgent(lab, "bob", "agent").connect())
        await until(lab, "greedy", 3)
        # One leaves, one comes.
        await made.pop(0).close()
        await until(lab, "greedy", 2)
        made.append(await RawAgent(lab, "greedy", "agent").connect())
        for one in made:
            await one.close()


async def test_connections_that_come_at_once_are_counted_before_the_servers_tell_of_them(tmp_path: Path) -> None:
    async with running_broker(tmp_path, MOST) as lab:
        await lab.agent("greedy")
        crowd = [RawAgent(lab, "greedy", "agent") for _ in range(12)]
        ends = await asyncio.gather(*(one.connect() for one in crowd), return_exceptions=True)
        made = [one for one in ends if isinstance(one, RawAgent)]
        assert len(made) == 3
        for one in made:
            await one.close()


async def test_what_was_there_before_the_callout_is_counted(tmp_path: Path) -> None:
    """Of a broker that starts again beside its server, as on an external one."""
    async with running_broker(tmp_path, MOST) as lab:
        await lab.agent("greedy")
        made = [await RawAgent(lab, "greedy", "agent").connect() for _ in range(3)]
        again = Connected(lab.broker.nats.sys, 3, lab.broker.ports.clock)
        await again.start(lab.broker.observer.fault)
        assert again.count("greedy") == 3 and "at most 3" in again.take("greedy")
        await made[0].close()
        async with asyncio.timeout(5):
            while again.count("greedy") != 2:
                await asyncio.sleep(0.02)
        await again.stop()
        for one in made:
            await one.close()


async def test_connections_whose_end_nobody_told_are_found_gone_when_somebody_is_refused(tmp_path: Path) -> None:
    async with running_broker(tmp_path, MOST) as lab:
        await lab.agent("greedy")
        connected = lab.broker.connected
        for number in range(3):
            connected._live["BUS", "greedy"].add(("a server that was killed", number))
        with pytest.raises(nats.errors.Error):
            await RawAgent(lab, "greedy", "agent").connect()
        await until(lab, "greedy", 0)
        await (await RawAgent(lab, "greedy", "agent").connect()).close()
