"""One MCP session with the attached server: its tools, and calls that end in a result or in a refusal that says what it left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import mcp_types as types
from mcp import Client
from mcp.client._transport import TransportStreams
from mcp.client.session import IncomingMessage
from mcp.shared.exceptions import MCPError
from pydantic import RootModel, ValidationError

from remit_broker.edges.attach.answers import effect_of, invalid, plain, tool_result, unavailable
from remit_broker.edges.attach.changes import Changes
from remit_broker.edges.attach.child import Child, start
from remit_broker.edges.attach.conversation import Asked, Conversation, Heard
from remit_broker.edges.attach.listing import List, Listed, answers, listed
from remit_broker.edges.attach.operations import KINDS, SUBSCRIBE, request_of
from remit_broker.edges.attach.outbound import CAN, TASK, Outbound, Outgoing, calling
from remit_broker.edges.attach.server_log import ServerLog
from remit_broker.edges.attach.server_tasks import EXTENSION, RELATED, Job, ServerTasks, TaskRequest, begun
from remit_broker.edges.attach.source import HttpSource, ServerError, Source
from remit_broker.edges.attach.stdio import stdio
from remit_broker.edges.attach.streamable import Http
from remit_schemas.errors import Code, Refusal, refusal

_SAID: Final = 500

OnProgress = Callable[[float, float | None, str], Awaitable[None]]


class _Raw(RootModel[dict[str, Any]]):
    """A result as it came, with everything in it."""


class _OtherGenerationError(ServerError):
    """It answered the handshake with an error, as a server that knows only the generation without one does."""


_UNSPOKEN: Final = frozenset({types.METHOD_NOT_FOUND, types.INVALID_REQUEST, types.INVALID_PARAMS, -32022, -32004})


def _nothing(_: str) -> None:
    return None


@dataclass(frozen=True)
class ServerIdentity:
    """What the server says it is."""

    name: str
    version: str
    protocol: str


class ToolSession:
    """A live session. Its owner leaves it when :attr:`ended` is set; calls may run at the same time in other tasks."""

    def __init__(
        self, client: Client, identity: ServerIdentity, *, child: Child | None, http: Http | None, as_user: bool = False
    ) -> None:
        """With ``as_user`` every request has the user's own headers already, and no call brings its grant in another."""
        self._as_user = as_user
        self.identity = identity
        self.ended = child.ended if child else asyncio.Event()
        self._client = client
        self._child = child
        self._http = http
        self._reason = ""
        self._abandoned: set[asyncio.Task[dict[str, Any]]] = set()
        self._open: dict[int, Conversation] = {}
        self._tasks = ServerTasks()
        self.in_flight = 0
        self.changes: Changes | None = None
        """Where a server without sessions tells of changes."""

    @property
    def pid(self) -> int | None:
        """The process id of a server that was started here."""
        return self._child.pid if self._child else None

    @property
    def reason(self) -> str:
        """Why the session ended."""
        return self._reason or (self._child.reason if self._child else "")

    def end(self, reason: str) -> None:
        """Give the session up."""
        self._reason = self._reason or reason
        self.ended.set()

    @property
    def capabilities(self) -> types.ServerCapabilities:
        """What the server says that it can do."""
        return self._client.server_capabilities

    @property
    def has_sessions(self) -> bool:
        """Whether the server speaks the generation of the protocol that has sessions."""
        return self._client.session.discover_result is None

    @property
    def instructions(self) -> str:
        """What the server says about its use."""
        return str(self._client.session.instructions or "")

    async def listing(self, of: List) -> Listed:
        """What is in one of its lists. Raises :class:`ServerError` and :class:`MCPError`."""
        return await listed(self._client.session, of)

    async def lives(self, seconds: float) -> bool:
        """Whether the server still answers. A listing is asked for, since both generations of MCP have it (ping has gone)."""
        try:
            async with asyncio.timeout(seconds):
                await answers(self._client.session)
        except (TimeoutError, MCPError):
            return False
        return True

    def begin(
        self, op: str, args: dict[str, Any], *, meta: dict[str, Any], progress: OnProgress, heard: Heard
    ) -> Conversation:
        """A request for ``op``: a tool's name, or :data:`RESOURCE`, :data:`PROMPT` or :data:`COMPLETE`. It is sent by :meth:`next`.

        ``heard`` gets what the server says of it meanwhile. Raises TARGET_UNAVAILABLE with the effect none.
        """
        if self.ended.is_set():
            raise unavailable(self.reason, "none")
        can, task = meta.get(CAN), meta.get(TASK)
        meta = {key: said for key, said in meta.items() if key not in (CAN, TASK)}
        outgoing = Outgoing(
            traceparent=meta.get("traceparent", ""), bearer="" if self._as_user else meta["dev.remit/grant"],
            can=can if isinstance(can, dict) else None, task=task if isinstance(task, dict) else None,
        )  # fmt: skip
        if outgoing.task is not None and not self.has_sessions:
            outgoing.can = _with_tasks(outgoing.can)
        conversation = Conversation(
            outgoing, lambda more: self._request(outgoing, op, args, {**more, "_meta": meta}, progress)
        )
        outgoing.conversation, outgoing.heard = conversation, heard
        self._open[id(conversation)] = conversation
        return conversation

    async def next(self, conversation: Conversation, seconds: float) -> dict[str, Any] | Asked:
        """The result of a request as the server sent it, or what it asks back.

        Raises a refusal: TARGET_UNAVAILABLE (effect none where the request was never handed over, else unknown),
        DEADLINE_EXCEEDED after ``seconds``, RESULT_INVALID, or INTERNAL where the server answered with a protocol error.
        """
        # The request runs in a task of its own: giving it up may take the library seconds (it tells the server, on a pipe
        # that may be full), and the caller's deadline does not wait for that.
        outgoing, said = conversation.outgoing, None
        self.in_flight += 1
        try:
            said = await conversation.next(seconds)
            if isinstance(said, Asked):
                return said
            if said is not None:
                return await self._outcome(said, outgoing)
        except MCPError as error:
            raise self._refused(error.error, outgoing) from None
        finally:
            self.in_flight -= 1
            if not isinstance(said, Asked):
                self.let_go(conversation)
        raise refusal(
            Code.DEADLINE_EXCEEDED, "the server did not answer before the deadline", rule="attach.deadline",
            ask="allow more time, or ask for less work in one call", effect=effect_of(outgoing),
        )  # fmt: skip

    def let_go(self, conversation: Conversation) -> None:
        """Nobody waits for it any more."""
        self._open.pop(id(conversation), None)
        if (task := conversation.abandon()) is not None:
            self._abandon(task)

    def _abandon(self, task: asyncio.Task[dict[str, Any]]) -> None:
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)
        task.add_done_callback(lambda t: None if t.cancelled() else t.exception())
        task.cancel()

    async def _request(
        self, outgoing: Outgoing, op: str, args: dict[str, Any], more: dict[str, Any], report: OnProgress
    ) -> dict[str, Any]:
        calling.set(outgoing)
        if op == SUBSCRIBE and self.changes is not None:
            await self.changes.want(str(args.get("uri")))
            return {"remit/kind": op}

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            await report(progress, total, message or "")

        # Not the library's call_tool: it would validate against the server's own output schema, which is the broker's to
        # do against the accepted definition, and it would drop what it does not know.
        if op not in KINDS and outgoing.task is not None and self.has_sessions:
            raw = await self._background(request_of(op, args, {**more, "task": outgoing.task}), on_progress)
        else:
            raw = (
                await self._client.session.send_request(request_of(op, args, more), _Raw, progress_callback=on_progress)
            ).root
        if op not in KINDS and (task := begun(raw)) is not None:
            job = Job(self._client.protocol_version, self.has_sessions, outgoing, self._of_task)
            raw = await self._tasks.to_the_end(task, job)
        return raw | {"remit/kind": op if op in KINDS else ""}

    async def _background(self, request: Any, report: Any) -> dict[str, Any]:
        """The answer to a call that is to be a task. The library knows no such answer, and would take it for a result that is none."""
        session = self._client.session
        data = request.model_dump(by_alias=True, mode="json", exclude_none=True)
        options: Any = {"on_progress": report}
        session._stamp(data, options)
        return dict(await session._dispatcher.send_raw_request(data["method"], data["params"], options))

    async def _of_task(self, request: TaskRequest) -> dict[str, Any]:
        return (await self._client.session.send_request(request, _Raw)).root

    def whose(self, related: Any = None) -> Outgoing | None:
        """The request that a server speaks of at the moment: over HTTP the one on whose stream it does, else that of the task which
        it names, else the only one there is.

        INVARIANT: what a server asks or says reaches nobody but whoever called it
        (test_what_a_server_asks_is_asked_of_its_caller_and_of_nobody_else).
        """
        if (known := calling.get()) is not None and known.conversation is not None:
            return known if id(known.conversation) in self._open else None
        if related is not None:
            return self._tasks.whose(related)
        return next(iter(self._open.values())).outgoing if len(self._open) == 1 else None

    async def _outcome(self, task: asyncio.Task[dict[str, Any]], outgoing: Outgoing) -> dict[str, Any]:
        try:
            raw = await task
        except MCPError as error:
            raise self._refused(error.error, outgoing) from None
        except ValidationError:
            raise invalid("the server's answer is not a tool result of its protocol version") from None
        except (asyncio.CancelledError, OSError, RuntimeError) as error:
            if isinstance(error, asyncio.CancelledError) and not task.cancelled():
                raise
            self.end("the session broke")
            raise unavailable(self.reason, effect_of(outgoing)) from None
        kind = raw.pop("remit/kind", "")
        return plain(raw) if kind else tool_result(raw)

    def _refused(self, error: types.ErrorData, outgoing: Outgoing) -> Refusal:
        if self._http is not None and self._http.failed(error):
            sent = "none" if self._http.never_sent(error) else effect_of(outgoing)
            return unavailable(f"it {error.message}", "none" if sent == "none" else "unknown")
        if error.code == types.CONNECTION_CLOSED:
            return unavailable(self.reason or "the connection closed", effect_of(outgoing))
        if error.code == types.PARSE_ERROR and self._http is not None:
            return invalid("the server's answer cannot be read, or is too large")
        if error.message == "Session terminated":
            self.end("it ended the session")
            return unavailable(self.reason, "unknown")
        said = "".join(c if c.isprintable() else " " for c in error.message[:_SAID])
        return refusal(
            Code.INTERNAL, f"the server answered with error {error.code}: {said}", rule="attach.server-error",
            ask="check the arguments, then tell whoever runs the server", effect="unknown",
        )  # fmt: skip


