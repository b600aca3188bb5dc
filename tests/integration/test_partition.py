"""A broker's connection whose other side has gone without a word: it is given up in time, and another one is made."""

from __future__ import annotations

import asyncio
from pathlib import Path

from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_connect import connect
from remit_broker.adapters.nats_server import EmbeddedServer, Options
from tests.support.proxy import proxies


async def test_a_connection_that_stalled_with_data_in_it_is_given_up_and_made_anew(tmp_path: Path):
    keys = KeyFiles.open(tmp_path / "data", create=True)
    async with EmbeddedServer(keys, Options()) as server, proxies(server.url) as (proxy,):
        nc = await connect(proxy.url, keys, "core")
        try:
            await nc.flush()
            proxy.strand()

            async def pour() -> None:
                """More than the sockets in between hold, so that the client is left with data it cannot get rid of."""
                while nc.stats["reconnects"] == 0:
                    await nc.publish("nobody.listens", bytes(512 * 1024))
                    await asyncio.sleep(0.001)

            async with asyncio.timeout(30):
                await pour()
            await nc.flush()
            answer = await nc.request("$JS.API.INFO", b"", timeout=5)
            assert b"streams" in answer.data
        finally:
            await nc.close()
