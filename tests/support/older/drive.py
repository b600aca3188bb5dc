"""A client of an older release of the Python SDK: ``drive.py URL TOKEN``. Prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.metadata import version
from typing import Any

from mcp import ClientSession  # type: ignore[attr-defined, unused-ignore]
from mcp.client.streamable_http import streamablehttp_client  # type: ignore[attr-defined]


async def main(url: str, token: str) -> None:
    async with (
        streamablehttp_client(url, headers={"Authorization": f"Bearer {token}"}) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        began: Any = await session.initialize()
        tools = [tool.name for tool in (await session.list_tools()).tools]
        answer = await session.call_tool("echo", {"text": "from python"})
        text = [getattr(one, "text", "") for one in answer.content]
        print(
            json.dumps({"release": version("mcp"), "protocol": began.protocolVersion, "tools": tools, "answer": text})
        )


asyncio.run(main(*sys.argv[1:]))