def _with_tasks(can: dict[str, Any] | None) -> dict[str, Any]:
    """What a client can, and that its call may become a task."""
    known = can or {}
    return {**known, "extensions": {**(known.get("extensions") or {}), EXTENSION: {}}}


@asynccontextmanager
async def open_session(
    source: Source,
    log: ServerLog,
    on_change: Callable[[], None],
    seconds: float,
    on_update: Callable[[str], None] = _nothing,
    home: Path | None = None,
    *,
    as_user: bool = False,
) -> AsyncGenerator[ToolSession, None]:
    """Start or reach the server and shake hands within ``seconds``; ``on_change`` is called when one of its lists changed,
    ``on_update`` with the URI of a resource that did. ``home`` is the home of a contained server.

    Raises :class:`~remit_broker.edges.attach.source.SourceError` or :class:`ServerError`. Must be left in the task that entered it.
    """
    live: list[ToolSession] = []

    async def on_message(message: IncomingMessage) -> None:
        if isinstance(message, _LISTS):
            on_change()
        elif isinstance(message, types.ResourceUpdatedNotification):
            on_update(str(message.params.uri))

    async def on_log(params: types.LoggingMessageNotificationParams) -> None:
        if live and (outgoing := live[0].whose()) is not None and outgoing.heard is not None:
            said = params.model_dump(by_alias=True, mode="json", exclude_none=True)
            await outgoing.heard({"method": "notifications/message", "params": said})

    async def asked(method: str, params: Any) -> Any:
        said = {} if params is None else params.model_dump(by_alias=True, mode="json", exclude_none=True)
        outgoing = live[0].whose((said.get("_meta") or {}).get(RELATED)) if live else None
        if outgoing is None or outgoing.conversation is None:
            return types.ErrorData(
                code=types.INVALID_REQUEST, message="nobody can be asked: it is not clear for whom this is"
            )
        return await outgoing.conversation.asked(method, said)

    async def enter(stack: AsyncExitStack, mode: Literal["legacy", "auto"]) -> ToolSession:
        child = None if isinstance(source, HttpSource) else await start(source, home)
        http = Http(source.url, source.headers) if isinstance(source, HttpSource) else None
        client = made(child, http, mode)
        await _shake_hands(stack, client, child, log, seconds)
        return ToolSession(client, _identity(client), child=child, http=http, as_user=as_user)

    def made(child: Child | None, http: Http | None, mode: Literal["legacy", "auto"]) -> Client:
        return Client(
        _transport(child, http, log), mode=mode, message_handler=on_message, cache=None, client_info=_CLIENT, logging_callback=on_log,
        log_level="debug", sampling_callback=lambda _, params: asked("sampling/createMessage", params),
        sampling_capabilities=types.SamplingCapability(tools=types.SamplingToolsCapability()),
        elicitation_callback=lambda _, params: asked("elicitation/create", params),
        list_roots_callback=lambda _: asked("roots/list", None),
    )  # fmt: skip

    async with AsyncExitStack() as stack:
        try:
            # The generation with sessions first: there a server may ask its client and tell it things, and most servers that
            # know the newer one speak it too.
            session = await enter(stack, "legacy")
        except _OtherGenerationError:
            session = await enter(stack, "auto")
        live.append(session)
        if not session.has_sessions:
            session.changes = Changes(session._client, on_change, on_update)
            stack.callback(asyncio.create_task(session.changes.run()).cancel)
        yield session


