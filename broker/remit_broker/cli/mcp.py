"""``remit mcp``: the MCP servers behind a running broker, as one stdio server for the configuration of a client."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Final
from urllib.parse import quote, urlencode

import typer

from remit_broker.cli.client import BrokerClient
from remit_broker.cli.common import Config, Json, Tenant, command, run_loop
from remit_broker.config import Settings, load

LINE: Final = 64 * 1024 * 1024
"""Longest line of a client; what is larger than a message may be is refused by the broker, with its id."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(mcp)


@command
def mcp(
    server: Annotated[str | None, typer.Argument(help="One server, as it is; without it all of them.")] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Three tools that search, describe and call the others.")
    ] = False,
    tenant: Tenant = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Be an MCP server on standard input and output, for the configuration of a client; the broker does the work."""
    settings = load(config)
    # Before the client hears anything: where no broker runs, it is told so, and how to start one.
    BrokerClient(settings, tenant).lives()
    run_loop(_carry(settings, server, tenant, {"view": "search"} if search else {}))


async def _carry(settings: Settings, server: str | None, tenant: str | None, view: dict[str, str]) -> None:
    from remit_broker.edges.mcp.stdio import Bridge, Where

    query = urlencode({**({"tenant": tenant} if tenant else {}), **view})
    path = ("/mcp" if server is None else f"/mcp/{quote(server, safe='')}") + (f"?{query}" if query else "")

    def find() -> Where:
        # Anew for each message: a broker that was started again may be at another port.
        broker = BrokerClient(settings, tenant)
        return Where(broker.http + path, broker.token())

    async def write(line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    await Bridge(find, write).run(_lines())


async def _lines() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader(limit=LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        if line.strip():
            yield line
