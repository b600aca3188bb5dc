"""MCP tool calls through Remit beside the same server directly, over HTTP and over pipes, and beside another gateway."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from remit_broker.bench.mcp_calls import over_http, over_pipes
from remit_broker.bench.mcp_gateway import gateway
from remit_broker.bench.run import Say, Way, interleaved, machine
from remit_broker.bench.site import REMIT, Site, process, site

ROUNDS: Final = ((1, 100), (16, 480))
"""In flight, and calls of one round at scale 1."""
SLOW: Final = frozenset({"peer_http"})
_SERVER: Final = Path(__file__).with_name("mcp_server.py")
PATIENCE: Final = 120.0
"""Seconds for a server to be there."""
_BUDGET: Final = "usd=100000,tokens=10000000000,calls=1000000"


async def bench_mcp(rounds: int, scale: float, say: Say, peer: Path | None) -> dict[str, Any]:
    """Measure. ``peer`` is the program of another gateway (:mod:`remit_broker.bench.mcp_gateway`), or None to go without."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remit-bench-")))
        say("starting an MCP server")
        url = f"http://127.0.0.1:{await _server(stack)}/mcp"
        say("starting a broker in front of it")
        more = f'[mcp]\nbudget = "{_BUDGET}"\n'
        place = await stack.enter_async_context(site(folder / "remit", "default", more=more))
        config = folder / "remit" / "remit.toml"
        added = {
            "web": ["--url", url],
            "pipe": ["--read", str(_SERVER.parent), "--", sys.executable, str(_SERVER), "stdio"],
        }
        for name, options in added.items():
            async with process(*REMIT, "servers", "add", "--json", "-c", str(config), name, *options):
                pass
        await _attached(place)
        token = (folder / "remit" / "data" / "keys" / "local.token").read_text(encoding="utf-8").strip()
        ways = {
            "direct_http": Way(await stack.enter_async_context(over_http(url, "echo"))),
            "remit_http": Way(
                await stack.enter_async_context(over_http(f"{place.url}/mcp/web", "echo", token)), place.brokers
            ),
        }
        call, _ = await stack.enter_async_context(over_pipes("echo", str(_SERVER), "stdio"))
        ways["direct_stdio"] = Way(call)
        words = ("-m", "remit_broker.cli.main", "mcp", "pipe", "-c", str(config))
        call, pid = await stack.enter_async_context(over_pipes("echo", *words))
        ways["remit_stdio"] = Way(call, (*place.brokers, pid))
        if peer is not None:
            say(f"starting {peer.name}")
            at, theirs, tool, pid = await stack.enter_async_context(gateway(peer, folder / "peer", _free_port(), url))
            ways["peer_http"] = Way(await stack.enter_async_context(over_http(at, tool, theirs)), (pid,))
        found = await interleaved(ways, rounds, scale, say, ROUNDS, SLOW)
        setup = {"remit": await place.status(), **machine(), "rounds": rounds, "peer": str(peer) if peer else None}
        return {**found, "setup": setup}


async def _server(stack: AsyncExitStack) -> int:
    port = _free_port()
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        str(_SERVER),
        "http",
        str(port),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def end() -> None:
        running.terminate()
        await running.wait()

    stack.push_async_callback(end)
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return port


async def _attached(place: Site) -> None:
    """Wait until both servers are there."""
    async with asyncio.timeout(PATIENCE):
        while True:
            told = (await place.http.get("/api/servers")).raise_for_status().json()["servers"]
            if {one["name"] for one in told if one["state"] == "running"} >= {"web", "pipe"}:
                return
            await asyncio.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
