"""What goes over HTTP to a client and comes from one: bodies, streams of events, and which of the two a client takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from remit_broker.edges.mcp.jsonrpc import MAX_MESSAGE
from remit_schemas.errors import Code, refusal

JSON: Final = "application/json"
SSE: Final = "text/event-stream"
QUIET: Final = 15.0
"""Seconds of silence after which a stream says that it is still there."""
STILL_HERE: Final = b": still here\n\n"

encode = msgspec.json.Encoder().encode
_LINE_ENDS: Final = tuple((end.encode(), f"\\u{ord(end):04x}".encode()) for end in "\x85\u2028\u2029")
NO_STORE: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def event(message: dict[str, Any], name: str = "") -> bytes:
    """One message of a stream (WHATWG HTML, server-sent events), with an id where it has a ``name``. JSON has no line ends of its own.

    INVARIANT: what some clients take for line ends beside those of the standard is written as an escape
    (test_a_stream_holds_one_message_a_line).
    """
    data = encode(message)
    for raw, escaped in _LINE_ENDS:
        data = data.replace(raw, escaped)
    head = f"id: {name}\n".encode() if name else b""
    return head + b"event: message\ndata: " + data + b"\n\n"


def whole(value: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """One message as the whole answer."""
    return Response(encode(value), status, {**NO_STORE, **(headers or {})}, JSON)


def accepted(request: Request) -> frozenset[str]:
    """Which of the two kinds of answers a client takes."""
    said = {
        part.partition(";")[0].strip().lower() for line in request.headers.getlist("accept") for part in line.split(",")
    }
    if "*/*" in said or not said - {""}:
        return frozenset({JSON, SSE})
    if "application/*" in said:
        said.add(JSON)
    return frozenset(said & {JSON, SSE})


async def body_of(request: Request) -> bytes:
    """The body, up to the size of a message. Refuses TOO_LARGE."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_MESSAGE:
            raise refusal(
                Code.TOO_LARGE, "the message is too large", rule="mcp.size", ask=f"at most {MAX_MESSAGE} bytes"
            )
    return bytes(data)
