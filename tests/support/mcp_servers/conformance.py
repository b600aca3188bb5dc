"""A server with every tool, resource and prompt that the protocol's conformance suite asks for. stdio, or ``http PORT``.

With ``alone`` as its last word it knows the generation without sessions (2026-07-28) and no other.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
import zlib
from typing import Any

import anyio
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourceUpdated,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage

WAV = base64.b64encode(
    b"RIFF$\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00@\x1f\x00\x00\x80>\x00\x00\x02\x00\x10\x00data\x00\x00\x00\x00"
)
NOTHING: dict[str, Any] = {"type": "object", "properties": {}}
PROMPT = {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}
MESSAGE = {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]}
DIALECT = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
DEFAULTS = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    },
}
_THREE = ["option1", "option2", "option3"]
_TITLED = [{"const": f"value{n}", "title": f"{word} Option"} for n, word in ((1, "First"), (2, "Second"), (3, "Third"))]
ENUMS = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": _THREE},
        "titledSingle": {"type": "string", "oneOf": _TITLED},
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": _THREE}},
        "titledMulti": {"type": "array", "items": {"anyOf": _TITLED}},
    },
}
REPEATED = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
ROUNDS = {
    "test_input_required_result_elicitation": ("user_name",),
    "test_streaming_elicitation": ("user_name",),
    "test_input_required_result_sampling": ("capital_question",),
    "test_input_required_result_list_roots": ("client_roots",),
    "test_input_required_result_request_state": ("confirm",),
    "test_input_required_result_tampered_state": ("confirm",),
    "test_input_required_result_multiple_inputs": ("user_name", "greeting", "client_roots"),
    "test_input_required_result_multi_round": ("step1", "step2"),
    "test_input_required_result_capabilities": ("user_name", "greeting"),
}
TOOLS = {
    "test_simple_text": ("Answers a text", NOTHING),
    "test_image_content": ("Answers an image", NOTHING),
    "test_audio_content": ("Answers a sound", NOTHING),
    "test_embedded_resource": ("Answers a resource", NOTHING),
    "test_multiple_content_types": ("Answers text, image and resource", NOTHING),
    "test_tool_with_logging": ("Logs while it works", NOTHING),
    "test_error_handling": ("Fails", NOTHING),
    "test_tool_with_progress": ("Tells how far it is", NOTHING),
    "test_sampling": ("Asks the client's model", PROMPT),
    "test_elicitation": ("Asks the client's user", MESSAGE),
    "test_elicitation_sep1034_defaults": ("Asks with defaults", NOTHING),
    "test_elicitation_sep1330_enums": ("Asks with choices", NOTHING),
    "json_schema_2020_12_tool": ("Has a schema with every keyword", DIALECT),
    "test_logging_tool": ("Logs while it works", NOTHING),
    "test_missing_capability": ("Needs a client that can sample", NOTHING),
    "test_x_mcp_header": ("Has an argument that is repeated in a header", REPEATED),
    "test_trigger_tool_change": ("Says that its tools changed", NOTHING),
    "test_touch": ("Says that a resource changed", NOTHING),
    "test_trigger_prompt_change": ("Says that its prompts changed", NOTHING),
    **{name: ("Asks in rounds", NOTHING) for name in ROUNDS},
    "test_reconnection": ("Takes a moment, in which its stream may be closed", NOTHING),
}


def png() -> str:
    """One red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    whole = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\x00\xff\x00\x00"))
        + chunk(b"IEND", b"")
    )
    return base64.b64encode(whole).decode()


def text(said: str) -> types.TextContent:
    return types.TextContent(type="text", text=said)


def image() -> types.ImageContent:
    return types.ImageContent(type="image", data=png(), mime_type="image/png")


def embedded(uri: str, said: str, mime: str = "text/plain") -> types.EmbeddedResource:
    return types.EmbeddedResource(
        type="resource", resource=types.TextResourceContents(uri=uri, mime_type=mime, text=said)
    )


more = {"tools": False, "prompts": False}
"""Whether there is one more of each, as long as somebody wants to see a change."""


async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
    return types.ListToolsResult(
        tools=[
            types.Tool(
                name=name,
                description=description,
                input_schema=schema,
                annotations=types.ToolAnnotations(read_only_hint=True),
            )
            for name, (description, schema) in (TOOLS | EXTRA if more["tools"] else TOOLS).items()
        ]
    )


