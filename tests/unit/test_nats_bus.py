"""What the bus adapter does between two hops, with a connection that only notes what is sent."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from remit_broker.adapters.nats_bus import NatsBus
from remit_broker.ports import Parties
from remit_schemas.callee import control_subject
from remit_schemas.envelope import Started, encode

TXN, HOP = "a" * 32, "b" * 16
CONNECTION = "c" * 22


async def test_who_started_in_the_moment_of_the_end_is_told_to_stop() -> None:
    """Its word has arrived and was not looked at yet, so whoever ends the hop does not know whom to tell."""
    sent: asyncio.Queue[str] = asyncio.Queue()

    async def publish(subject: str, *_: Any) -> None:
        sent.put_nowait(subject)

    connection = cast("Any", SimpleNamespace(is_connected=True, publish=publish))
    bus = NatsBus(connection, "r1", connection)
    parties = Parties("alice", "bob")
    async with bus.channel(parties, TXN, HOP) as queue:
        queue.put(encode(Started(connection=CONNECTION)))
        await bus.cancel("bob", "", TXN, HOP)
    async with asyncio.timeout(5):
        assert await sent.get() == control_subject("bob", CONNECTION, TXN, HOP)
