"""What a server answered, as it may be passed on, and the refusals that say what it left behind."""

from __future__ import annotations

import json
import math
from typing import Any

from remit_broker.edges.attach.outbound import Outgoing
from remit_schemas.errors import Code, Effect, Refusal, refusal


def unavailable(reason: str, effect: Effect, retry_after: float | None = None) -> Refusal:
    """TARGET_UNAVAILABLE with what the server did."""
    return refusal(
        Code.TARGET_UNAVAILABLE, f"the server is not available: {reason or 'it is not running'}", rule="attach.unavailable",
        ask="call again shortly" if effect == "none" else "find out whether it happened before calling again",
        effect=effect, retry_after=retry_after,
    )  # fmt: skip


def invalid(message: str) -> Refusal:
    """RESULT_INVALID: the server did the work, but its answer cannot be passed on."""
    return refusal(
        Code.RESULT_INVALID, message, rule="attach.result", ask="ask for less, or tell whoever runs the server",
        effect="happened",
    )  # fmt: skip


def effect_of(outgoing: Outgoing) -> Effect:
    return "unknown" if outgoing.handed_over else "none"


def tool_result(raw: dict[str, Any]) -> dict[str, Any]:
    """``content``, ``structuredContent``, ``isError`` and ``_meta``, untouched. Anything else is between server and worker."""
    if raw.get("resultType", "complete") != "complete":
        raise invalid("the server works on in the background, which a call over the bus cannot carry yet")
    value = {"content": raw.get("content", []), "isError": raw.get("isError", False) is True}
    if "structuredContent" in raw:
        value["structuredContent"] = raw["structuredContent"]
    return _json(_with_meta(value, raw))


def plain(raw: dict[str, Any]) -> dict[str, Any]:
    """What a resource, a prompt or a completion is, untouched."""
    if raw.get("resultType", "complete") != "complete":
        raise invalid("the server works on in the background, which a call over the bus cannot carry yet")
    value = {key: value for key, value in raw.items() if key not in ("resultType", "ttlMs", "cacheScope", "_meta")}
    return _json(_with_meta(value, raw))


def _with_meta(value: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    """``_meta`` as the server has it, but for what is the protocol's between it and the worker, and what only Remit may say.

    INVARIANT: no server speaks in Remit's name (test_a_server_cannot_say_what_only_remit_says).
    """
    meta = raw.get("_meta")
    if isinstance(meta, dict) and (
        kept := {
            key: said for key, said in meta.items() if not key.startswith(("io.modelcontextprotocol/", "dev.remit/"))
        }
    ):
        value["_meta"] = kept
    return value


def _json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        raise invalid(
            "the server's answer holds a number that is not JSON (NaN or infinite), or is nested too deeply"
        ) from None
    return value


def finite(value: float | None) -> float | None:
    """``value``, or None where JSON has no such number."""
    return value if value is not None and math.isfinite(value) else None
