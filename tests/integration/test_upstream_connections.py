"""What stands between the broker and a server behind a URL: connections that are kept, whoever calls."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from remit_broker.edges.attach.source import HttpSource
from tests.support.attach_fixture import SERVERS, free_port, listens
from tests.support.mcp_client import front_of
from tests.support.proxy import proxies

pytestmark = pytest.mark.timeout(120)

WARM = 3
"""Calls until what is kept is there."""
CALLS = 20


async def test_a_call_makes_no_new_connection_to_its_server(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        front = await stack.enter_async_context(front_of(tmp_path, {}, servers=()))
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(SERVERS / "well_behaved.py"), "http", str(port), stderr=asyncio.subprocess.DEVNULL
        )
        stack.push_async_callback(process.wait)
        stack.callback(process.terminate)
        await listens(port)
        [road] = await stack.enter_async_context(proxies(f"nats://127.0.0.1:{port}"))
        await front.attach("web", HttpSource(road.url.replace("nats:", "http:") + "/mcp"), stack)
        async with front.client("/mcp/web") as client:
            for _ in range(WARM):
                await client.call_tool("echo", {"text": "hello"})
            before = road.accepted
            for number in range(CALLS):
                answer = await client.call_tool("echo", {"text": str(number)})
                assert answer.content[0].text == str(number)
            assert road.accepted == before
