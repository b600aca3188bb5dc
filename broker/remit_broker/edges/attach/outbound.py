"""The last place that sees a request before its transport: what only the wire may carry is added, and what was handed over is noted.

The call on its way is found through a context variable, since the library writes a request in the task that asked for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from mcp.client._transport import WriteStream
from mcp.shared.message import ClientMessageMetadata, SessionMessage
from mcp_types import JSONRPCRequest

if TYPE_CHECKING:
    from remit_broker.edges.attach.conversation import Conversation

GOVERNED: Final = frozenset(
    {
        "tools/call", "resources/read", "prompts/get", "completion/complete", "resources/subscribe",
        "tasks/get", "tasks/result", "tasks/update", "tasks/cancel",
    }
)  # fmt: skip


CAN: Final = "io.modelcontextprotocol/clientCapabilities"
"""The key of ``_meta`` in which a request of the generation 2026-07-28 says what its client can be asked."""
TASK: Final = "dev.remit/task"
"""The key of ``_meta`` under which the broker says that a call may be worked on in the background: ``{"ttl"}`` in milliseconds."""


_TRACE: Final = ("traceparent", "tracestate", "baggage")


@dataclass
class Outgoing:
    """One governed request. ``traceparent`` is empty for a server that is told no trace. ``handed_over`` turns true when the
    server may have got it: before that, nothing has happened.
    """

    traceparent: str
    bearer: str
    handed_over: bool = False
    conversation: Conversation | None = None
    heard: Callable[[dict[str, Any]], Awaitable[None]] | None = None
    can: dict[str, Any] | None = None
    """What the client whose call it is can be asked, where it is one that says so; what a server asks is asked of that one."""
    task: dict[str, Any] | None = None
    """Where the server may work on it in the background: for how long it should keep the result, ``{"ttl"}`` in milliseconds."""


calling: ContextVar[Outgoing | None] = ContextVar("calling", default=None)


class Outbound:
    """A write stream in front of the transport's own."""

    def __init__(self, inner: WriteStream[SessionMessage], *, http: bool) -> None:
        self._inner = inner
        self._http = http

    async def send(self, item: SessionMessage, /) -> None:
        """Pass ``item`` on."""
        call = calling.get()
        if call is not None and isinstance(item.message, JSONRPCRequest) and item.message.method in GOVERNED:
            item = self._finished(item, item.message, call)
            # INVARIANT: noted before, never after: an interrupted hand-over counts
            # (test_a_server_that_dies_on_a_call_leaves_the_effect_unknown).
            call.handed_over = True
        await self._inner.send(item)

    def _finished(self, item: SessionMessage, request: JSONRPCRequest, call: Outgoing) -> SessionMessage:
        # The library writes the trace context of its own span over the hop's; the chain would break there.
        meta = (request.params or {}).get("_meta")
        if isinstance(meta, dict):
            # INVARIANT: a server that is not trusted with it is told no trace, whatever the library or a client put there
            # (test_only_a_server_that_is_trusted_with_it_is_told_the_trace).
            for name in _TRACE:
                meta.pop(name, None)
            if call.traceparent:
                meta["traceparent"] = call.traceparent
            if call.can is not None and CAN in meta:
                meta[CAN] = call.can
        if not self._http or not call.bearer:
            return item
        # The grant goes where RFC 6750 §2.1 has it, for this one request only.
        metadata = item.metadata if isinstance(item.metadata, ClientMessageMetadata) else ClientMessageMetadata()
        metadata.headers = {**(metadata.headers or {}), "Authorization": f"Bearer {call.bearer}"}
        return SessionMessage(item.message, metadata)

    async def aclose(self) -> None:
        """Close the transport's stream."""
        await self._inner.aclose()

    async def __aenter__(self) -> Outbound:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        await self.aclose()
        return None
