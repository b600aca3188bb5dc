"""A client's session: whose it is, what it does at the moment, and what it is told beside answers."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from remit_broker.edges.inside import Running
from remit_broker.edges.mcp.jsonrpc import Id
from remit_broker.edges.mcp.tasks import Task
from remit_schemas.errors import Code, refusal

MAX_SESSIONS: Final = 2000
PER_PRINCIPAL: Final = 200
"""Sessions of one user or holder; of more, the one that was idle for longest ends."""
MAX_CALLS: Final = 64
"""Calls of one session at once."""
OUTBOX: Final = 256
"""Messages that wait for a client that listens slowly, or not at all; of more, the oldest go."""


class Session:
    """One client's. Nothing in it is of use to whoever does not have :attr:`key`, also with its id."""

    def __init__(
        self, key: tuple[str, ...], view: str | None, task: Task, *, version: str, client: dict[str, Any]
    ) -> None:
        self.id = secrets.token_hex(32)
        self.key, self.view, self.task = key, view, task
        self.version, self.client = version, client
        self.used = 0.0
        self.listening = False
        self.running: dict[Id, Running | None] = {}
        self.unwanted: set[Id] = set()
        self.ended = False
        self._outbox: deque[dict[str, Any]] = deque(maxlen=OUTBOX)
        self._grew = asyncio.Event()

    def tell(self, message: dict[str, Any]) -> None:
        """Have the client told, on its own stream, as soon as it listens."""
        self._outbox.append(message)
        self._grew.set()

    async def next(self, seconds: float) -> dict[str, Any] | None:
        """The next thing that the client is to be told; None after so long a silence, and when the session has ended."""
        if not self._outbox and not self.ended:
            self._grew.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._grew.wait()
        return self._outbox.popleft() if self._outbox else None

    def hush(self) -> None:
        """Nobody is told anything any more; what runs, runs on."""
        self.ended = True
        self._grew.set()

    def begin(self, request: Id) -> None:
        """A call with this id begins. Refuses RATE_LIMITED and CONFLICT."""
        # INVARIANT: an id names one call of its own session (test_equal_ids_of_two_sessions_are_two_calls).
        if request in self.running:
            raise refusal(
                Code.CONFLICT, "a request with this id is being worked on", rule="mcp.id", ask="give each its own id"
            )
        if len(self.running) >= MAX_CALLS:
            raise refusal(
                Code.RATE_LIMITED, f"{MAX_CALLS} calls of this session are running", rule="mcp.calls",
                ask="wait for one of them", retry_after=1.0,
            )  # fmt: skip
        self.running[request] = None

    def runs(self, request: Id, running: Running) -> None:
        """The call that was begun is this one."""
        self.running[request] = running
        if request in self.unwanted:
            running.cancel()

    def over(self, request: Id) -> None:
        """It has ended."""
        self.running.pop(request, None)
        self.unwanted.discard(request)

    def cancel(self, request: Any) -> None:
        """The client does not want one of its own calls any more; of others it knows nothing."""
        if isinstance(request, str | int) and request in self.running:
            self.unwanted.add(request)
            if (running := self.running[request]) is not None:
                running.cancel()

    async def end(self) -> None:
        """Nothing of it goes on; its task is closed."""
        self.hush()
        for running in self.running.values():
            if running is not None:
                running.cancel()
        await self.task.end()


class Sessions:
    """All of them, in this process."""

    def __init__(self, clock: Callable[[], float], ended: Callable[[Session], None]) -> None:
        """``ended`` is told of a session that made room for another."""
        self._clock, self._ended = clock, ended
        self._all: dict[str, Session] = {}
        self._of: Counter[tuple[str, ...]] = Counter()

    def add(self, session: Session) -> None:
        """Take one in; the longest idle of the same principal goes where there are too many.

        INVARIANT: one client that begins sessions without end takes none from others
        (test_one_client_with_many_sessions_takes_none_from_another).
        """
        session.used = self._clock()
        while self._of[session.key] >= PER_PRINCIPAL:
            self._ended(self.drop(min(self._mine(session.key), key=lambda one: one.used)))
        if len(self._all) >= MAX_SESSIONS:
            greedy = max(self._of, key=lambda key: self._of[key])
            self._ended(self.drop(min(self._mine(greedy), key=lambda one: one.used)))
        self._all[session.id] = session
        self._of[session.key] += 1

    def find(self, given: str, key: tuple[str, ...], view: str | None) -> Session | None:
        """The session with this id, for whom it belongs to and where it was begun; for anybody else there is none.

        INVARIANT: the id of a session is of no use to anybody else (test_a_stolen_session_is_of_no_use).
        """
        found = self._all.get(given)
        if found is None or found.key != key or found.view != view:
            return None
        found.used = self._clock()
        return found

    def drop(self, session: Session) -> Session:
        """Forget it."""
        if self._all.pop(session.id, None) is not None:
            self._of[session.key] -= 1
            if not self._of[session.key]:
                del self._of[session.key]
        return session

    def all(self) -> list[Session]:
        """Every one."""
        return list(self._all.values())

    def _mine(self, key: tuple[str, ...]) -> list[Session]:
        return [one for one in self._all.values() if one.key == key]
