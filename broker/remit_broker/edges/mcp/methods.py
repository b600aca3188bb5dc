"""What a client may ask in a session of the generation 2025-11-25 (and the two before it), and what becomes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from remit_broker import __version__
from remit_broker.edges.inside import Calls
from remit_broker.edges.mcp.access import Who
from remit_broker.edges.mcp.answers import fault_of, refused_tool, tool_result
from remit_broker.edges.mcp.catalogue import Catalogue, Pages, described
from remit_broker.edges.mcp.jsonrpc import INVALID_PARAMS, METHOD_NOT_FOUND, Call, Fault, Id, notification
from remit_broker.edges.mcp.session import Session
from remit_broker.edges.mcp.tasks import is_over
from remit_schemas.envelope import Error, InputRequired, Progress, Request, Result, Trace, Want
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import Resource, is_op, normalize

VERSIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26")
"""Revisions of the protocol that a session may have, the newest first."""

Tell = Callable[[dict[str, Any]], Awaitable[None]]
"""Sends a message to the client while one of its requests is being worked on."""


def agreed(wanted: Any) -> str:
    """The revision of a session: the client's, where it is one of ours."""
    return wanted if wanted in VERSIONS else VERSIONS[0]


class Methods:
    """The requests of one session."""

    def __init__(
        self, session: Session, who: Who, catalogue: Catalogue, calls: Calls, pages: Pages, seconds: float
    ) -> None:
        self._session, self._who, self._catalogue, self._calls = session, who, catalogue, calls
        self._pages, self._seconds = pages, seconds

    async def answer(self, call: Call, tell: Tell) -> dict[str, Any]:
        """The result of a request. Raises :class:`Fault` or a refusal."""
        match call.method:
            case "ping":
                return {}
            case "tools/list":
                return self._list_tools(call.params)
            case "tools/call":
                return await self._call_tool(call, tell)
        raise Fault(METHOD_NOT_FOUND, f"there is no method {call.method[:64]!r} here")

    def _list_tools(self, params: dict[str, Any]) -> dict[str, Any]:
        whose = (*self._session.key, self._session.view or "")
        shown, after = self._pages.page("tools", whose, self._catalogue.tools(), params.get("cursor"))
        told: dict[str, Any] = {"tools": [described(one) for one in shown]}
        return told if after is None else {**told, "nextCursor": after}

    async def _call_tool(self, call: Call, tell: Tell) -> dict[str, Any]:
        name, args = call.params.get("name"), call.params.get("arguments")
        args = {} if args is None else args
        if not isinstance(name, str) or not isinstance(args, dict):
            raise Fault(INVALID_PARAMS, "tools/call needs the name of a tool, and an object as its arguments")
        resource = self._resource(name)
        try:
            return await self._tool(call, resource, args, tell)
        except Refusal as no:
            # Before there was a hop: no room, no task.
            return refused_tool(no.body)

    def _resource(self, name: str) -> Resource:
        op = normalize(name)
        # INVARIANT: what is no name of a tool is none of a resource either, and reaches nothing
        # (test_a_hostile_name_of_a_tool_is_an_unknown_tool).
        resource = self._catalogue.resolve(op) if is_op(op) and not op.startswith("$") else None
        if resource is None:
            raise Fault(INVALID_PARAMS, f"Unknown tool: {name[:64]}")
        return resource

    async def _tool(self, call: Call, resource: Resource, args: dict[str, Any], tell: Tell) -> dict[str, Any]:
        frame, txn, hop = await self._hop(call, resource, args, tell)
        if isinstance(frame, Error) and is_over(Refusal(frame.error)) and not hop:
            # The task ended between two calls, as by an operator's word or its time: the next one has another.
            frame, txn, hop = await self._hop(call, resource, args, tell)
        return tool_result(frame, txn, hop)

    async def _hop(
        self, call: Call, resource: Resource, args: dict[str, Any], tell: Tell
    ) -> tuple[Result | Error, str, str]:
        """One hop, to its end, with what it says meanwhile passed on; its final frame, and its ids."""
        assert call.id is not None  # noqa: S101 - requests only
        session, meta = self._session, _meta(call.params)
        session.begin(call.id)
        try:
            held = await session.task.holding()
            request = Request(
                grant=held.grant, args=args, want=Want(ttl_ms=int(self._seconds * 1000)), parts=True, trace=_trace(meta)
            )
            running = self._calls.begin(held.caller, held.txn, resource, request)
            session.runs(call.id, running)
            async for frame in running:
                if isinstance(frame, Progress):
                    await self._progress(frame, meta, tell)
                elif isinstance(frame, Result | Error):
                    return frame, held.txn, running.hop
                elif isinstance(frame, InputRequired):
                    return Error(error=_unanswerable(resource)), held.txn, running.hop
        finally:
            session.over(call.id)
        raise RuntimeError("a call ended without an end")

    async def _progress(self, frame: Progress, meta: dict[str, Any], tell: Tell) -> None:
        token: Id | None = meta.get("progressToken")
        if token is None or frame.progress is None:
            return
        said: dict[str, Any] = {"progressToken": token, "progress": frame.progress}
        if frame.total is not None:
            said["total"] = frame.total
        if frame.message:
            said["message"] = frame.message
        await tell(notification("notifications/progress", said))


def welcome(version: str, server: str | None, described: dict[str, Any]) -> dict[str, Any]:
    """The result of ``initialize``. One server is shown as itself; all of them together are Remit."""
    told: dict[str, Any] = {"protocolVersion": version, "capabilities": {"tools": {"listChanged": True}}}
    name = {key: str(described[key]) for key in ("name", "version", "title") if described.get(key)}
    if server is not None and name.get("name"):
        told["serverInfo"] = {"version": "", **name}
    else:
        told["serverInfo"] = {"name": "remit", "version": __version__}
    if described.get("instructions"):
        told["instructions"] = described["instructions"]
    return told


def refused(no: Refusal) -> Fault:
    """A refusal of anything but a tool."""
    return fault_of(no.body)


def _meta(params: dict[str, Any]) -> dict[str, Any]:
    meta = params.get("_meta")
    return meta if isinstance(meta, dict) else {}


def _trace(meta: dict[str, Any]) -> Trace | None:
    """The client's trace context, for a link of the span; whatever cannot be one is left out."""
    parent, state = meta.get("traceparent"), meta.get("tracestate", "")
    if not isinstance(parent, str) or len(parent) > 55 or not isinstance(state, str) or len(state) > 512:
        return None
    return Trace(parent, state)


def _unanswerable(resource: Resource) -> Any:
    return refusal(
        Code.RESULT_INVALID, f"{resource} asks for an input, which this client cannot give", rule="mcp.input",
        ask="call it from a client that answers such questions", effect="unknown",
    ).body  # fmt: skip