async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult | types.InputRequiredResult:
    args = params.arguments or {}
    if params.name in ROUNDS:
        return rounds(ctx, params)
    match params.name:
        case "test_missing_capability":
            if "sampling" not in can(ctx):
                raise MCPError(-32021, "the client cannot do sampling", {"requiredCapabilities": {"sampling": {}}})
            return answer(text("The client can"))
        case "test_x_mcp_header" | "test_logging_tool":
            return answer(text(f"Done: {args}"))
        case "test_trigger_tool_change":
            more["tools"] = not more["tools"]
            await bus.publish(ToolsListChanged())
            return answer(text("The tools changed"))
        case "test_touch":
            await bus.publish(ResourceUpdated(uri="test://watched-resource"))
            return answer(text("The watched resource changed"))
        case "test_trigger_prompt_change":
            more["prompts"] = not more["prompts"]
            await bus.publish(PromptsListChanged())
            return answer(text("The prompts changed"))
        case "test_simple_text":
            return answer(text("This is a simple text response for testing."))
        case "test_image_content":
            return answer(image())
        case "test_audio_content":
            return answer(types.AudioContent(type="audio", data=WAV.decode(), mime_type="audio/wav"))
        case "test_embedded_resource":
            return answer(embedded("test://embedded-resource", "This is an embedded resource content."))
        case "test_multiple_content_types":
            mixed = embedded("test://mixed-content-resource", '{"test":"data","value":123}', "application/json")
            return answer(text("Multiple content types test:"), image(), mixed)
        case "test_tool_with_logging":
            for said in ("Tool execution started", "Tool processing data", "Tool execution completed"):
                await ctx.session.send_log_message("info", said, related_request_id=ctx.request_id)
                await anyio.sleep(0.05)
            return answer(text("Tool with logging executed successfully"))
        case "test_error_handling":
            return types.CallToolResult(
                content=[text("This tool intentionally returns an error for testing")], is_error=True
            )
        case "test_tool_with_progress":
            for done in (0, 50, 100):
                await ctx.session.report_progress(done, 100)
                await anyio.sleep(0.15)
            return answer(text("Tool with progress executed successfully"))
        case "test_sampling":
            prompt = types.SamplingMessage(role="user", content=text(str(args["prompt"])))
            said = await ctx.session.create_message([prompt], max_tokens=100, related_request_id=ctx.request_id)
            return answer(text(f"LLM response: {said.content.text}"))
        case "test_elicitation":
            schema = {
                "type": "object",
                "properties": {"username": {"type": "string"}, "email": {"type": "string"}},
                "required": ["username", "email"],
            }
            return answer(text(await elicited(ctx, str(args["message"]), schema)))
        case "test_elicitation_sep1034_defaults":
            return answer(text(await elicited(ctx, "Please review the defaults", DEFAULTS)))
        case "test_elicitation_sep1330_enums":
            return answer(text(await elicited(ctx, "Please choose", ENUMS)))
        case "json_schema_2020_12_tool":
            return answer(text(f"JSON Schema 2020-12 tool called with: {args}"))
        case "test_reconnection":
            # It closes no stream itself: to close a connection is between two neighbours, and says nothing beyond them.
            await anyio.sleep(0.3)
            return answer(text("Reconnection test completed successfully"))
    raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")


def form(message: str, name: str, kind: str = "string") -> types.ElicitRequest:
    schema = {"type": "object", "properties": {name: {"type": kind}}, "required": [name]}
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(prompt: str) -> types.CreateMessageRequest:
    asked = types.SamplingMessage(role="user", content=text(prompt))
    return types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=[asked], max_tokens=100))


EXTRA = {"test_extra": ("Is there at times", NOTHING)}
QUESTIONS: dict[str, Any] = {
    "user_name": form("What is your name?", "name"),
    "user_context": form("What context should the prompt use?", "context"),
    "confirm": form("Please confirm", "ok", "boolean"),
    "step1": form("Step 1: What is your name?", "name"),
    "step2": form("Step 2: What is your favorite color?", "color"),
    "capital_question": sample("What is the capital of France?"),
    "greeting": sample("Generate a greeting"),
    "client_roots": types.ListRootsRequest(),
}
NEEDS = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}


def can(ctx: Any) -> dict[str, Any]:
    found: dict[str, Any] = (ctx.meta or {}).get("io.modelcontextprotocol/clientCapabilities") or {}
    return found


