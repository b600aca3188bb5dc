"""A request that is answered with what the server wants to know, and that its client makes once more with the answers.

The generation 2026-07-28 has no requests from a server to a client (MCP 2026-07-28, "Multi round-trip requests"): the result says
``input_required``, and the client repeats its request with ``inputResponses`` and with the ``requestState`` that it was given. For
the broker it is one hop, parked meanwhile; what the server itself wants to have back never leaves the worker that talks to it.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections import Counter
from collections.abc import Callable, Container
from typing import Any, Final, NamedTuple

from remit_broker.edges.inside import Calls
from remit_broker.edges.mcp.deputies import AGENT
from remit_broker.edges.mcp.hops import Aim, Ended, Hops, Waits, asks_of, meta_of
from remit_broker.edges.mcp.jsonrpc import INVALID_PARAMS, METHOD_NOT_FOUND, RESULT_REFUSED, Call, Fault, Id
from remit_broker.edges.mcp.session import NEEDS, Session, Tell
from remit_broker.edges.mcp.tasks import Task
from remit_schemas.base64url import decode, encode
from remit_schemas.names import Resource

PATIENCE: Final = 600.0
"""Seconds for which a client may think about its answers; the worker waits longer."""
MAX_WAITING: Final = 32
"""Requests of one principal that wait for it; of more, the oldest are given up."""


class Parked(NamedTuple):
    """A request that waits for its client: ``whose`` it is, at which address, and the task it belongs to."""

    whose: tuple[str, ...]
    view: str | None
    method: str
    waits: Waits
    task: Task
    let_go: Callable[[], None]
    """Called where nobody comes back in time."""


class Asking(Exception):  # noqa: N818 - an answer
    """The request is answered with what its server wants to know."""

    def __init__(self, waits: Waits, asks: dict[str, dict[str, Any]]) -> None:
        super().__init__("input required")
        self.waits, self.asks = waits, asks


class States:
    """Requests that wait, each under a state that its own client can send, with the same request, once."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._waiting: dict[bytes, tuple[Parked, asyncio.TimerHandle]] = {}
        self._of: Counter[tuple[str, ...]] = Counter()

    def put(self, parked: Parked) -> str:
        """The state under which ``parked`` waits."""
        while self._of[parked.whose] >= MAX_WAITING:
            self._drop(next(at for at, (one, _) in self._waiting.items() if one.whose == parked.whose))
        name = secrets.token_bytes(16)
        timer = asyncio.get_running_loop().call_later(PATIENCE, self._drop, name)
        self._waiting[name] = parked, timer
        self._of[parked.whose] += 1
        return encode(name + self._mark(name, parked.whose, parked.view, parked.method))

    def take(self, state: Any, whose: tuple[str, ...], view: str | None, method: str) -> Parked:
        """What waits under ``state``, which is then of no further use. Raises :class:`Fault` for anybody else's.

        INVARIANT: a state is of use to the principal it was given to, at that address, for that request, once
        (test_a_state_of_a_request_is_of_use_to_nobody_else_and_only_once).
        """
        name, mark = _parts(state)
        if not hmac.compare_digest(mark, self._mark(name, whose, view, method)) or name not in self._waiting:
            raise invalid_state()
        return self._forget(name)

    def clear(self) -> None:
        """Give everything up."""
        for name in list(self._waiting):
            self._drop(name)

    def _mark(self, name: bytes, whose: tuple[str, ...], view: str | None, method: str) -> bytes:
        said = "\0".join(("state", *whose, view or "", method)).encode()
        return hmac.digest(self._secret, name + said, "sha256")

    def _forget(self, name: bytes) -> Parked:
        parked, timer = self._waiting.pop(name)
        timer.cancel()
        self._of[parked.whose] -= 1
        if not self._of[parked.whose]:
            del self._of[parked.whose]
        return parked

    def _drop(self, name: bytes) -> None:
        parked = self._forget(name)
        parked.waits.running.give_up()
        parked.let_go()


class Rounds(Hops):
    """The hop of one request of a client without a session: parked rather than asked about, or gone on with."""

    def __init__(self, session: Session, calls: Calls, seconds: float, parked: Parked | None) -> None:
        super().__init__(session, calls, seconds)
        self._parked = parked
        self._given: Any = None

    async def run(self, call: Call, resource: Resource, args: dict[str, Any], tell: Tell) -> Ended:
        """The hop to its end. Raises :class:`Asking` where it waits, and :class:`Fault` where another call is made with its state."""
        if self._parked is None:
            self._given = call.params.get("inputResponses")
            return await super().run(call, resource, args, tell)
        # INVARIANT: answers go to the call they were asked for (test_a_state_of_a_request_is_of_use_to_nobody_else_and_only_once).
        if self._parked.waits.aim != Aim(resource, args, meta_of(call.params).get(AGENT)):
            self._parked.waits.running.give_up()
            raise invalid_state()
        return await self._once(call, resource, args, tell)

    async def _governed(self, call: Call, at: Id, resource: Resource, args: dict[str, Any], tell: Tell) -> Ended:
        if self._parked is None:
            return await super()._governed(call, at, resource, args, tell)
        waits = self._parked.waits
        answers = _answers(asks_of(waits.asked) or {}, call.params.get("inputResponses"), self._session.can)
        held, running = await self._resume(at, waits.held, waits.running.hop, waits.aim, answers)
        return await self._to_the_end(at, held, running, waits.aim, meta_of(call.params), tell)

    async def _answers(self, at: Id, waits: Waits, tell: Tell) -> dict[str, Any] | None:
        asks = asks_of(waits.asked)
        if asks is None or at in self._session.unwanted:
            return None
        # INVARIANT: a client is asked nothing that it did not say it can be asked
        # (test_a_client_without_a_session_is_asked_only_what_it_can_be_asked).
        can = {key: one for key, one in asks.items() if NEEDS.get(str(one.get("method"))) in self._session.can}
        given, self._given = self._given, None
        if asks and not can:
            return _answers(asks, {}, self._session.can)
        if can and isinstance(given, dict) and all(isinstance(given.get(key), dict) for key in can):
            # It knew what it would be asked: those answers go the same way as others.
            return _answers(asks, given, self._session.can)
        raise Asking(waits, can)


def _answers(asks: dict[str, dict[str, Any]], said: Any, can: Container[str | None]) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    given = said if isinstance(said, dict) else {}
    for key, one in asks.items():
        method = str(one.get("method"))
        if NEEDS.get(method) not in can:
            answers[key] = {
                "error": {"code": METHOD_NOT_FOUND, "message": f"the client cannot be asked for {method[:64]}"}
            }
        elif isinstance(given.get(key), dict):
            answers[key] = {"result": given[key]}
        else:
            answers[key] = {"error": {"code": RESULT_REFUSED, "message": "the client did not answer this"}}
    return answers


def _parts(state: Any) -> tuple[bytes, bytes]:
    try:
        raw = decode(state.encode()) if isinstance(state, str) and len(state) < 128 else b""
    except ValueError:
        raw = b""
    if len(raw) != 48:
        raise invalid_state()
    return raw[:16], raw[16:]


def invalid_state() -> Fault:
    """One answer for every reason: whoever tries states learns nothing from it."""
    return Fault(INVALID_PARAMS, "Invalid or expired requestState", {"reason": "invalid_request_state"})
