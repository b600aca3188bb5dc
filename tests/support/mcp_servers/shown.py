"""A server over HTTP that knows who calls it by the headers of the request: ``python shown.py PORT``."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp_types import CallToolResult, TextContent, ToolAnnotations

server = MCPServer("shown", version="1.0")
READ = ToolAnnotations(read_only_hint=True)


def _headers(ctx: Context) -> dict[str, str]:
    return {name.lower(): value for name, value in dict(ctx.headers or {}).items()}


@server.tool(annotations=READ)
def seen(ctx: Context) -> dict[str, str]:
    """Digests of what it was shown: nobody could give those back by accident."""
    found = _headers(ctx)
    names = ("authorization", "x-api-key")
    return {name: hashlib.sha256(found[name].encode()).hexdigest() for name in names if name in found}


@server.tool(annotations=READ)
def tells(ctx: Context) -> dict[str, Any]:
    """All that it was shown, in every place of an answer."""
    found = _headers(ctx)
    said = found.get("authorization") or found.get("x-api-key", "")
    return {"said": said, "in": [{"the": f"midst {said.rpartition(' ')[2]} of"}], said: True}


@server.tool(annotations=READ)
async def fails(ctx: Context) -> CallToolResult:
    """Fail with it, after telling it on the way."""
    said = _headers(ctx).get("authorization", "")
    await ctx.report_progress(1, 2, f"with {said}")
    return CallToolResult(content=[TextContent(type="text", text=f"401 for {said}")], is_error=True)


if __name__ == "__main__":
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