def rounds(ctx: Any, params: Any) -> Any:
    """Ask for what is not answered yet; what was asked before comes back in the state, which the boundary seals."""
    wanted, said = ROUNDS[params.name], params.input_responses or {}
    if params.name == "test_input_required_result_multi_round":
        step = "step2" if params.request_state == "step1" and "step1" in said else "step1"
        if params.request_state == "step2" and "step2" in said:
            return answer(text(f"Both steps: {plain(said['step2'])}"))
        return types.InputRequiredResult(input_requests={step: QUESTIONS[step]}, request_state=step)
    missing = {key: QUESTIONS[key] for key in wanted if not well_said(key, said.get(key))}
    if params.name == "test_input_required_result_capabilities":
        missing = {key: one for key, one in missing.items() if NEEDS[one.method] in can(ctx)}
    if missing:
        state = "asked" if len(wanted) > 1 or "state" in params.name else None
        return types.InputRequiredResult(input_requests=missing, request_state=state)
    return answer(text(f"state-ok: {', '.join(str(plain(said[key])) for key in wanted if key in said)}"))


def well_said(key: str, said: Any) -> bool:
    """Whether an answer is one to its question."""
    found = plain(said)
    if not isinstance(found, dict):
        return False
    return {"elicitation/create": "action", "sampling/createMessage": "content", "roots/list": "roots"}[
        QUESTIONS[key].method
    ] in found


def plain(said: Any) -> Any:
    return said.model_dump(by_alias=True, mode="json") if hasattr(said, "model_dump") else said


async def elicited(ctx: Any, message: str, schema: dict[str, Any]) -> str:
    found = await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)
    return f"Elicitation completed: action={found.action}, content={found.content or {}}"


def answer(*content: Any) -> types.CallToolResult:
    return types.CallToolResult(content=list(content))


async def list_resources(_: Any, __: Any) -> types.ListResourcesResult:
    return types.ListResourcesResult(
        resources=[
            types.Resource(uri="test://static-text", name="Static Text", description="A text", mime_type="text/plain"),
            types.Resource(
                uri="test://static-binary", name="Static Binary", description="An image", mime_type="image/png"
            ),
            types.Resource(
                uri="test://watched-resource", name="Watched", description="It may change", mime_type="text/plain"
            ),
        ]
    )


