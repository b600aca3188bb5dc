"""A server over HTTP that knows who calls it by the headers of the request: ``python shown.py PORT [strict]``."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import uvicorn
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


class Strict:
    """Nobody without a token, and no session for another token than it was begun with."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._began: dict[bytes, bytes] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", []))
        who, session = headers.get(b"authorization", b""), headers.get(b"mcp-session-id")
        status = 200
        if scope["type"] == "http" and not who.startswith(b"Bearer good-"):
            status = 401
        elif session is not None and self._began.setdefault(session, who) != who:
            status = 403
        if status != 200:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return

        async def noted(message: Any) -> None:
            for name, value in message.get("headers", []):
                if name.lower() == b"mcp-session-id":
                    self._began.setdefault(value, who)
            await send(message)

        await self._app(scope, receive, noted)


if __name__ == "__main__":
    app: Any = server.streamable_http_app()
    if sys.argv[2:] == ["strict"]:
        app = Strict(app)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
