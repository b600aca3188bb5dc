"""The agents' side of the bus, for one tenant: answers, dispatches, and the frames that come back to this replica."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from nats.aio.client import Client
from nats.aio.msg import Msg

from remit_broker.core.revocations import Entry, Revoked
from remit_broker.ports import CallerCancelled, Parties, Withdrawn, at_once
from remit_schemas import subjects
from remit_schemas.callee import control_subject
from remit_schemas.envelope import (
    MAX_ENVELOPE,
    Dispatch,
    Error,
    Event,
    Frame,
    Progress,
    Result,
    Started,
    encode,
    parse_frame,
)
from remit_schemas.errors import Code, ErrorBody, Refusal, refusal
from remit_schemas.names import Resource, is_connection

CANCEL = b'{"cancel":true}'
"""What a caller sends on its ``ctl`` subject, and the broker on to the connection that works on the hop."""

BACKLOG = 1024
"""Frames that may wait for one hop; a callee that sends faster than its caller is served loses progress, never its end."""

BACKLOG_BYTES = 8 * MAX_ENVELOPE
"""What those frames may take together."""

_SAME = 0.001
"""Two deadlines no further apart than this, in seconds, are one: they are computed from two readings of the clock."""


class FrameQueue:
    """The frames of one callee for one hop, in the order the bus delivered them."""

    def __init__(self) -> None:
        self._frames: deque[bytes | None] = deque()
        self._bytes = 0
        self._ended: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def put(self, frame: bytes | None) -> None:
        """Add a frame; when full, the oldest go, so that the final one always fits.

        INVARIANT: what waits for one hop is bounded in bytes too
        (test_frames_that_wait_for_a_slow_caller_do_not_fill_the_memory).
        """
        size = len(frame or b"")
        while len(self._frames) >= BACKLOG or (self._bytes + size > BACKLOG_BYTES and self._frames):
            self._take()
        self._bytes += size
        self._frames.append(frame)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Nobody waits any more."""
        if self._timer is not None:
            self._timer.cancel()

    def cancel(self) -> None:
        """The caller does not wait any more; whoever waits for a frame is woken."""
        self._end(CallerCancelled())

    def withdraw(self, why: str, rule: str) -> None:
        """What the hop depends on was revoked; whoever waits for a frame is woken."""
        self._end(Withdrawn(why, rule))

    def _end(self, why: Exception) -> None:
        self._ended = self._ended or why
        self.put(b"")

    async def next(self, seconds: float) -> bytes | None:
        """The next frame; None when the server said that nobody listens.

        Raises TimeoutError, CallerCancelled or Withdrawn.
        """
        if self._ended is not None and not self._frames:
            raise self._ended
        frame = await self._next(seconds)
        # What came before the wish comes first: it may say who works on the hop, and so whom to tell
        # (test_a_wish_to_end_does_not_swallow_who_has_started).
        if self._ended is not None and frame == b"":
            raise self._ended
        return frame

    async def _next(self, seconds: float) -> bytes | None:
        if seconds <= 0:
            raise TimeoutError
        if not self._frames:
            loop = asyncio.get_running_loop()
            # All waiting for one hop ends at the same moment, so that the timer of the first serves the others.
            due = loop.time() + seconds
            if self._timer is None or self._timer.cancelled() or abs(self._timer.when() - due) > _SAME:
                self.close()
                self._timer = loop.call_at(due, self._expire)
            self._waiter = loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._take()

    def _take(self) -> bytes | None:
        frame = self._frames.popleft()
        self._bytes -= len(frame or b"")
        return frame

    def _expire(self) -> None:
        self._timer = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())


class _Listening:
    """``async with``: a hop's queue is where the frames of its callee and the wishes of its caller find it."""

    __slots__ = ("_bus", "_hop", "_parties", "_queue", "_txn")

    def __init__(self, bus: NatsBus, parties: Parties, txn: str, hop: str) -> None:
        self._bus, self._parties, self._txn, self._hop = bus, parties, txn, hop
        self._queue = FrameQueue()

    async def __aenter__(self) -> FrameQueue:
        self._bus.listen(self._parties, (self._txn, self._hop), self._queue)
        return self._queue

    async def __aexit__(self, *_: object) -> None:
        self._queue.close()
        self._bus.forget(self._parties, (self._txn, self._hop))


