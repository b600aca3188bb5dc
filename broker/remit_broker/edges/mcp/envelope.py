"""What a request of the generation 2026-07-28 says of itself: its revision, what its client can be asked, and headers that repeat it.

There is no session in this generation: each request carries in ``_meta`` what a handshake would have agreed on (MCP 2026-07-28,
Basic, "Per-request protocol fields"), and over HTTP in headers what others on the way need to route it (Transports, "Standard
request headers"). Somebody on the way may have decided by a header, and the server decides by the body: so they have to agree.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from remit_broker.edges.mcp.jsonrpc import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    RESOURCE_NOT_FOUND,
    Call,
    Fault,
)

REVISION: Final = "2026-07-28"
PROTOCOL: Final = "io.modelcontextprotocol/"
"""What begins so in ``_meta`` is the protocol's, between a client and whoever it talks to."""
_VERSION, _CAN = PROTOCOL + "protocolVersion", PROTOCOL + "clientCapabilities"
_ABOUT, _LEVEL = PROTOCOL + "clientInfo", PROTOCOL + "logLevel"

HEADER_MISMATCH: Final = -32020
UNSUPPORTED_VERSION: Final = -32022
STATUS: Final = {-32700: 400, -32600: 400, -32602: 400, -32020: 400, -32021: 400, -32022: 400, METHOD_NOT_FOUND: 404}
"""HTTP status of an answer that is an error; 200 for every other."""