async def list_templates(_: Any, __: Any) -> types.ListResourceTemplatesResult:
    template = types.ResourceTemplate(
        uri_template="test://template/{id}/data",
        name="Data",
        description="Data by its id",
        mime_type="application/json",
    )
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def read_resource(_: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    uri = str(params.uri)
    content: types.TextResourceContents | types.BlobResourceContents
    if uri == "test://static-text":
        content = types.TextResourceContents(
            uri=uri, mime_type="text/plain", text="This is the content of the static text resource."
        )
    elif uri == "test://static-binary":
        content = types.BlobResourceContents(uri=uri, mime_type="image/png", blob=png())
    elif uri == "test://watched-resource":
        content = types.TextResourceContents(uri=uri, mime_type="text/plain", text="Watched resource content")
    elif uri.startswith("test://template/") and uri.endswith("/data"):
        which = uri.removeprefix("test://template/").removesuffix("/data")
        said = f'{{"id":"{which}","templateTest":true,"data":"Data for ID: {which}"}}'
        content = types.TextResourceContents(uri=uri, mime_type="application/json", text=said)
    else:
        raise MCPError(-32602 if sys.argv[-1] == NEW_ONLY else -32002, f"Resource not found: {uri}", {"uri": uri})
    return types.ReadResourceResult(contents=[content])


async def list_prompts(_: Any, __: Any) -> types.ListPromptsResult:
    def argument(name: str) -> types.PromptArgument:
        return types.PromptArgument(name=name, description=f"The {name}", required=True)

    return types.ListPromptsResult(
        prompts=[
            types.Prompt(name="test_simple_prompt", description="Simple"),
            types.Prompt(
                name="test_prompt_with_arguments",
                description="With arguments",
                arguments=[argument("arg1"), argument("arg2")],
            ),
            types.Prompt(
                name="test_prompt_with_embedded_resource",
                description="With a resource",
                arguments=[argument("resourceUri")],
            ),
            *([types.Prompt(name="test_extra", description="Is there at times")] if more["prompts"] else []),
            types.Prompt(name="test_input_required_result_prompt", description="Asks for a context"),
            types.Prompt(name="test_prompt_with_image", description="With an image"),
        ]
    )


async def get_prompt(_: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult | types.InputRequiredResult:
    args = params.arguments or {}
    content: list[Any]
    said = params.input_responses or {}
    if params.name == "test_input_required_result_prompt" and not well_said("user_context", said.get("user_context")):
        return types.InputRequiredResult(input_requests={"user_context": QUESTIONS["user_context"]})
    match params.name:
        case "test_simple_prompt":
            content = [text("This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            content = [text(f"Prompt with arguments: arg1='{args.get('arg1')}', arg2='{args.get('arg2')}'")]
        case "test_prompt_with_embedded_resource":
            content = [
                embedded(args["resourceUri"], "Embedded resource content for testing."),
                text("Please process the embedded resource above."),
            ]
        case "test_input_required_result_prompt":
            content = [text(f"In this context: {plain(said['user_context'])}")]
        case "test_prompt_with_image":
            content = [image(), text("Please analyze the image above.")]
        case _:
            raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {params.name}")
    return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=one) for one in content])


async def complete(_: Any, params: types.CompleteRequestParams) -> types.CompleteResult:
    values = [value for value in ("paris", "park", "party") if value.startswith(params.argument.value)]
    return types.CompleteResult(completion=types.Completion(values=values, total=len(values), has_more=False))


async def nothing(_: Any, __: Any) -> types.EmptyResult:
    return types.EmptyResult()


bus = InMemorySubscriptionBus()
server: Any = Server(
    "conformance", version="1.0.0", on_list_tools=list_tools, on_call_tool=call_tool, on_list_resources=list_resources,
    on_list_resource_templates=list_templates, on_read_resource=read_resource, on_list_prompts=list_prompts,
    on_get_prompt=get_prompt, on_completion=complete, on_set_logging_level=nothing,
    on_subscribe_resource=nothing, on_unsubscribe_resource=nothing, on_subscriptions_listen=ListenHandler(bus),
)  # fmt: skip
server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience="conformance"))
NEW_ONLY = "alone"
REFUSED: dict[str, Any] = {
    "code": -32022,
    "message": "Unsupported protocol version",
    "data": {"supported": ["2026-07-28"], "requested": ""},
}


class Alone:
    """Refuses what is of the generation with sessions, over HTTP."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] == "http" and headers.get(b"mcp-protocol-version", b"2025") < b"2026":
            from starlette.responses import JSONResponse

            said = {"jsonrpc": "2.0", "id": 0, "error": REFUSED}
            if scope["method"] == "POST":
                body = b""
                while not body.endswith(b"}"):
                    body += (await receive()).get("body", b"") or b"{}"
                said["id"] = json.loads(body).get("id")
            await JSONResponse(said, 400)(scope, receive, send)
            return
        await self.inner(scope, receive, send)


class Kept(EventStore):
    """What was sent, so that a client whose connection broke gets it."""

    def __init__(self) -> None:
        self._all: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self._all.append((stream_id, message))
        return str(len(self._all))

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
        at = int(last_event_id)
        stream = self._all[at - 1][0]
        for number, (of, message) in enumerate(self._all[at:], at + 1):
            if of == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


async def main() -> None:
    alone = sys.argv[-1] == NEW_ONLY
    if sys.argv[1:2] == ["http"]:
        import uvicorn

        app = server.streamable_http_app(host="127.0.0.1", event_store=Kept(), retry_interval=1000)
        served = Alone(app) if alone else app
        await uvicorn.Server(
            uvicorn.Config(served, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", lifespan="on")
        ).serve()
        return
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (read, write):
        if not alone:
            await server.run(read, write, server.create_initialization_options())
            return
        send, receive = anyio.create_memory_object_stream[Any](0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(without_sessions, read, send, write)
            await server.run(receive, write, server.create_initialization_options())


async def without_sessions(read: Any, send: Any, write: Any) -> None:
    """Refuses the handshake of the generation with sessions, over standard input."""
    async with send:
        async for item in read:
            message = getattr(item, "message", None)
            if isinstance(message, types.JSONRPCRequest) and message.method == "initialize":
                error = types.JSONRPCError(jsonrpc="2.0", id=message.id, error=types.ErrorData(**REFUSED))
                await write.send(SessionMessage(error))
            else:
                await send.send(item)


if __name__ == "__main__":
    anyio.run(main)