_LISTS: Final = (
    types.ToolListChangedNotification, types.ResourceListChangedNotification, types.PromptListChangedNotification,
)  # fmt: skip
_CLIENT: Final = types.Implementation(name="remit", version="1")


async def _shake_hands(
    stack: AsyncExitStack, client: Client, child: Child | None, log: ServerLog, seconds: float
) -> None:
    """Enter the session, giving up at once where the server dies meanwhile, and after ``seconds`` in any case."""
    try:
        async with asyncio.timeout(seconds):
            await stack.enter_async_context(client)
    except TimeoutError:
        raise ServerError(f"it did not answer the handshake within {seconds:g} s{_hint(log)}") from None
    except Exception as error:
        cause = first_cause(error)
        kind = _OtherGenerationError if isinstance(cause, MCPError) and cause.code in _UNSPOKEN else ServerError
        raise kind(f"{_why(cause, child)}{_hint(log)}") from None


def first_cause(error: BaseException) -> BaseException:
    """The first single exception inside groups: what goes wrong in the library comes wrapped in its task groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _why(error: BaseException, child: Child | None) -> str:
    if isinstance(error, MCPError):
        return child.reason if child and error.code == types.CONNECTION_CLOSED else f"it {error.message}"
    return f"it broke the protocol in the handshake ({type(error).__name__})"


def _hint(log: ServerLog) -> str:
    line = log.last_line()
    return f"; its last words: {line}" if line else ""


@asynccontextmanager
async def _transport(child: Child | None, http: Http | None, log: ServerLog) -> AsyncGenerator[TransportStreams, None]:
    if child is not None:
        async with stdio(child, log) as (read, write):
            yield read, Outbound(write, http=False)
    elif http is not None:
        async with http.streams() as (read, write):
            yield read, Outbound(write, http=True)


def _identity(client: Client) -> ServerIdentity:
    said = client.server_info
    return ServerIdentity(
        name=said.name[:200] if said else "",
        version=said.version[:100] if said else "",
        protocol=client.protocol_version,
    )
