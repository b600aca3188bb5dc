"""A server as it should be. Run as a file for stdio; with ``http PORT`` it serves streamable HTTP on the loopback."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel

server = MCPServer("well-behaved", version="1.2.3")


class Sum(BaseModel):
    """The result of ``add``."""

    sum: int


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def echo(text: str) -> str:
    """Say it again."""
    return text


@server.tool()
def add(a: int, b: int) -> Sum:
    """Add two numbers."""
    return Sum(sum=a + b)


@server.tool()
async def slow(seconds: float, ctx: Context, steps: int = 5) -> str:
    """Take a while and tell how it goes."""
    for step in range(steps):
        await ctx.report_progress(step + 1, steps, f"step {step + 1}")
        await anyio.sleep(seconds / steps)
    return "done"


@server.tool()
def fails(why: str) -> CallToolResult:
    """Fail, as a tool."""
    return CallToolResult(content=[TextContent(type="text", text=why)], is_error=True)


@server.tool()
def big(size: int) -> Annotated[CallToolResult, Any]:
    """Answer ``size`` bytes."""
    return CallToolResult(content=[TextContent(type="text", text="x" * size)])


@server.tool()
def who_am_i(ctx: Context) -> dict[str, Any]:
    """Return the _meta and the headers that came with the call."""
    request = ctx.request_context
    meta = dict(request.meta or {})
    headers = dict(ctx.headers or {}) if getattr(ctx, "headers", None) else {}
    return {"meta": meta, "authorization": headers.get("authorization", "")}


@server.tool()
def environment() -> dict[str, str]:
    """Return the whole environment."""
    return dict(os.environ)


@server.tool(annotations=ToolAnnotations(destructive_hint=True, read_only_hint=False))
def destructive_thing(name: str) -> str:
    """Destroy a thing (not really)."""
    return f"destroyed {name}"


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def read_thing(name: str) -> str:
    """Read a thing."""
    return f"read {name}"


if __name__ == "__main__":
    print("well-behaved is starting", file=sys.stderr, flush=True)
    if sys.argv[1:2] == ["http"]:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
    else:
        server.run("stdio")
