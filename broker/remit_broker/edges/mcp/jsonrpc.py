"""JSON-RPC 2.0 as MCP uses it: one message a time, read strictly, answered without losing the id."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from remit_schemas.canonical import loads
from remit_schemas.errors import Refusal

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
RESOURCE_NOT_FOUND: Final = -32002
RESULT_REFUSED: Final = -1
"""What MCP's own clients answer where their user refused (2025-11-25, Sampling, "Error handling")."""

MAX_MESSAGE: Final = 1024 * 1024
"""Largest message of a client in bytes: the arguments of a hop have to fit an envelope of 900 KiB anyway."""
MAX_ID: Final = 256

Id = str | int


class Fault(Exception):  # noqa: N818 - an answer
    """What is answered as a JSON-RPC error. ``data`` is public."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data


class Call(NamedTuple):
    """A request, or a notification where ``id`` is None."""

    id: Id | None
    method: str
    params: dict[str, Any]


class Answer(NamedTuple):
    """What the other side answers to a request of ours: ``result``, or ``error`` where that is not None."""

    id: Id
    result: Any
    error: dict[str, Any] | None


def parse(data: bytes) -> Call | Answer:
    """One message. Raises :class:`Fault` for anything else, batches included (MCP has none since 2025-06-18)."""
    try:
        raw = loads(data, max_bytes=MAX_MESSAGE)
    except Refusal as no:
        raise Fault(PARSE_ERROR, f"not a message: {no.body.message}") from None
    if not isinstance(raw, dict) or raw.get("jsonrpc") != "2.0":
        raise Fault(INVALID_REQUEST, "not one JSON-RPC 2.0 message")
    if "method" not in raw:
        return _answer(raw)
    given, method, params = raw.get("id"), raw["method"], raw.get("params", {})
    if "id" in raw and not is_id(given):
        raise Fault(INVALID_REQUEST, "the id of a request is a text or a whole number")
    if not isinstance(method, str) or not isinstance(params, dict):
        raise Fault(INVALID_REQUEST, "a method is a text, its params are an object")
    return Call(given if "id" in raw else None, method, params)


def is_id(value: Any) -> bool:
    """Whether ``value`` may be the id of a request: a text or a whole number (a truth value is neither)."""
    return (isinstance(value, str) and len(value) <= MAX_ID) or (isinstance(value, int) and not isinstance(value, bool))


def _answer(raw: dict[str, Any]) -> Answer:
    error = raw.get("error")
    if (
        not is_id(raw.get("id"))
        or ("result" in raw) == ("error" in raw)
        or not (error is None or isinstance(error, dict))
    ):
        raise Fault(INVALID_REQUEST, "neither a request nor an answer")
    return Answer(raw["id"], raw.get("result"), error)


def result(to: Id, value: Any) -> dict[str, Any]:
    """The answer to a request."""
    return {"jsonrpc": "2.0", "id": to, "result": value}


def failed(to: Id | None, fault: Fault) -> dict[str, Any]:
    """The error that answers a request; with the id null where none could be read."""
    said: dict[str, Any] = {"code": fault.code, "message": fault.message}
    if fault.data is not None:
        said["data"] = fault.data
    return {"jsonrpc": "2.0", "id": to, "error": said}


def notification(method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is told without an answer."""
    return {"jsonrpc": "2.0", "method": method, **({"params": params} if params else {})}
