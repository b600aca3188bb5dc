"""One dispatch, from the message on the bus to its final frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from remit_broker.core.backends import scrubbed, worth_hiding
from remit_broker.edges.attach.session import OnProgress, finite, invalid, unavailable
from remit_schemas.callee import Seen, answer_subject, check_dispatch
from remit_schemas.canonical import loads
from remit_schemas.control import Control
from remit_schemas.envelope import (
    MAX_ENVELOPE,
    Dispatch,
    Error,
    Frame,
    Progress,
    Result,
    Started,
    encode,
    parse_dispatch,
    parse_frame,
)
from remit_schemas.errors import Code, Effect, Refusal, refusal
from remit_schemas.grant import Grant
from remit_schemas.keys import KeySet
from remit_schemas.names import parse_resource
from remit_schemas.parts import AHEAD, split
from remit_schemas.subjects import parse_service

MAX_CALLS: Final = 256
"""Calls in flight at one server; more are turned away at once, before anything is sent."""
MAX_PROGRESS: Final = 500
"""Progress frames of one call that are passed on."""
PROGRESS_EVERY: Final = 0.1
"""Seconds between two progress frames of one call: what comes faster is dropped, the latest state follows anyway."""

_MESSAGE: Final = 1000

Publish = Callable[[str, Frame], Awaitable[None]]


class Server(Protocol):
    """The live session, as far as a call needs it."""

    async def call(
        self, tool: str, args: dict[str, Any], *, meta: dict[str, Any], seconds: float, progress: OnProgress
    ) -> dict[str, Any]:
        """See :meth:`remit_broker.edges.attach.session.ToolSession.call`."""


class Trust:
    """Whose grants count: the keys may be read again when a grant names one that is not known yet."""

    def __init__(self, me: str, issuer: str, keys: KeySet, reload: Callable[[], KeySet]) -> None:
        self.me = me
        self._issuer = issuer
        self._keys = keys
        self._reload = reload
        self._reloaded = float("-inf")
        self._seen = Seen()

    def take(self, dispatch: Dispatch, now: float) -> Grant:
        """The grant of a dispatch that may be served now; the same dispatch is not taken again. Raises a refusal."""
        try:
            grant = self._check(dispatch, now)
        except Refusal as refused:
            # Keys are rotated; at most one reading a second, or unknown kids would be a way to keep us busy.
            if refused.body.rule != "grant.kid" or now - self._reloaded < 1.0:
                raise
            self._reloaded, self._keys = now, self._reload()
            grant = self._check(dispatch, now)
        self._seen.take(dispatch, now * 1000)
        return grant

    def _check(self, dispatch: Dispatch, now: float) -> Grant:
        return check_dispatch(
            dispatch, me=self.me, kind="mcp", keys=self._keys, issuer=self._issuer, now=now, seen=self._seen
        )


class Calls:
    """The calls in flight. They run side by side; each ends in exactly one final frame."""

    def __init__(self, trust: Trust, connection: str, publish: Publish) -> None:
        self._trust = trust
        self._connection = connection
        self._publish = publish
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._cancelled: set[tuple[str, str]] = set()
        self._pace: dict[tuple[str, str], _Pace] = {}
        self.server: Server | None = None
        self.names: Mapping[str, str] = {}
        self.absence = "it is starting"
        self.back_in: float | None = None
        self.credentials: Callable[[str], Awaitable[dict[str, str]]] | None = None
        """The headers for the user of a grant, where the server is called with others than the grant."""
        self.session_of: Callable[[dict[str, str]], Awaitable[Server]] = _no_session
        """The session in which every request has these headers."""
        self.on_timeout: Callable[[], None] = lambda: None
        self.on_fault: Callable[[Exception], None] = lambda _: None

    def __len__(self) -> int:
        return len(self._tasks)

    async def take(self, subject: str, data: bytes) -> None:
        """Begin what a message asks for, or refuse it. Never waits for the work, never raises."""
        try:
            dispatch = parse_dispatch(data)
            where = answer_subject(self._trust.me, dispatch)
        except Refusal:
            return
        if where is None:
            return
        try:
            _same_target(subject, dispatch)
            grant = self._trust.take(dispatch, time.time())
            self._room()
        except Refusal as refused:
            if refused.body.code not in (Code.DUPLICATE, Code.DEADLINE_EXCEEDED):
                await self._publish(where, Error(error=refused.body))
            return
        key = (dispatch.txn, dispatch.hop)
        task = asyncio.create_task(self._serve(dispatch, grant, where))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def hear(self, txn: str, hop: str, said: Control) -> None:
        """What the broker says of a hop: to stop working on it, or how much of its result it has taken."""
        task = self._tasks.get((txn, hop))
        if task is not None and said.cancel:
            self._cancelled.add((txn, hop))
            task.cancel()
        pace = self._pace.get((txn, hop))
        if pace is not None and said.parts is not None:
            pace.taken(said.parts)

    async def finish(self, seconds: float) -> None:
        """Wait for the calls in flight, then give up those that remain."""
        if self._tasks:
            await asyncio.wait(set(self._tasks.values()), timeout=seconds)
        for task in tuple(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _room(self) -> None:
        if len(self._tasks) >= MAX_CALLS:
            raise unavailable(f"{MAX_CALLS} calls are in flight", "none", retry_after=1.0)

    async def _serve(self, dispatch: Dispatch, grant: Grant, where: str) -> None:
        begun, hidden = False, tuple[str, ...]()
        try:
            server, tool = self._ready(dispatch)
            if self.credentials is not None:
                headers = await self.credentials(dispatch.grant)
                hidden = worth_hiding(headers)
                server = await self.session_of(headers)
            await self._publish(where, Started(connection=self._connection))
            begun = True
            value = await server.call(
                tool,
                dispatch.args,
                meta=meta_of(dispatch, grant),
                seconds=dispatch.deadline / 1000 - time.time(),
                progress=_Throttled(where, self._publish, hidden),
            )
            final: Frame = result_frame(scrubbed(value, hidden) if hidden else value, dispatch.parts)
        except Refusal as refused:
            if refused.body.code is Code.DEADLINE_EXCEEDED and begun:
                self.on_timeout()
            body = refused.body
            final = Error(
                error=msgspec.structs.replace(body, message=scrubbed(body.message, hidden)) if hidden else body
            )
        except asyncio.CancelledError:
            final = Error(error=self._given_up(dispatch, "unknown" if begun else "none").body)
        except Exception as error:  # the one place where a fault of ours becomes an answer
            self.on_fault(error)
            final = Error(error=_fault().body)
        if isinstance(final, Result) and dispatch.parts and len(encode(final)) > MAX_ENVELOPE:
            final = await self._parts(dispatch, where, final)
        await self._publish(where, final)

    async def _parts(self, dispatch: Dispatch, where: str, whole: Result) -> Frame:
        """Send the value in parts, no faster than the broker takes them; what then ends the hop."""
        key = (dispatch.txn, dispatch.hop)
        pace = self._pace[key] = _Pace()
        count = 0
        try:
            async with asyncio.timeout(dispatch.deadline / 1000 - time.time()):
                for part in split(whole.value):
                    await pace.ready()
                    await self._publish(where, part)
                    count += 1
        except TimeoutError:
            return Error(error=invalid("the result was not taken before the deadline").body)
        except asyncio.CancelledError:
            return Error(error=self._given_up(dispatch, "unknown").body)
        finally:
            del self._pace[key]
        return Result(value=None, failed=whole.failed, parts=count)

    def _ready(self, dispatch: Dispatch) -> tuple[Server, str]:
        if self.server is None:
            raise unavailable(self.absence, "none", retry_after=self.back_in)
        op = parse_resource(dispatch.resource).op
        tool = self.names.get(op)
        if tool is None:
            raise refusal(
                Code.UNKNOWN_TARGET,
                f"the server has no tool {op!r} any more",
                rule="attach.tool",
                ask="list its tools again",
            )
        return self.server, tool

    def _given_up(self, dispatch: Dispatch, effect: Effect) -> Refusal:
        key = (dispatch.txn, dispatch.hop)
        if key in self._cancelled:
            self._cancelled.discard(key)
            return refusal(
                Code.CANCELLED,
                "the call was cancelled",
                rule="attach.cancelled",
                ask="call again if it is still wanted",
                effect=effect,
            )
        return unavailable("it was stopped while it worked", effect)


async def _no_session(_: dict[str, str]) -> Server:
    raise RuntimeError("not wired")


class _Pace:
    """How many parts of a result are ahead of what the broker has taken."""

    def __init__(self) -> None:
        self._sent = self._taken = 0
        self._grew = asyncio.Event()

    def taken(self, count: int) -> None:
        """The broker has taken so many."""
        self._taken = max(self._taken, count)
        self._grew.set()

    async def ready(self) -> None:
        """Wait until one more may be sent, which then counts as sent."""
        while self._sent - self._taken >= AHEAD:
            self._grew.clear()
            await self._grew.wait()
        self._sent += 1


class _Throttled:
    """Passes progress on, not faster and not more often than is useful."""

    def __init__(self, where: str, publish: Publish, hidden: tuple[str, ...] = ()) -> None:
        self._where, self._hidden = where, hidden
        self._publish = publish
        self._sent = 0
        self._next = 0.0

    async def __call__(self, progress: float, total: float | None, message: str) -> None:
        now = time.monotonic()
        if self._sent >= MAX_PROGRESS or now < self._next:
            return
        self._sent, self._next = self._sent + 1, now + PROGRESS_EVERY
        frame = Progress(
            message=scrubbed(message, self._hidden)[:_MESSAGE], progress=finite(progress), total=finite(total)
        )
        await self._publish(self._where, frame)


def meta_of(dispatch: Dispatch, grant: Grant) -> dict[str, Any]:
    """What a server is told in ``_meta`` (MCP, General fields; keys under a domain of ours): for whom, through whom, and the proof.

    A server that wants to be sure verifies ``dev.remit/grant`` with the published keys; the rest is for those that only log it.
    """
    return {
        "dev.remit/grant": grant.token,
        "dev.remit/user": grant.claims.sub,
        "dev.remit/chain": list(grant.chain),
        "dev.remit/txn": dispatch.txn,
        "dev.remit/hop": dispatch.hop,
        # W3C Trace Context: the hop is the parent of whatever span the server opens.
        "traceparent": f"00-{dispatch.txn}-{dispatch.hop}-01",
    }


def result_frame(value: dict[str, Any], largest: int = 0) -> Result:
    """The Result frame of a CallToolResult. Raises RESULT_INVALID for what the broker could not accept.

    ``largest`` is how many bytes of JSON a value may have that is sent in parts.
    """
    frame = Result(value=value, failed=value["isError"])
    try:
        # By the very rules it will be read with: size, depth, large integers.
        if len(data := encode(frame)) > MAX_ENVELOPE and largest:
            loads(encode(value), max_bytes=largest)
        else:
            parse_frame(data)
    except Refusal as refused:
        raise invalid(f"the result cannot be passed on: {refused.body.message}") from None
    return frame


def _same_target(subject: str, dispatch: Dispatch) -> None:
    at, resource = parse_service(subject), parse_resource(dispatch.resource)
    if at is None or at != (resource.kind, resource.name, resource.op):
        raise refusal(
            Code.MALFORMED, "the subject and the resource differ", rule="dispatch.subject", ask="send to svc.<resource>"
        )


def _fault() -> Refusal:
    return refusal(
        Code.INTERNAL, "the attached server's worker failed", rule="attach.fault", ask="see its log", effect="unknown"
    )
