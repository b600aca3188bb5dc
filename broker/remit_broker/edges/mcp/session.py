"""A client's session: whose it is, what it does at the moment, and what it is told beside answers."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from remit_broker.edges.mcp.jsonrpc import INTERNAL_ERROR, METHOD_NOT_FOUND, Answer, Id
from remit_broker.edges.mcp.streams import Streams
from remit_broker.edges.mcp.tasks import Task
from remit_schemas.errors import Code, refusal

MAX_SESSIONS: Final = 2000
PER_PRINCIPAL: Final = 200
"""Sessions of one user or holder; of more, the one that was idle for longest ends."""
MAX_CALLS: Final = 64
"""Calls of one session at once."""
Tell = Callable[[dict[str, Any]], Awaitable[None]]
"""Sends a message to the client while one of its requests is being worked on."""
CANCELLED: Final = -32020
"""As the table of errors has it."""
NEEDS: Final = {"sampling/createMessage": "sampling", "elicitation/create": "elicitation", "roots/list": "roots"}
"""What a client has to say it can, to be asked a question of this method."""
RESUMES: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""Revisions whose streams can be taken up again; clients of the first know events that are an id and nothing else."""
SUBSCRIBED: Final = 1000
OUTBOX: Final = 256
"""Messages that wait for a client that listens slowly, or not at all; of more, the oldest go."""


class Cancels(Protocol):
    """What a request is worked on by."""

    def cancel(self) -> None:
        """It is not wanted any more."""


class _Ask:
    """A question to the client, and the request in which it came up."""

    def __init__(self, of: Id) -> None:
        self.of = of
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def settle(self, said: dict[str, Any]) -> None:
        """The first answer counts."""
        if not self.answer.done():
            self.answer.set_result(said)


class Session:
    """One client's. Nothing in it is of use to whoever does not have :attr:`key`, also with its id."""

    def __init__(
        self, key: tuple[str, ...], view: str | None, task: Task, *, version: str, client: dict[str, Any]
    ) -> None:
        self.id = secrets.token_hex(32)
        self.key, self.view, self.task = key, view, task
        self.version, self.client = version, client
        self.used = 0.0
        # A revision without sessions has no ids of events either.
        self.streams = Streams(outbox=OUTBOX, named=version in RESUMES, primes=version == RESUMES[0])
        self.running: dict[Id, Cancels | None] = {}
        self.unwanted: set[Id] = set()
        self.ended = False
        self.can: dict[str, Any] = {}
        """What the client says that it can be asked for: ``sampling``, ``elicitation``, ``roots``."""
        self.level = "info"
        self.subscribed: dict[str, str] = {}
        """URIs of resources of which the client wants to be told, and their servers."""
        self._asks: dict[Id, _Ask] = {}
        self._count = 0

    def tell(self, message: dict[str, Any]) -> None:
        """Have the client told, on its own stream, as soon as it listens."""
        self.streams.outbox.put(message)

    def hush(self) -> None:
        """Nobody is told anything any more; what runs, runs on."""
        self.ended = True
        self.streams.outbox.close()

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

    def runs(self, request: Id, running: Cancels) -> None:
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
            for ask in list(self._asks.values()):
                if ask.of == request:
                    ask.settle({"error": {"code": CANCELLED, "message": "the call was cancelled"}})

    async def ask(self, of: Id, method: str, params: dict[str, Any], tell: Tell, seconds: float) -> dict[str, Any]:
        """What the client answers to a question that came up in its request ``of``: ``{"result"}`` or ``{"error"}``.

        INVARIANT: a client is asked nothing that it did not say it can be asked
        (test_a_client_is_asked_only_what_it_can_be_asked).
        """
        if NEEDS.get(method, "") not in self.can:
            return {"error": {"code": METHOD_NOT_FOUND, "message": f"the client cannot be asked for {method}"}}
        self._count += 1
        name: Id = f"remit-{self._count}"
        ask = self._asks[name] = _Ask(of)
        try:
            await tell({"jsonrpc": "2.0", "id": name, "method": method, "params": params})
            async with asyncio.timeout(seconds):
                return await ask.answer
        except TimeoutError:
            return {"error": {"code": INTERNAL_ERROR, "message": "the client did not answer in time"}}
        finally:
            del self._asks[name]

    def answered(self, answer: Answer) -> None:
        """The client answers one of its own questions; to others it has no answers."""
        if (ask := self._asks.get(answer.id)) is not None:
            ask.settle({"error": answer.error} if answer.error is not None else {"result": answer.result})

    async def end(self) -> None:
        """Nothing of it goes on; its task is closed."""
        self.hush()
        for request in list(self.running):
            self.cancel(request)
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
