"""Refusals as MCP has them: in the answer of the tool where the model reads it, as an error of the protocol elsewhere."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any, Final

import msgspec

from remit_broker.edges.mcp.jsonrpc import INVALID_PARAMS, RESOURCE_NOT_FOUND, Fault
from remit_schemas.envelope import Error, Result
from remit_schemas.errors import SURFACES, Code, ErrorBody

ERROR: Final = "dev.remit/error"
"""The key in ``_meta`` (and in the data of an error) under which the body of a refusal is."""
TXN: Final = "dev.remit/txn"
HOP: Final = "dev.remit/hop"
MISSING_CAPABILITY: Final = -32021
_BY_SERVER: Final = re.compile(r"the server answered with error (-\d{1,9}): (.*)", re.DOTALL)
_SERVER: Final = "io.modelcontextprotocol/serverInfo"
_LISTED: Final = 5000
_CACHED: Final = {
    "server/discover": _LISTED, "tools/list": _LISTED, "resources/list": _LISTED, "resources/templates/list": _LISTED,
    "prompts/list": _LISTED, "resources/read": 0,
}  # fmt: skip
"""Milliseconds for which a result may be kept by whoever asked. A listing that is kept permits nothing: each call is decided."""


def text_of(body: ErrorBody) -> str:
    """A refusal in words, for a model."""
    lines = [f"{body.code}: {body.message}" + (f" ({body.rule})" if body.rule else "")]
    if body.ask:
        lines.append(f"What to do: {body.ask}")
    if body.approval_url:
        lines.append(f"Approval: {body.approval_url}")
    if body.retry_after is not None:
        lines.append(f"Try again in {body.retry_after:g} s.")
    if body.effect != "none":
        lines.append(f"Effect: {body.effect}; look before you call again.")
    return "\n".join(lines)


def plain(body: ErrorBody) -> dict[str, Any]:
    """The body as it travels."""
    found: dict[str, Any] = msgspec.to_builtins(body)
    return found


def refused_tool(body: ErrorBody) -> dict[str, Any]:
    """A refusal as the result of a tool.

    INVARIANT: a call that was admitted and refused is answered in band, with what to ask for
    (test_a_refused_call_is_a_result_that_a_model_can_read).
    """
    return {
        "content": [{"type": "text", "text": text_of(body)}],
        "isError": True,
        "_meta": {ERROR: plain(body)},
    }


def tool_result(frame: Result | Error, txn: str, hop: str) -> dict[str, Any]:
    """What a tool answered, and where the record of it is."""
    if isinstance(frame, Error):
        if frame.error.code is Code.UNKNOWN_TARGET:
            raise fault_of(frame.error, INVALID_PARAMS)
        return refused_tool(frame.error)
    value = frame.value if isinstance(frame.value, dict) else {"content": [], "structuredContent": frame.value}
    meta = value.get("_meta")
    return {**value, "_meta": {**(meta if isinstance(meta, dict) else {}), TXN: txn, HOP: hop}}


def said_by_server(body: ErrorBody, can: Container[str]) -> Fault | None:
    """What a server answered as an error of the protocol, where a client of it has to know the code; None for all else."""
    found = _BY_SERVER.match(body.message) if body.rule == "attach.server-error" else None
    code = int(found[1]) if found else 0
    if found is None or code not in (INVALID_PARAMS, RESOURCE_NOT_FOUND, MISSING_CAPABILITY):
        return None
    data: dict[str, Any] = {ERROR: plain(body)}
    if code == MISSING_CAPABILITY:
        lacks: dict[str, Any] = {
            name: {} for name in ("sampling", "elicitation", "roots") if name in found[2] and name not in can
        }
        data = {"requiredCapabilities": lacks, **data}
    return Fault(code, found[2], data)


def fault_of(body: ErrorBody, code: int | None = None) -> Fault:
    """A refusal as an error of the protocol."""
    return Fault(
        SURFACES[body.code].jsonrpc if code is None else code, f"{body.code}: {body.message}", {ERROR: plain(body)}
    )


def shaped(method: str, value: dict[str, Any], server: dict[str, Any]) -> dict[str, Any]:
    """A result as the generation 2026-07-28 has it.

    INVARIANT: what is filtered for one principal is cached for that one alone (test_what_is_listed_is_cached_for_its_principal_alone).
    """
    meta = value.get("_meta")
    told = {"resultType": "complete", **value, "_meta": {**(meta if isinstance(meta, dict) else {}), _SERVER: server}}
    if method in _CACHED and told["resultType"] == "complete":
        told |= {"ttlMs": _CACHED[method], "cacheScope": "private"}
    return told
