"""Several sessions with one server, each of somebody else: opened when they are needed, ended when nobody has used them for a while."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Final

from remit_broker.edges.attach.session import ToolSession, first_cause
from remit_broker.edges.attach.source import ServerError, SourceError

_AGAIN: Final = (1.0, 30.0)
"""First and last pause, in seconds, after a session that could not be opened; meanwhile the same reason is given."""
_FAILURES: Final = 256

Open = Callable[[], AbstractAsyncContextManager[ToolSession]]


class Crowded(Exception):  # noqa: N818 - an answer
    """As many are open as there may be, and each is in use."""


class _One:
    def __init__(self) -> None:
        self.ready: asyncio.Future[ToolSession] = asyncio.get_running_loop().create_future()
        self.leave = asyncio.Event()
        self.used = asyncio.get_running_loop().time()
        self.task: asyncio.Task[None] | None = None

    @property
    def session(self) -> ToolSession | None:
        """The session, once it is there."""
        done = self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None
        return self.ready.result() if done else None


class SessionPool:
    """At most ``most`` at once, each ended after ``idle`` seconds without a call. ``on_change`` is told when one came or went.

    INVARIANT: there are never more than ``most`` (test_the_processes_of_a_server_are_bounded).
    """

    def __init__(self, most: int, idle: float, on_change: Callable[[], None] = lambda: None) -> None:
        self._most, self._idle, self._on_change = most, idle, on_change
        self._open: OrderedDict[str, _One] = OrderedDict()
        self._leaving: set[asyncio.Task[None]] = set()
        self._failed: OrderedDict[str, tuple[float, float, str]] = OrderedDict()
        self._turn = asyncio.Lock()

    async def get(self, key: str, open_: Open) -> ToolSession:
        """The live session of ``key``, opened by ``open_`` where there is none. Raises :class:`ServerError` or :class:`Crowded`."""
        one = self._open.get(key)
        if one is None or one.task is None or one.task.done() or one.leave.is_set():
            one = await self._begin(key, open_)
        self._open.move_to_end(key)
        one.used = asyncio.get_running_loop().time()
        return await asyncio.shield(one.ready)

    def sessions(self) -> list[ToolSession]:
        """Those that are live."""
        return [session for one in self._open.values() if (session := one.session) is not None]

    async def close(self) -> None:
        """End all of them."""
        tasks = {*self._leaving, *(one.task for one in self._open.values() if one.task is not None)}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._open.clear()

    async def _begin(self, key: str, open_: Open) -> _One:
        async with self._turn:
            one = self._open.get(key)
            if one is not None and one.task is not None and not one.task.done() and not one.leave.is_set():
                return one
            now = asyncio.get_running_loop().time()
            until, _, why = self._failed.get(key, (0.0, 0.0, ""))
            if now < until:
                raise ServerError(f"{why}; it is tried again in {until - now:.0f} s")
            await self._room(key)
            one = self._open[key] = _One()
            one.task = asyncio.create_task(self._live(key, open_, one))
            return one

    async def _room(self, key: str) -> None:
        """Wait for one to end where there are too many: that which was used longest ago, of those that nobody uses."""
        if (earlier := self._open.pop(key, None)) is not None:
            self._send_off([earlier])
        self._forget()
        if len(self._open) + len(self._leaving) < self._most:
            return
        if len(self._leaving) == 0:
            at_rest = (
                at for at, one in self._open.items() if (found := one.session) is not None and not found.in_flight
            )
            if (oldest := next(at_rest, None)) is None:
                raise Crowded
            self._send_off([self._open.pop(oldest)])
        await asyncio.wait(set(self._leaving), return_when=asyncio.FIRST_COMPLETED)

    def _send_off(self, some: Iterable[_One]) -> None:
        for one in some:
            one.leave.set()
            if one.task is not None and not one.task.done():
                self._leaving.add(one.task)
                one.task.add_done_callback(self._leaving.discard)

    def _forget(self) -> None:
        for at in [at for at, one in self._open.items() if one.task is not None and one.task.done()]:
            del self._open[at]

    async def _live(self, key: str, open_: Open, one: _One) -> None:
        """The life of one, in the task that enters and leaves it."""
        try:
            async with open_() as session:
                one.ready.set_result(session)
                self._failed.pop(key, None)
                self._on_change()
                await self._until_over(session, one)
        except Exception as error:
            if not one.ready.done():
                known = isinstance(error, ServerError | SourceError)
                failure = ServerError(str(error) if known else _line(first_cause(error)))
                self._note(key, str(failure))
                one.ready.set_exception(failure)
                one.ready.exception()  # somebody may have stopped waiting for it
        finally:
            one.ready.cancel()
            if self._open.get(key) is one:
                del self._open[key]
            self._on_change()

    def _note(self, key: str, why: str) -> None:
        pause = min(2 * self._failed[key][1], _AGAIN[1]) if key in self._failed else _AGAIN[0]
        self._failed[key] = (asyncio.get_running_loop().time() + pause, pause, why)
        while len(self._failed) > _FAILURES:
            self._failed.popitem(last=False)

    async def _until_over(self, session: ToolSession, one: _One) -> None:
        ends = [asyncio.create_task(session.ended.wait()), asyncio.create_task(one.leave.wait())]
        try:
            while True:
                done, _ = await asyncio.wait(ends, timeout=self._idle, return_when=asyncio.FIRST_COMPLETED)
                idle = asyncio.get_running_loop().time() - one.used >= self._idle
                if session.ended.is_set() or ((done or idle) and not session.in_flight):
                    return
                if done:
                    await asyncio.sleep(0.2)
        finally:
            for task in ends:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*ends, return_exceptions=True)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