_TAKEN: Final = frozenset({HEADER_MISMATCH, -32021, UNSUPPORTED_VERSION})
MAX_META: Final = 16 * 1024
"""Bytes of ``_meta`` that are passed on to a server."""
_OURS: Final = frozenset({"progressToken", "traceparent", "tracestate", "baggage"})
NAMED: Final = {
    "tools/call": "name", "prompts/get": "name", "resources/read": "uri", "tasks/get": "taskId", "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}  # fmt: skip
"""Which of the params of a method a header repeats."""
_HEADERS: Final = ("mcp-protocol-version", "mcp-method", "mcp-name")
CARRIED: Final = "remit-carried"
"""Says that a request came over standard input, and that whoever carries it here knows no schemas."""
_PARAM: Final = "mcp-param-"
_ENCODED: Final = re.compile(r"=\?base64\?(.*)\?=")


class Envelope(NamedTuple):
    """What a request says of its client. ``level`` is None where it wants no log messages."""

    can: dict[str, Any]
    client: dict[str, Any]
    level: str | None
    meta: dict[str, Any]


def passed_on(meta: dict[str, Any], can: dict[str, Any]) -> dict[str, Any]:
    """What of a client's ``_meta`` is for the server, and what the client can be asked. Raises :class:`Fault` for too much.

    INVARIANT: what is the protocol's between two neighbours, and what only Remit may say, is not passed on
    (test_what_a_client_writes_into_meta_reaches_the_server).
    """
    kept = {
        key: said for key, said in meta.items() if key not in _OURS and not key.startswith((PROTOCOL, "dev.remit/"))
    }
    if len(msgspec.json.encode(kept)) > MAX_META:
        raise Fault(INVALID_PARAMS, f"_meta is too large: at most {MAX_META} bytes are passed on")
    return kept | {_CAN: can}


def is_stateless(version: str | None, call: Call) -> bool:
    """Whether a message is of the generation without sessions: by what is in it, or by a revision in its header that has none."""
    meta = call.params.get("_meta")
    says = isinstance(meta, dict) and (_VERSION in meta or _CAN in meta)
    return version == REVISION or (says and call.method != "initialize")


def opened(call: Call, headers: Mapping[str, Sequence[str]], known: Sequence[str]) -> Envelope:
    """What the request says, where it agrees with its headers. Raises :class:`Fault` for what does not, or is not there."""
    meta = call.params.get("_meta")
    if not isinstance(meta, dict):
        raise Fault(INVALID_PARAMS, f"_meta has to be there, with {_VERSION} and {_CAN}")
    if missing := [key for key in (_VERSION, _CAN) if key not in meta]:
        raise Fault(INVALID_PARAMS, f"_meta lacks {' and '.join(missing)}")
    _agree(call, meta[_VERSION], headers)
    version, can = meta[_VERSION], meta[_CAN]
    if version != REVISION:
        raise Fault(
            UNSUPPORTED_VERSION, "Unsupported protocol version", {"supported": list(known), "requested": str(version)[:64]},
        )  # fmt: skip
    if not isinstance(can, dict):
        raise Fault(INVALID_PARAMS, f"{_CAN} is an object")
    about, level = meta.get(_ABOUT), meta.get(_LEVEL)
    return Envelope(can, about if isinstance(about, dict) else {}, level if isinstance(level, str) else None, meta)


def _agree(call: Call, version: Any, headers: Mapping[str, Sequence[str]]) -> None:
    # INVARIANT: what a header says is what the body says, so that nobody on the way is told another call than is made
    # (test_a_header_that_disagrees_with_the_body_is_refused).
    for name in _HEADERS:
        if len(headers.get(name, ())) > 1:
            raise _mismatch(f"{name} stands there more than once")
    if _only(headers, "mcp-protocol-version") != version:
        raise _mismatch(f"mcp-protocol-version is not what {_VERSION} says")
    if _only(headers, "mcp-method") != call.method:
        raise _mismatch("mcp-method is not the method of the body")
    key = NAMED.get(call.method)
    if key is not None and (said := call.params.get(key)) is not None:
        given = _only(headers, "mcp-name")
        if given is None or _decoded(given) != said:
            raise _mismatch(f"mcp-name is not the {key} of the body")


def params_agree(schema: Any, args: Mapping[str, Any], headers: Mapping[str, Sequence[str]]) -> None:
    """Check the headers in which arguments are repeated: those whose schema says ``x-mcp-header``. Raises :class:`Fault`."""
    for path, token, kind in _repeated(schema):
        given = headers.get(_PARAM + token.lower(), ())
        value: Any = args
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        name = f"mcp-param-{token}"
        if len(given) > 1:
            raise _mismatch(f"{name} stands there more than once")
        written = _written(value)
        if not given and headers.get(CARRIED) == ["stdio"]:
            # Its client has no headers, so that nobody on the way was told anything by one.
            continue
        if (written is None) != (not given):
            raise _mismatch(f"{name} and the argument {'.'.join(path)} are not both there")
        if given and written is not None and not _same(_decoded(given[0]), written, value, kind):
            raise _mismatch(f"{name} is not the argument {'.'.join(path)}")


def _repeated(schema: Any) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    todo: list[tuple[tuple[str, ...], Any]] = [((), schema)]
    while todo:
        path, node = todo.pop()
        if not isinstance(node, dict):
            continue
        if path and isinstance(token := node.get("x-mcp-header"), str):
            yield path, token, node.get("type")
        inner = node.get("properties")
        if isinstance(inner, dict):
            todo.extend(((*path, name), sub) for name, sub in inner.items())


def _written(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None


def _same(given: str | None, written: str, value: Any, kind: Any) -> bool:
    if given is not None and kind == "integer" and isinstance(value, int | float) and not isinstance(value, bool):
        # 42 and 42.0 are one number (Transports, "Custom headers").
        whole, _, rest = given.partition(".")
        return re.fullmatch(r"-?[0-9]{1,40}", whole) is not None and not rest.strip("0") and int(whole) == value
    return given == written


def _decoded(given: str) -> str | None:
    """A header's value; what is not plain ASCII comes as ``=?base64?…?=``."""
    if (found := _ENCODED.fullmatch(given)) is None:
        return given
    try:
        raw = base64.b64decode(found[1], validate=True)
        return raw.decode() if base64.b64encode(raw).decode() == found[1] else None
    except (binascii.Error, UnicodeDecodeError):
        return None


def in_this_revision(fault: Fault) -> Fault:
    """``fault`` with a code that means in this revision what it meant before.

    A resource that is not there is an invalid param now, and three codes of refusals are the protocol's own; the body of a
    refusal says which one it is in any case.
    """
    if fault.code == RESOURCE_NOT_FOUND and "uri" in (fault.data or {}):
        return Fault(INVALID_PARAMS, fault.message, fault.data)
    taken = fault.code in _TAKEN and "requiredCapabilities" not in (fault.data or {})
    return Fault(INTERNAL_ERROR, fault.message, fault.data) if taken else fault


def _only(headers: Mapping[str, Sequence[str]], name: str) -> str | None:
    given = headers.get(name, ())
    return given[0] if given else None


def _mismatch(what: str) -> Fault:
    return Fault(HEADER_MISMATCH, f"Header mismatch: {what}")
