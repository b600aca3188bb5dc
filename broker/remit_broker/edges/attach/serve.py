"""One dispatch, from the message on the bus to its final frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from remit_broker.core.backends import scrubbed, worth_hiding
from remit_broker.edges.attach.answers import finite, invalid, unavailable
from remit_broker.edges.attach.conversation import Asked, Conversation, Heard
from remit_broker.edges.attach.outbound import CAN, TASK
from remit_broker.edges.attach.pace import Pace
from remit_broker.edges.attach.session import OnProgress
from remit_broker.edges.attach.wire import NOTHING_SHOWN, Shown
from remit_schemas.callee import Seen, answer_subject, check_dispatch
from remit_schemas.canonical import loads
from remit_schemas.control import Control
from remit_schemas.envelope import (
    MAX_ENVELOPE,
    Dispatch,
    Error,
    Event,
    Frame,
    InputRequired,
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
from remit_schemas.parts import split
from remit_schemas.subjects import parse_service

MAX_CALLS: Final = 256
"""Calls in flight at one server; more are turned away at once, before anything is sent."""
MAX_PROGRESS: Final = 500
"""Progress frames of one call that are passed on."""
PROGRESS_EVERY: Final = 0.1
"""Seconds between two progress frames of one call: what comes faster is dropped, the latest state follows anyway."""

PATIENCE: Final = 900.0
"""Seconds for which a server waits here for what it asked."""

_MESSAGE: Final = 1000
_RESERVED: Final = ("dev.remit/", "io.modelcontextprotocol/")
_SAID: Final = 64 * 1024

Publish = Callable[[str, Frame], Awaitable[None]]


class Server(Protocol):
    """The live session, as far as a call needs it."""

    def begin(
        self, op: str, args: dict[str, Any], *, meta: dict[str, Any], progress: OnProgress, heard: Heard
    ) -> Conversation:
        """See :meth:`remit_broker.edges.attach.session.ToolSession.begin`."""

    async def next(self, conversation: Conversation, seconds: float) -> dict[str, Any] | Asked:
        """See :meth:`remit_broker.edges.attach.session.ToolSession.next`."""

    def let_go(self, conversation: Conversation) -> None:
        """See :meth:`remit_broker.edges.attach.session.ToolSession.let_go`."""


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
        self._pace: dict[tuple[str, str], Pace] = {}
        self._waiting: dict[tuple[str, str], _Waiting] = {}
        self._hidden: dict[tuple[str, str], tuple[str, ...]] = {}
        self.server: Server | None = None
        self.names: Mapping[str, str] = {}
        self.tasks: Mapping[str, str] = {}
        """Which tools the server works on in the background: where whoever calls wants it (``optional``), or always (``required``)."""
        self.absence = "it is starting"
        self.back_in: float | None = None
        self.credentials: Callable[[str], Awaitable[Shown]] | None = None
        """What is shown for the user of a grant, where the server is called with anything but the grant."""
        self.traced = False
        """Whether the server is told the trace of a call: the broker says so when it is registered."""
        self.apart = False
        """Whether each user, or task, has a process of its own."""
        self.session_of: Callable[[str, str, Shown], Awaitable[Server]] = _no_session
        """The session for a user and a task, with what the server is shown."""
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
            if dispatch.resumed is not None:
                raise _gone()
            grant = self._trust.take(dispatch, time.time())
            self._room()
        except Refusal as refused:
            if refused.body.code not in (Code.DUPLICATE, Code.DEADLINE_EXCEEDED):
                await self._publish(where, Error(error=refused.body))
            return
        self._begin(dispatch, where, lambda: self._first(dispatch, grant, where))

    async def go_on(self, txn: str, hop: str, data: bytes) -> None:
        """The input of a call that waits here for one. Never waits for the work, never raises."""
        try:
            dispatch = parse_dispatch(data)
            where = answer_subject(self._trust.me, dispatch)
        except Refusal:
            return
        if where is None or (dispatch.txn, dispatch.hop) != (txn, hop):
            return
        try:
            self._trust.take(dispatch, time.time())
            if (waiting := self._waiting.pop((txn, hop), None)) is None:
                raise _gone()
        except Refusal as refused:
            if refused.body.code not in (Code.DUPLICATE, Code.DEADLINE_EXCEEDED):
                await self._publish(where, Error(error=refused.body))
            return
        waiting.timer.cancel()
        self._begin(dispatch, where, lambda: self._again(dispatch, waiting, where))

    def _begin(self, dispatch: Dispatch, where: str, work: Callable[[], Awaitable[Frame]]) -> None:
        key = (dispatch.txn, dispatch.hop)
        task = asyncio.create_task(self._serve(dispatch, where, work))
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._tasks.pop(key, None) if self._tasks.get(key) is done else None)

    def hear(self, txn: str, hop: str, said: Control) -> None:
        """What the broker says of a hop: to stop working on it, or how much of its result it has taken."""
        task = self._tasks.get((txn, hop))
        if task is not None and said.cancel:
            self._cancelled.add((txn, hop))
            task.cancel()
        if said.cancel and (waiting := self._waiting.pop((txn, hop), None)) is not None:
            waiting.let_go()
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
        for waiting in self._waiting.values():
            waiting.let_go()
        self._waiting.clear()

    def _room(self) -> None:
        if len(self._tasks) + len(self._waiting) >= MAX_CALLS:
            raise unavailable(f"{MAX_CALLS} calls are in flight", "none", retry_after=1.0)

    async def _first(self, dispatch: Dispatch, grant: Grant, where: str) -> Frame:
        server, op = self._ready(dispatch)
        hidden: tuple[str, ...] = ()
        if self.credentials is not None or self.apart:
            shown = await self.credentials(dispatch.grant) if self.credentials is not None else NOTHING_SHOWN
            hidden = self._hidden[dispatch.txn, dispatch.hop] = worth_hiding({**shown.headers, **shown.variables})
            server = await self.session_of(grant.claims.sub, dispatch.txn, shown)
        await self._publish(where, Started(connection=self._connection))
        voice = _Voice(where, self._publish, hidden)
        conversation = server.begin(
            op, dispatch.args, meta=self._meta(dispatch, grant), progress=voice.progress, heard=voice.heard
        )
        return await self._converse(dispatch, _Waiting(server, conversation, voice))

    def _meta(self, dispatch: Dispatch, grant: Grant) -> dict[str, Any]:
        meta, support = (
            meta_of(dispatch, grant, traced=self.traced),
            self.tasks.get(parse_resource(dispatch.resource).op),
        )
        wish = dispatch.meta.get(TASK)
        if support == "required" or (support == "optional" and isinstance(wish, dict)):
            # Until then whoever called hears how it ends; the server may forget it after.
            left = max(int(dispatch.deadline - time.time() * 1000), 1)
            meta[TASK] = {"ttl": left}
        return meta

    async def _again(self, dispatch: Dispatch, waiting: _Waiting, where: str) -> Frame:
        await self._publish(where, Started(connection=self._connection))
        waiting.voice.where = where
        said = dispatch.resumed.input if dispatch.resumed is not None else None
        answers = said.get("answers") if isinstance(said, dict) else None
        waiting.conversation.answer(answers if isinstance(answers, dict) else {})
        return await self._converse(dispatch, waiting)

    async def _converse(self, dispatch: Dispatch, talk: _Waiting) -> Frame:
        """Until the server answers, or asks: then the hop is parked, and the conversation waits here to go on."""
        try:
            said = await talk.server.next(talk.conversation, dispatch.deadline / 1000 - time.time())
        except asyncio.CancelledError:
            talk.server.let_go(talk.conversation)
            raise
        if not isinstance(said, Asked):
            return result_frame(said, dispatch.parts)
        key = (dispatch.txn, dispatch.hop)
        talk.timer = asyncio.get_running_loop().call_later(PATIENCE, self._forget, key)
        self._waiting[key] = talk
        return InputRequired(request={"asks": said.requests})

    def _forget(self, key: tuple[str, str]) -> None:
        self._hidden.pop(key, None)
        if (waiting := self._waiting.pop(key, None)) is not None:
            waiting.let_go()

    async def _serve(self, dispatch: Dispatch, where: str, work: Callable[[], Awaitable[Frame]]) -> None:
        begun = False
        try:
            self._ready(dispatch)
            begun = True
            final = await work()
        except Refusal as refused:
            if refused.body.code is Code.DEADLINE_EXCEEDED and begun:
                self.on_timeout()
            final = Error(error=refused.body)
        except asyncio.CancelledError:
            final = Error(error=self._given_up(dispatch, "unknown" if begun else "none").body)
        except Exception as error:  # the one place where a fault of ours becomes an answer
            self.on_fault(error)
            final = Error(error=_fault().body)
        key = (dispatch.txn, dispatch.hop)
        hidden = self._hidden.get(key, ()) if key in self._waiting else self._hidden.pop(key, ())
        if hidden:
            final = _withheld(final, hidden)
        if isinstance(final, Result) and dispatch.parts and len(encode(final)) > MAX_ENVELOPE:
            final = await self._parts(dispatch, where, final)
        await self._publish(where, final)

    async def _parts(self, dispatch: Dispatch, where: str, whole: Result) -> Frame:
        """Send the value in parts, no faster than the broker takes them; what then ends the hop."""
        key = (dispatch.txn, dispatch.hop)
        pace = self._pace[key] = Pace()
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


def _withheld(final: Frame, hidden: tuple[str, ...]) -> Frame:
    """``final`` without the credential that the server was shown."""
    if isinstance(final, Result):
        return msgspec.structs.replace(final, value=scrubbed(final.value, hidden))
    if isinstance(final, InputRequired):
        return msgspec.structs.replace(final, request=scrubbed(final.request, hidden))
    if isinstance(final, Error):
        error = msgspec.structs.replace(final.error, message=scrubbed(final.error.message, hidden))
        return msgspec.structs.replace(final, error=error)
    return final


async def _no_session(user: str, txn: str, shown: Shown) -> Server:
    raise RuntimeError("not wired")


class _Waiting:
    """A conversation with the server, and where what is said in it goes."""

    def __init__(self, server: Server, conversation: Conversation, voice: _Voice) -> None:
        self.server, self.conversation, self.voice = server, conversation, voice
        self.timer: asyncio.TimerHandle = asyncio.get_running_loop().call_later(0, lambda: None)

    def let_go(self) -> None:
        """Nobody waits for it any more."""
        self.timer.cancel()
        self.server.let_go(self.conversation)


class _Voice:
    """Passes on what a server says before it answers, not faster and not more often than is useful."""

    def __init__(self, where: str, publish: Publish, hidden: tuple[str, ...] = ()) -> None:
        self.where, self._hidden = where, hidden
        self._publish = publish
        self._sent = self._said = 0
        self._next = 0.0

    async def heard(self, said: dict[str, Any]) -> None:
        """A notification of the server's about this call."""
        self._said += 1
        if self._said <= MAX_PROGRESS and len(encode(said)) <= _SAID:
            await self._publish(self.where, Event(data=scrubbed(said, self._hidden)))

    async def progress(self, progress: float, total: float | None, message: str) -> None:
        now = time.monotonic()
        if self._sent >= MAX_PROGRESS or now < self._next:
            return
        self._sent, self._next = self._sent + 1, now + PROGRESS_EVERY
        frame = Progress(
            message=scrubbed(message, self._hidden)[:_MESSAGE], progress=finite(progress), total=finite(total)
        )
        await self._publish(self.where, frame)


