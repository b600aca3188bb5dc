"""The agents' side of the bus, for one tenant: answers, dispatches, and the frames that come back to this replica."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from msgspec.structs import replace
from nats.aio.client import Client
from nats.aio.msg import Msg

from remit_broker.adapters.endings import Endings
from remit_broker.adapters.releasing import Releasing
from remit_broker.core.revocations import Entry, Revoked
from remit_broker.ports import MAX_FRAMES, CallerCancelled, Parties, Recipient, Withdrawn, at_once
from remit_schemas import subjects
from remit_schemas.callee import control_subject
from remit_schemas.control import CANCEL, Control, encode_control, goes_on, parse_control
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
from remit_schemas.names import DEFAULT_TENANT, Resource, is_connection

BACKLOG = 1024
"""Frames that may wait for one hop; a callee that sends faster than its caller is served loses progress, never its end."""

BACKLOG_BYTES = 8 * MAX_ENVELOPE
"""What those frames may take together."""

_SAME = 0.001
"""Two deadlines no further apart than this, in seconds, are one: they are computed from two readings of the clock."""


Soon = Callable[[Callable[[], object]], object]
"""When work begins that others may have to wait for (:class:`~remit_broker.adapters.pace.Pace`)."""


def _now(begin: Callable[[], object]) -> None:
    begin()


class FrameQueue:
    """The frames of one callee for one hop, in the order the bus delivered them."""

    def __init__(self, soon: Soon = _now) -> None:
        """``soon`` says when whoever waits for a frame goes on."""
        self.worker = ""
        self._soon = soon
        self._read = 0
        self._frames: deque[bytes | None] = deque()
        self._bytes = 0
        self._ended: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._woken = False
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
        if self._waiter is not None and not self._woken:
            self._woken = True
            self._soon(self._wake)

    def _wake(self) -> None:
        self._woken = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Nobody waits any more."""
        if self._timer is not None:
            self._timer.cancel()

    def hear(self, said: Control) -> None:
        """What the caller says: that it does not wait any more. Then whoever waits for a frame is woken."""
        if said.cancel:
            self._end(CallerCancelled())

    def has_read(self, count: int) -> bool:
        """Whether that the caller has read ``count`` frames is news for whoever works on the hop."""
        news = bool(self.worker) and self._read < count <= MAX_FRAMES
        if news:
            self._read = count
        return news

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

    def left(self) -> list[bytes]:
        """What nobody has taken."""
        return [frame for frame in self._frames if frame is not None]

    def _expire(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        # A busy broker wakes its waiters in turn: a frame may be here already that nobody was woken for yet
        # (test_a_frame_that_came_in_time_is_taken_although_its_waiter_was_not_woken_yet).
        if self._frames:
            self._waiter.set_result(None)
        else:
            self._waiter.set_exception(TimeoutError())


class _Listening:
    """``async with``: a hop's queue is where the frames of its callee and the wishes of its caller find it."""

    __slots__ = ("_bus", "_hop", "_parties", "_queue", "_txn")

    def __init__(self, bus: NatsBus, parties: Parties, txn: str, hop: str) -> None:
        self._bus, self._parties, self._txn, self._hop = bus, parties, txn, hop
        self._queue = FrameQueue(bus.soon)

    async def __aenter__(self) -> FrameQueue:
        self._bus.listen(self._parties, (self._txn, self._hop), self._queue)
        return self._queue

    async def __aexit__(self, *_: object) -> None:
        self._queue.close()
        self._bus.forget(self._parties, (self._txn, self._hop), self._queue.left())


class NatsBus:
    """One replica on one tenant's account."""

    def __init__(
        self, nc: Client, replica: str, core: Client, soon: Soon = _now, *, tenant: str = DEFAULT_TENANT
    ) -> None:
        """``nc`` is a connection in the tenant's account, ``core`` one in the broker's own; ``soon`` sets the pace of frames."""
        self.replica, self.tenant = replica, tenant
        self.soon = soon
        self._nc = nc
        self._endings = Endings(core, self._on_ended, tenant)
        self._open: dict[tuple[str, str, str], FrameQueue] = {}
        # Cancelled before their callee said that it had started: the word is passed on when it does.
        self._unwanted: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        self._telling: set[asyncio.Task[None]] = set()
        self._called: dict[tuple[str, str, str], FrameQueue | Releasing] = {}
        self._running: dict[tuple[str, str], tuple[Parties, FrameQueue]] = {}
        self._inside: dict[str, Callable[[Frame], None]] = {}
        self.on_input: Callable[[subjects.Reply, Msg], None] = lambda _, __: None
        """Told what the caller of a hop says beside that it does not want it any more."""
        self.on_unwanted: Callable[[subjects.Reply], None] = lambda _: None
        """Told that a caller does not want a hop any more which does not run here: perhaps it is parked."""
        self._suspect: OrderedDict[str, None] = OrderedDict()
        self.on_suspect: Callable[[str], None] = lambda txn: None
        """Told of a txn of which a hop runs here and a grant was revoked lately; it must not wait."""

    async def start(self) -> None:
        """Listen for the frames of callees and the wishes of callers: one subscription each for all hops of this replica."""
        await self._endings.start()
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
            self._soon(self.cancel(at.principal, frame.connection, at.txn, at.hop))

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    @at_once
    async def _on_control(self, message: Msg) -> None:
        at = subjects.parse_reply(message.subject, "ctl")
        # INVARIANT: only the caller of a hop can end it; the NATS server vouches for that part of the subject
        # (test_only_the_caller_cancels).
        if at is None:
            return
        if message.reply and goes_on(message.data):
            self.on_input(at, message)
            return
        said = parse_control(message.data)
        listening = self._called.get((at.principal, at.txn, at.hop))
        if listening is None:
            if said.cancel:
                self.on_unwanted(at)
            return
        listening.hear(said)
        running = self._running.get((at.txn, at.hop))
        if said.read is not None and running is not None and running[1].has_read(said.read):
            self._soon(self.tell(running[0].callee, running[1].worker, (at.txn, at.hop), Control(read=said.read)))

    def channel(self, parties: Parties, txn: str, hop: str) -> _Listening:
        """Listen to the callee's frames for a hop, and to its caller's wish to end it."""
        return _Listening(self, parties, txn, hop)

    def listen(self, parties: Parties, at: tuple[str, str], queue: FrameQueue) -> None:
        """From now on ``queue`` hears what is said about the hop ``at`` (its txn and id)."""
        self._open[parties.callee, *at] = self._called[parties.caller, *at] = queue
        self._running[at] = (parties, queue)
        # INVARIANT: a grant revoked between the opening of a hop below it and this moment ends that hop too
        # (test_a_hop_that_opens_just_before_its_grant_is_revoked_is_cancelled).
        if at[0] in self._suspect:
            self.on_suspect(at[0])
        if at in self._endings:
            self._on_ended(at)

    def _on_ended(self, at: tuple[str, str]) -> None:
        if (running := self._running.get(at)) is not None:
            running[1].withdraw("it was closed", "close.by-another")

    async def ended(self, tenant: str, txn: str, hop: str) -> None:
        """Say to every replica that a hop has ended which another one may run."""
        await self._endings.say(tenant, txn, hop)

    async def until_ended(self, at: tuple[str, str], seconds: float) -> None:
        """Wait until it is said that a hop has ended, at most ``seconds``."""
        await self._endings.until(at, seconds)

    def forget(self, parties: Parties, at: tuple[str, str], unread: Iterable[bytes]) -> None:
        """Nobody listens to that hop any more. ``unread`` are the frames of it that came and were not looked at.

        INVARIANT: a callee that says that it has started in the moment its hop ends is told to stop
        (test_who_started_in_the_moment_of_the_end_is_told_to_stop).
        """
        del self._open[parties.callee, *at], self._called[parties.caller, *at], self._running[at]
        for data in unread:
            if (parties.callee, *at) in self._unwanted:
                self._late_start(subjects.Reply(parties.callee, self.replica, *at), data)

    def withdraw(self, entry: Entry) -> None:
        """End the running hops of this replica that depend on what was revoked: each asks its callee to stop, and is closed."""
        if entry.state != "revoked" or (entry.kind != "all" and entry.tenant != self.tenant):
            return
        revoked, rule = Revoked(), "paused" if entry.kind == "all" else f"revoked.{entry.kind}"
        revoked.apply(entry)
        for parties, queue in list(self._running.values()):
            if (
                revoked.paused
                or revoked.tenant(parties.tenant)
                or revoked.check(parties.chain, parties.user, parties.resource)
            ):
                queue.withdraw(f"{entry} was revoked", rule)

    def suspect(self, txn: str) -> None:
        """A grant of ``txn`` was revoked: what runs of it is looked at, and what begins to run soon."""
        self._suspect[txn] = None
        self._suspect.move_to_end(txn)
        if len(self._suspect) > BACKLOG:
            self._suspect.popitem(last=False)
        if self.running(txn):
            self.on_suspect(txn)

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

    async def tell(self, callee: str, connection: str, at: tuple[str, str], said: Control) -> None:
        """Say something about a hop to the connection that works on it."""
        if connection and self._nc.is_connected:
            await self._nc.publish(control_subject(callee, connection, *at), encode_control(said))

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

    def hear_inside(self, reply: str, hear: Callable[[Frame], None]) -> None:
        """What is answered to ``reply`` goes to ``hear``, which must not wait: the caller is a part of this process."""
        self._inside[reply] = hear

    def deaf_inside(self, reply: str) -> None:
        """Nobody in this process listens there any more."""
        self._inside.pop(reply, None)

    def cancel_inside(self, caller: str, txn: str, hop: str) -> None:
        """A caller in this process does not want a hop any more, as one on the bus says it on ``ctl.…``."""
        listening = self._called.get((caller, txn, hop))
        if listening is None:
            self.on_unwanted(subjects.Reply(caller, self.replica, txn, hop))
        else:
            listening.hear(Control(cancel=True))

    async def answer(self, reply: str, frame: Frame) -> None:
        """Publish one frame to a caller's inbox; one that is too large becomes one that says so."""
        if (hear := self._inside.get(reply)) is not None:
            hear(frame)
            return
        data = encode(frame)
        if len(data) > MAX_ENVELOPE:
            if isinstance(frame, Progress | Event):
                # Not nothing: whoever counts what it is sent would wait for it (ADR 0010, windows).
                data = encode(Progress(message=f"output of {len(data)} bytes was left out, at most {MAX_ENVELOPE} fit"))
            else:
                cost = frame.cost if isinstance(frame, Result) else None
                data = encode(Error(error=_too_large(len(data)), cost=cost))
        if self._nc.is_connected:
            await self._nc.publish(reply, data)

    async def release(self, to: Recipient, result: Result) -> None:
        """Publish a result, in parts where it is too large, no faster than the caller says that it takes them."""
        if (hear := self._inside.get(to.reply)) is not None:
            hear(result if not result.parts else replace(result, parts=0))
            return
        whole = encode(result if not result.parts else replace(result, parts=0))
        if len(whole) <= MAX_ENVELOPE:
            if self._nc.is_connected:
                await self._nc.publish(to.reply, whole)
            return
        del whole
        key, releasing = (to.caller, to.txn, to.hop), Releasing()
        self._called[key] = releasing
        try:
            await releasing.send(self._nc, to.reply, result)
        finally:
            if self._called.get(key) is releasing:
                del self._called[key]


def _too_large(size: int) -> ErrorBody:
    return refusal(
        Code.RESULT_INVALID, f"the answer has {size} bytes, at most {MAX_ENVELOPE} fit", rule="answer.size",
        ask="ask for less, or for a reference", effect="happened",
    ).body  # fmt: skip
