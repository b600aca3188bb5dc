"""A call in flight: its frames, its end, and what it cost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NoReturn

from remit.errors import InputNeeded, Refused, ToolFailed, refused
from remit.link import Frames, Link
from remit_schemas import subjects
from remit_schemas.budget import Budget
from remit_schemas.control import CANCEL, Control, encode_control
from remit_schemas.envelope import Accepted, Error, Event, Frame, InputRequired, Part, Progress, Result
from remit_schemas.errors import Code, Effect, Refusal
from remit_schemas.parts import AHEAD, Joiner

MAX_RESULT: Final = 128 * 1024 * 1024
"""Most bytes of JSON that a result in parts may have here; the broker allows a quarter of that at most."""

OnEnd = Callable[[Budget | None, Effect], None]
"""Told once, how much the call cost in all (None where nobody knows) and what may have happened."""


class Run:
    """A call that was started. Iterate it for what comes before the result, then await :meth:`result`.

    ``id`` is the hop (empty where the call was refused before there was one), ``resource`` what was called. One reader: what
    :meth:`result` passes over is not seen by an iteration that goes on beside it.
    """

    def __init__(self, link: Link, resource: str, frames: Frames, on_end: OnEnd, window: int | None = None) -> None:
        """``window`` is that of the request: how many frames the callee may be ahead of what is read here."""
        self.resume: Callable[..., Any] = _no_input(resource)
        """Makes the call that goes on, from the id of the hop, the input and the wishes of a call."""
        self.resource: Final = resource
        self.id = ""
        self._link, self._frames, self._on_end = link, frames, on_end
        self._accepted: Accepted | None = None
        self._final: Result | Error | InputRequired | None = None
        self._reading = asyncio.Lock()
        self._waiting: list[Progress | Event] = []
        self._joiner: Joiner | None = None
        self._window, self._read = window, 0

    @property
    def done(self) -> bool:
        """Whether the end has come and was read."""
        return self._final is not None

    @property
    def asks(self) -> bool:
        """Whether it has ended, for now, by asking for an input."""
        return isinstance(self._final, InputRequired)

    async def accepted(self) -> None:
        """Wait until the call is open. Raises :class:`~remit.errors.Refused` where it never is."""
        frame = await self._next()
        if isinstance(frame, Error):
            raise Refused(frame.error)
        if isinstance(frame, Progress | Event):
            self._waiting.append(frame)

    def __aiter__(self) -> AsyncIterator[Progress | Event]:
        return self

    async def __anext__(self) -> Progress | Event:
        if self._waiting:
            await self._count()
            return self._waiting.pop(0)
        while self._final is None:
            frame = await self._next()
            if isinstance(frame, Progress | Event):
                await self._count()
                return frame
        raise StopAsyncIteration

    async def result(self) -> Any:
        """The value. Raises :class:`~remit.errors.Refused`, :class:`~remit.errors.ToolFailed` or :class:`~remit.errors.InputNeeded`.

        Cancelled while it waits, it tells the callee that nobody waits any more.
        """
        try:
            while self._waiting:
                self._waiting.pop(0)
                await self._count()
            while self._final is None:
                if isinstance(await self._next(), Progress | Event):
                    await self._count()
        except asyncio.CancelledError:
            await self.cancel()
            raise
        if isinstance(self._final, Error):
            raise Refused(self._final.error)
        if isinstance(self._final, InputRequired):
            raise InputNeeded(
                self.resource, self.id, self._final.request, functools.partial(self.resume, self.id), self.cancel
            )
        if self._final.failed:
            raise ToolFailed(self.resource, self._final.value)
        return self._final.value

    async def cancel(self) -> None:
        """Ask the callee to stop, or give up a call that asks for an input. Best effort: what it has done stays done; a call that
        runs still ends with a frame of its own.
        """
        if self._final is None or isinstance(self._final, InputRequired):
            await self._say(CANCEL)

    def abandon(self) -> None:
        """Listen no longer; what it costs is not known."""
        self._end(None, "unknown")

    async def _say(self, control: bytes) -> None:
        """To the replica that has the call in hand. Best effort."""
        at = self._accepted
        if at is not None:
            with contextlib.suppress(Refused):
                await self._link.tell(subjects.control(self._link.name, at.replica, at.txn, at.hop), control)

    async def _next(self) -> Frame | None:
        async with self._reading:
            if self._final is not None:
                return None
            try:
                frame = await self._frames.next()
            except Refused as no:
                self._fail(no)
            if isinstance(frame, Accepted):
                self._accepted, self.id = frame, frame.hop
            elif isinstance(frame, InputRequired):
                self._final = frame
                self._end(frame.cost, "happened")
            elif isinstance(frame, Part):
                await self._take(frame)
            elif isinstance(frame, Result):
                frame = await self._whole(frame)
                self._final = frame
                self._end(frame.cost, "happened")
            elif isinstance(frame, Error):
                self._final = frame
                self._end(frame.cost, frame.error.effect)
            return frame

    async def _count(self) -> None:
        """One frame of output was read; the callee is told before it has to wait."""
        self._read += 1
        if self._window is not None and self._read % max(self._window // 2, 1) == 0:
            await self._say(encode_control(Control(read=self._read)))

    async def _take(self, part: Part) -> None:
        joiner = self._joiner = self._joiner or Joiner(MAX_RESULT)
        try:
            joiner.take(part)
        except Refusal as bad:
            self._fail(Refused(bad.body))
        if joiner.count % (AHEAD // 2) == 0:
            await self._say(encode_control(Control(parts=joiner.count)))

    async def _whole(self, end: Result) -> Result:
        if self._joiner is None and not end.parts:
            return end
        joiner, self._joiner = self._joiner or Joiner(0), None
        try:
            # Reading many megabytes takes a while, and everything else in this process would wait for it.
            return await asyncio.to_thread(joiner.whole, end)
        except Refusal as bad:
            self._fail(Refused(bad.body))

    def _fail(self, no: Refused) -> NoReturn:
        self._final = Error(error=no.body)
        self._end(None, no.effect)
        raise no

    def _end(self, cost: Budget | None, effect: Effect) -> None:
        self._frames.close()
        on_end, self._on_end = self._on_end, _told
        on_end(cost, effect)


def _told(_: Budget | None, __: Effect) -> None:
    return None


def _no_input(resource: str) -> Callable[..., Any]:
    def resume(*_: Any, **__: Any) -> Any:
        raise refused(
            Code.RESULT_INVALID, f"{resource} asks for an input, which cannot be given here", rule="client.input",
            ask="send all it needs with the call", effect="unknown",
        )  # fmt: skip

    return resume
