"""A flush that somebody gave up: its answer comes all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from remit.client import Connection as OfAgents
from remit_broker.adapters.nats_client import HardenedClient
from remit_broker.edges.attach.wire import Connection as OfServers
from tests.support.local_nats import LocalNats, local_nats


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[LocalNats]:
    async with local_nats(tmp_path) as running:
        yield running


@pytest.mark.parametrize("kind", [OfAgents, OfServers, HardenedClient])
async def test_a_flush_that_is_given_up_leaves_the_connection_hearing(server: LocalNats, kind: type[Client]) -> None:
    client = kind()
    await client.connect(server.url)
    try:
        heard = await client.subscribe("said")
        flushing = asyncio.ensure_future(client.flush())
        while not client._pongs:
            await asyncio.sleep(0)
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
        await client.flush()
        await client.publish("said", b"hello")
        assert (await heard.next_msg(timeout=10)).data == b"hello"
        assert client.stats["reconnects"] == 0
    finally:
        await client.close()