def meta_of(dispatch: Dispatch, grant: Grant, *, traced: bool) -> dict[str, Any]:
    """What a server is told in ``_meta`` (MCP, General fields; keys under a domain of ours): for whom, through whom, and the proof.

    A server that wants to be sure verifies ``dev.remit/grant`` with the published keys; the rest is for those that only log it.
    What the caller's own client wrote stands beside it, under other keys.
    """
    return {
        **{key: said for key, said in dispatch.meta.items() if key == CAN or not key.startswith(_RESERVED)},
        "dev.remit/grant": grant.token,
        "dev.remit/user": grant.claims.sub,
        "dev.remit/chain": list(grant.chain),
        "dev.remit/txn": dispatch.txn,
        "dev.remit/hop": dispatch.hop,
        # W3C Trace Context: the hop is the parent of whatever span the server opens, where its spans are wanted.
        **({"traceparent": f"00-{dispatch.txn}-{dispatch.hop}-01"} if traced else {}),
    }


def result_frame(value: dict[str, Any], largest: int = 0) -> Result:
    """The Result frame of what a server answered. Raises RESULT_INVALID for what the broker could not accept.

    ``largest`` is how many bytes of JSON a value may have that is sent in parts.
    """
    frame = Result(value=value, failed=value.get("isError") is True)
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


def _gone() -> Refusal:
    return refusal(
        Code.TARGET_UNAVAILABLE, "the server does not wait for this input any more: it was started again, or waited too long",
        rule="attach.input", ask="find out what it did, then call again", effect="unknown",
    )  # fmt: skip


def _fault() -> Refusal:
    return refusal(
        Code.INTERNAL, "the attached server's worker failed", rule="attach.fault", ask="see its log", effect="unknown"
    )
