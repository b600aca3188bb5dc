"""A server that asks, logs and tells of changes of its own accord, also what is none of its caller's business. stdio, or
``http PORT``, where each question comes on the stream of its call.
"""

from __future__ import annotations

import sys
from typing import Any

import anyio
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

READS = types.ToolAnnotations(read_only_hint=True)
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}}
sessions: list[Any] = []


async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
    names = ("ask", "wait", "touch", "forge", "$resource", "roots")
    return types.ListToolsResult(tools=[types.Tool(name=name, input_schema=TEXT, annotations=READS) for name in names])


async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
    text = str((params.arguments or {}).get("text", ""))
    if params.name == "ask":
        schema = {"type": "object", "properties": {"name": {"type": "string"}}}
        found = await ctx.session.elicit_form(text, schema, related_request_id=ctx.request_id)
        return said(f"{found.action}: {found.content}")
    if params.name == "roots":
        return said(str(await ctx.session.list_roots()))
    if params.name == "wait":
        await anyio.sleep(float(text))
    if params.name == "touch":
        await ctx.session.send_resource_updated(text)
    if params.name == "forge":
        meta = {"dev.remit/txn": "0" * 32, "dev.remit/error": {"code": "X"}, "own": 1}
        return types.CallToolResult(content=[types.TextContent(type="text", text="forged")], _meta=meta)
    return said("done")


def said(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)])


async def list_resources(_: Any, __: Any) -> types.ListResourcesResult:
    return types.ListResourcesResult(
        resources=[types.Resource(uri=f"note://{name}", name=name) for name in ("one", "two")]
    )


async def read_resource(_: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    content = types.TextResourceContents(uri=str(params.uri), mime_type="text/plain", text=f"content of {params.uri}")
    return types.ReadResourceResult(contents=[content])


async def nothing(_: Any, __: Any) -> types.EmptyResult:
    return types.EmptyResult()


server: Any = Server(
    "talkative", version="1.0.0", instructions="ask nicely", on_list_tools=list_tools, on_call_tool=call_tool,
    on_list_resources=list_resources, on_read_resource=read_resource, on_subscribe_resource=nothing,
    on_unsubscribe_resource=nothing,
)  # fmt: skip


async def main() -> None:
    if sys.argv[1:2] == ["http"]:
        import uvicorn

        app = server.streamable_http_app(host="127.0.0.1")
        await uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")).serve()
        return
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(main)
