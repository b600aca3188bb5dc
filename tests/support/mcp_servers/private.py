"""A server over stdio that keeps what it hears in its process, and knows its environment: ``python private.py``."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any

import anyio
from mcp.server.mcpserver import MCPServer
from mcp_types import ToolAnnotations

server = MCPServer("private", version="1.0")
READ = ToolAnnotations(read_only_hint=True)
heard: list[str] = []


@server.tool(annotations=READ)
def mine() -> dict[str, Any]:
    """What this process is: its id, the digest of its token, its home."""
    token = os.environ.get("SERVICE_TOKEN", "")
    print(f"token {token}", file=sys.stderr, flush=True)
    return {"pid": os.getpid(), "token": hashlib.sha256(token.encode()).hexdigest() if token else "", "heard": heard}


@server.tool(annotations=READ)
def remember(text: str) -> str:
    """Keep a text in memory."""
    heard.append(text)
    return "kept"


@server.tool(annotations=READ)
def tells() -> str:
    """Give the token back."""
    return f"it is {os.environ.get('SERVICE_TOKEN', 'none')}"


@server.tool(annotations=READ)
async def slow(seconds: float) -> str:
    """Take a while."""
    await anyio.sleep(seconds)
    return "done"


@server.tool(annotations=READ)
def die() -> str:
    """End the process at once."""
    os._exit(3)


server.run("stdio")