class NatsBus:
    """One replica on one tenant's account."""

    def __init__(self, nc: Client, replica: str) -> None:
        self.replica = replica
        self._nc = nc
        self._open: dict[tuple[str, str, str], FrameQueue] = {}
        # Cancelled before their callee said that it had started: the word is passed on when it does.
        self._unwanted: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        self._telling: set[asyncio.Task[None]] = set()
        self._called: dict[tuple[str, str, str], FrameQueue] = {}
        self._running: dict[tuple[str, str], tuple[Parties, FrameQueue]] = {}
        self.on_input: Callable[[subjects.Reply, Msg], None] = lambda _, __: None
        """Told what the caller of a hop says beside that it does not want it any more."""
        self.on_unwanted: Callable[[subjects.Reply], None] = lambda _: None
        """Told that a caller does not want a hop any more which does not run here: perhaps it is parked."""

    async def start(self) -> None:
        """Listen for the frames of callees and the wishes of callers: one subscription each for all hops of this replica."""
        await self._nc.subscribe(f"ctl.*.{self.replica}.*.*", cb=self._on_control)
        await self._nc.subscribe(f"res.*.{self.replica}.*.*", cb=self._on_frame, pending_msgs_limit=-1)

    @at_once
    async def _on_frame(self, message: Msg) -> None:
        at = subjects.parse_reply(message.subject)
        if at is None:
            return
        # INVARIANT: a frame counts only from the callee it was dispatched to; the NATS server vouches for that part of
        # the subject (test_answering_anothers_hop_changes_nothing).
        queue = self._open.get((at.principal, at.txn, at.hop))
        if queue is not None:
            nobody = message.headers is not None and message.headers.get("Status") == "503" and not message.data
            queue.put(None if nobody else message.data)
        elif (at.principal, at.txn, at.hop) in self._unwanted:
            self._late_start(at, message.data)

    def _late_start(self, at: subjects.Reply, data: bytes) -> None:
        try:
            frame = parse_frame(data)
        except Refusal:
            return
        if isinstance(frame, Started) and is_connection(frame.connection):
            del self._unwanted[at.principal, at.txn, at.hop]
            task = asyncio.get_running_loop().create_task(self.cancel(at.principal, frame.connection, at.txn, at.hop))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    @at_once
    async def _on_control(self, message: Msg) -> None:
        at = subjects.parse_reply(message.subject, "ctl")
        # INVARIANT: only the caller of a hop can end it; the NATS server vouches for that part of the subject
        # (test_only_the_caller_cancels).
        if at is None:
            return
        queue = self._called.get((at.principal, at.txn, at.hop))
        if message.data != CANCEL:
            self.on_input(at, message)
        elif queue is not None:
            queue.cancel()
        else:
            self.on_unwanted(at)

    def channel(self, parties: Parties, txn: str, hop: str) -> _Listening:
        """Listen to the callee's frames for a hop, and to its caller's wish to end it."""
        return _Listening(self, parties, txn, hop)

    def listen(self, parties: Parties, at: tuple[str, str], queue: FrameQueue) -> None:
        """From now on ``queue`` hears what is said about the hop ``at`` (its txn and id)."""
        self._open[parties.callee, *at] = self._called[parties.caller, *at] = queue
        self._running[at] = (parties, queue)

    def forget(self, parties: Parties, at: tuple[str, str]) -> None:
        """Nobody listens to that hop any more."""
        del self._open[parties.callee, *at], self._called[parties.caller, *at], self._running[at]

    def withdraw(self, entry: Entry) -> None:
        """End the running hops of this replica that depend on what was revoked: each asks its callee to stop, and is closed."""
        if entry.state != "revoked":
            return
        revoked, rule = Revoked(), "paused" if entry.kind == "all" else f"revoked.{entry.kind}"
        revoked.apply(entry)
        for parties, queue in list(self._running.values()):
            if revoked.paused or revoked.check(parties.chain, parties.user, parties.resource):
                queue.withdraw(f"{entry} was revoked", rule)

    def running(self, txn: str) -> list[tuple[str, FrameQueue]]:
        """The hops of a txn that this replica runs."""
        return [(hop, queue) for (of, hop), (_, queue) in self._running.items() if of == txn]

    async def cancel(self, callee: str, connection: str, txn: str, hop: str) -> None:
        """Ask the connection that works on a hop to stop; where none has said so yet (""), as soon as one does."""
        if not connection:
            self._unwanted[callee, txn, hop] = None
            if len(self._unwanted) > BACKLOG:
                self._unwanted.popitem(last=False)
        elif self._nc.is_connected:
            await self._nc.publish(control_subject(callee, connection, txn, hop), CANCEL)

    async def dispatch(self, resource: Resource, callee: str, dispatch: Dispatch) -> None:
        """Hand a governed call to its callee, once. Refuses TOO_LARGE or TARGET_UNAVAILABLE before anything is sent."""
        await self._hand(subjects.service(resource.kind, resource.name, resource.op), callee, dispatch)

    async def resume(self, callee: str, connection: str, dispatch: Dispatch) -> None:
        """Hand a call that goes on to the connection that parked it. Refuses as :meth:`dispatch`."""
        await self._hand(control_subject(callee, connection, dispatch.txn, dispatch.hop), callee, dispatch)

    async def _hand(self, subject: str, callee: str, dispatch: Dispatch) -> None:
        data = encode(dispatch)
        if len(data) > MAX_ENVELOPE:
            raise refusal(
                Code.TOO_LARGE, f"the call has {len(data)} bytes, at most {MAX_ENVELOPE} fit", rule="dispatch.size",
                ask="send a reference instead of the content",
            )  # fmt: skip
        if not self._nc.is_connected:
            # Never into the client's reconnect buffer: it would be sent late.
            raise refusal(
                Code.TARGET_UNAVAILABLE, "the bus is not connected", rule="dispatch.bus", ask="call again shortly",
                retry_after=1.0,
            )  # fmt: skip
        reply = subjects.reply(callee, self.replica, dispatch.txn, dispatch.hop)
        await self._nc.publish(subject, data, reply=reply)

    async def answer(self, reply: str, frame: Frame) -> None:
        """Publish one frame to a caller's inbox; a final frame that is too large becomes an error that says so."""
        data = encode(frame)
        if len(data) > MAX_ENVELOPE:
            if isinstance(frame, Progress | Event):
                return
            data = encode(Error(error=_too_large(len(data)), cost=frame.cost if isinstance(frame, Result) else None))
        if self._nc.is_connected:
            await self._nc.publish(reply, data)


def _too_large(size: int) -> ErrorBody:
    return refusal(
        Code.RESULT_INVALID, f"the answer has {size} bytes, at most {MAX_ENVELOPE} fit", rule="answer.size",
        ask="ask for less, or for a reference", effect="happened",
    ).body  # fmt: skip
