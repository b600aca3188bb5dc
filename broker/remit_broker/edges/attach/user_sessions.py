"""Sessions with an HTTP server for each of its users: many servers bind a session to whoever began it, and rightly so."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
from collections import OrderedDict
from typing import Final

from remit_broker.edges.attach.server_log import ServerLog
from remit_broker.edges.attach.session import ServerError, ToolSession, first_cause, open_session
from remit_broker.edges.attach.source import HttpSource, Source
from remit_schemas.errors import Code, Refusal, refusal

MOST: Final = 64
"""Sessions at once; of more, that which was used longest ago ends."""
IDLE: Final = 300.0
"""Seconds without a call after which one ends."""


class _One:
    def __init__(self) -> None:
        self.ready: asyncio.Future[ToolSession] = asyncio.get_running_loop().create_future()
        self.leave = asyncio.Event()
        self.used = asyncio.get_running_loop().time()
        self.task: asyncio.Task[None] | None = None


class UserSessions:
    """Those of one server, by what it is shown. ``seconds`` is for one handshake."""

    def __init__(self, source: Source, log: ServerLog, seconds: float) -> None:
        self._source, self._log, self._seconds = source, log, seconds
        self._open: OrderedDict[str, _One] = OrderedDict()

    async def get(self, headers: dict[str, str]) -> ToolSession:
        """A live session in which every request has ``headers``. Raises a refusal; nothing has happened then.

        INVARIANT: no call of one user goes through the session of another (test_each_user_has_a_session_of_their_own).
        """
        if not isinstance(self._source, HttpSource):
            raise refusal(
                Code.TARGET_UNAVAILABLE, "a server that is started here is shown no credentials of users", rule="credentials.http",
                ask="attach it by its URL, or give it its own in its environment and leave out its table in [backends]",
            )  # fmt: skip
        key = hashlib.sha256(json.dumps(headers, sort_keys=True).encode()).hexdigest()
        one = self._open.get(key)
        if one is None or one.task is None or one.task.done():
            one = self._open[key] = _One()
            one.task = asyncio.create_task(self._live(dataclasses.replace(self._source, headers=headers), one))
            self._room()
        self._open.move_to_end(key)
        one.used = asyncio.get_running_loop().time()
        try:
            return await asyncio.shield(one.ready)
        except ServerError as error:
            raise _refused(str(error)) from None

    async def close(self) -> None:
        """End all of them."""
        tasks = [one.task for one in self._open.values() if one.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._open.clear()

    def _room(self) -> None:
        for key, one in list(self._open.items()):
            if one.task is not None and one.task.done():
                del self._open[key]
        while len(self._open) > MOST:
            _, oldest = self._open.popitem(last=False)
            oldest.leave.set()

    async def _live(self, source: HttpSource, one: _One) -> None:
        """The life of one, in the task that enters and leaves it."""
        try:
            async with open_session(source, self._log, lambda: None, self._seconds, as_user=True) as session:
                one.ready.set_result(session)
                await self._until_over(session, one)
        except Exception as error:
            if not one.ready.done():
                one.ready.set_exception(
                    error if isinstance(error, ServerError) else ServerError(_line(first_cause(error)))
                )
                one.ready.exception()  # somebody may have stopped waiting for it
        finally:
            one.ready.cancel()

    async def _until_over(self, session: ToolSession, one: _One) -> None:
        ends = [asyncio.create_task(session.ended.wait()), asyncio.create_task(one.leave.wait())]
        try:
            while True:
                done, _ = await asyncio.wait(ends, timeout=IDLE, return_when=asyncio.FIRST_COMPLETED)
                idle = asyncio.get_running_loop().time() - one.used >= IDLE
                if (done and not (one.leave.is_set() and session.in_flight)) or (idle and not session.in_flight):
                    return
                if done:
                    await asyncio.sleep(1.0)
        finally:
            for task in ends:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*ends, return_exceptions=True)


def _refused(why: str) -> Refusal:
    if "401" in why or "403" in why:
        return refusal(
            Code.TARGET_UNAVAILABLE, "the server does not accept the credential of this user", rule="credentials.refused",
            ask="reconnect needed: set another secret (remit secrets set), or connect again (remit secrets connect)",
        )  # fmt: skip
    return refusal(
        Code.TARGET_UNAVAILABLE, f"the server cannot be reached for this user: {why}"[:300], rule="attach.unavailable",
        ask="call again shortly",
    )  # fmt: skip


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
