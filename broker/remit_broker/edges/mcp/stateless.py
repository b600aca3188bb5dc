"""Clients of the generation 2026-07-28: each request stands for itself, and is answered on its own stream.

There is no session, so a request is a task of its own (docs/mcp.md), unless its client says which requests belong together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Final, NamedTuple, Protocol

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from remit_broker.edges.mcp.access import Who
from remit_broker.edges.mcp.answers import shaped
from remit_broker.edges.mcp.background import Owner
from remit_broker.edges.mcp.background_calls import Behind, RequestTasks
from remit_broker.edges.mcp.catalogue import Catalogue, Pages
from remit_broker.edges.mcp.envelope import REVISION, STATUS, Envelope, in_this_revision, opened, params_agree
from remit_broker.edges.mcp.jsonrpc import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    Call,
    Fault,
    failed,
    result,
)
from remit_broker.edges.mcp.listening import Listening, honoured
from remit_broker.edges.mcp.methods import VERSIONS, Methods, refused, welcome
from remit_broker.edges.mcp.rounds import Asking, Parked, Rounds, States
from remit_broker.edges.mcp.session import Session, Tell
from remit_broker.edges.mcp.tasks import Claims, Task
from remit_broker.edges.mcp.wire import NO_STORE, QUIET, SSE, STILL_HERE, accepted, event, whole
from remit_schemas.errors import Code, Refusal, refusal

KNOWN: Final = (REVISION, *VERSIONS)
"""Every revision that is spoken towards clients, the newest first."""
CLAIM: Final = "dev.remit/session"
"""The key in ``_meta`` under which a client says which of its requests belong together. A claim, kept under its user."""
_METHODS: Final = frozenset(
    {
        "tools/list", "tools/call", "resources/list", "resources/templates/list", "resources/read", "prompts/list", "prompts/get",
        "completion/complete", "tasks/get", "tasks/update", "tasks/cancel",
    }
)  # fmt: skip
_ROUNDS: Final = frozenset({"tools/call", "resources/read", "prompts/get"})
MAX_LISTENING: Final = 64
"""Streams of one principal on which changes are told."""


class Client(NamedTuple):
    """Who asks, where, and what is there for them."""

    who: Who
    view: str | None
    catalogue: Catalogue
    behind: Behind
    begin: Callable[[], Task]
    """Begins a task for them."""


class Spawn(Protocol):
    """Runs something beside, and says what went wrong in it."""

    def __call__(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]: ...


class Stateless:
    """Every request of this generation. ``seconds`` is the longest that one call may take, ``secret`` seals states."""

    def __init__(
        self, pages: Pages, seconds: float, secret: bytes, spawn: Spawn, fault: Callable[[str, BaseException], None]
    ) -> None:
        self._pages, self._seconds, self._spawn, self._fault = pages, seconds, spawn, fault
        self._states = States(secret)
        self._claims = Claims(spawn)
        self._listening: set[Listening] = set()

    def listening(self) -> list[Session]:
        """Whoever wants to be told of changes."""
        return list(self._listening)

    def stop(self) -> None:
        """End the streams, each with its result."""
        for one in self.listening():
            one.hush()
        self._states.clear()

    async def answer(self, request: Request, call: Call, client: Client) -> Response:
        """The answer to one message. Raises :class:`Fault` and refusals for what never becomes a request."""
        if call.id is None:
            # Nothing that a client could tell has a meaning without a session; it cancels by hanging up.
            return Response(status_code=202)
        headers = _headers(request)
        try:
            envelope = opened(call, headers, KNOWN)
            if call.method == "tools/call":
                self._params_agree(call, client, headers)
            return await self._request(request, call, client, envelope)
        except Fault as fault:
            return _failed(call, fault)

    def _params_agree(self, call: Call, client: Client, headers: Mapping[str, list[str]]) -> None:
        args = call.params.get("arguments")
        if (schema := client.catalogue.schema(str(call.params.get("name")))) is not None:
            params_agree(schema, args if isinstance(args, dict) else {}, headers)

    async def _request(self, request: Request, call: Call, client: Client, envelope: Envelope) -> Response:
        assert call.id is not None  # noqa: S101 - requests only
        if call.method == "server/discover":
            return whole(result(call.id, self._shaped(call.method, self._discovered(client), client)))
        if call.method == "subscriptions/listen":
            return await self._listen(request, call, client, envelope)
        if call.method not in _METHODS:
            raise Fault(METHOD_NOT_FOUND, f"there is no method {call.method[:64]!r} in {REVISION}")
        parked = self._parked(call, client)
        task = (
            parked.task
            if parked is not None
            else self._claims.task(client.who.key, client.view, _claim(envelope), client.begin)
        )
        session = _session(client, envelope, task)
        rounds = Rounds(session, client.behind.calls, self._seconds, parked)
        tasks = RequestTasks(
            session, Owner(client.who.key, client.view), client.behind, parked, lambda: self._over(task)
        )
        has = client.catalogue.has_tasks()
        methods = Methods(session, client.catalogue, rounds, self._pages, tasks if has else None)
        told: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        async def work() -> dict[str, Any]:
            try:
                return await self._answered((methods, tasks), call, client, task, told.put)
            finally:
                told.put_nowait(None)

        return await self._stream(request, call, session, told, self._spawn(work()))

    def _parked(self, call: Call, client: Client) -> Parked | None:
        state = call.params.get("requestState")
        if state is None or call.method not in _ROUNDS:
            return None
        return self._states.take(state, client.who.key, client.view, call.method)

    async def _answered(
        self, asked: tuple[Methods, RequestTasks], call: Call, client: Client, task: Task, tell: Tell
    ) -> dict[str, Any]:
        methods, tasks = asked
        assert call.id is not None  # noqa: S101 - requests only
        over = True
        try:
            return result(call.id, self._shaped(call.method, await methods.answer(call, tell), client))
        except Asking as asking:
            over = False
            parked = Parked(
                client.who.key, client.view, call.method, asking.waits, task, lambda: self._over(task),
            )  # fmt: skip
            wants: dict[str, Any] = {"resultType": "input_required", "requestState": self._states.put(parked)}
            if asking.asks:
                wants["inputRequests"] = asking.asks
            return result(call.id, self._shaped(call.method, wants, client))
        except Fault as fault:
            return failed(call.id, in_this_revision(fault))
        except Refusal as no:
            return failed(call.id, in_this_revision(refused(no)))
        except Exception as error:
            self._fault("mcp", error)
            return failed(call.id, Fault(INTERNAL_ERROR, "the broker failed; its log says why"))
        finally:
            if over and not tasks.handed_over:
                self._over(task)

    def _over(self, task: Task) -> None:
        # INVARIANT: a call without any session is a task of its own, which ends with it
        # (test_a_request_without_a_session_is_a_task_of_its_own).
        if not self._claims.holds(task):
            self._spawn(task.end())

    async def _stream(
        self, request: Request, call: Call, session: Session, told: asyncio.Queue[dict[str, Any] | None],
        task: asyncio.Task[dict[str, Any]],
    ) -> Response:  # fmt: skip
        """A message where it ends without having told anything, else a stream; whoever hangs up has cancelled."""
        gone = asyncio.ensure_future(_hangs_up(request))
        first = asyncio.ensure_future(told.get())
        try:
            await asyncio.wait(
                {gone, first}, timeout=QUIET if SSE in accepted(request) else None, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            gone.cancel()
        if gone.done() and not first.done():
            # INVARIANT: a client of this generation that hangs up has cancelled (test_a_client_that_hangs_up_has_cancelled).
            first.cancel()
            session.cancel(call.id)
            return Response(status_code=204)
        if SSE not in accepted(request):
            while first.done() and first.result() is not None:
                first = asyncio.ensure_future(told.get())
                await first
        if first.done() and first.result() is None:
            said = await task
            return whole(said, STATUS.get(said.get("error", {}).get("code"), 200))
        return StreamingResponse(_events(first, call, session, told, task), media_type=SSE, headers=NO_STORE)

    async def _listen(self, request: Request, call: Call, client: Client, envelope: Envelope) -> Response:
        """Changes, as the client wants to be told of them, until it hangs up."""
        assert call.id is not None  # noqa: S101 - requests only
        if SSE not in accepted(request):
            return whole(failed(call.id, Fault(INVALID_REQUEST, f"accept {SSE}")), 406)
        task = client.begin()
        listening = Listening(call.id, client.who.key, client.view, task, client=envelope.client)
        if sum(one.key == listening.key for one in self._listening) >= MAX_LISTENING:
            raise refused(refusal(
                Code.RATE_LIMITED, f"{MAX_LISTENING} streams are listened to already", rule="mcp.listening",
                ask="end one of them",
            ))  # fmt: skip
        methods = Methods(
            listening, client.catalogue, Rounds(listening, client.behind.calls, self._seconds, None), self._pages
        )
        self._listening.add(listening)
        try:
            wanted = await honoured(call, listening, methods, self._discovered(client)["capabilities"])
        except BaseException:
            self._listening.discard(listening)
            self._spawn(task.end())
            raise

        async def events() -> AsyncIterator[bytes]:
            try:
                yield event(listening.acknowledged(wanted))
                async for said in listening.streams.outbox.read():
                    yield said
                yield event(result(call.id or 0, self._shaped(call.method, listening.over_result(), client)))
            finally:
                self._listening.discard(listening)
                self._spawn(task.end())

        return StreamingResponse(events(), media_type=SSE, headers=NO_STORE)

    def _discovered(self, client: Client) -> dict[str, Any]:
        found = client.catalogue.servers()
        told = welcome(REVISION, client.view, found[0].server if found else {}, [one.offers for one in found])
        return {
            "supportedVersions": list(KNOWN),
            "capabilities": told["capabilities"],
            **({"instructions": told["instructions"]} if "instructions" in told else {}),
        }

    def _shaped(self, method: str, value: dict[str, Any], client: Client) -> dict[str, Any]:
        found = client.catalogue.servers()
        return shaped(method, value, welcome(REVISION, client.view, found[0].server if found else {}, ())["serverInfo"])


async def _events(
    first: asyncio.Future[dict[str, Any] | None], call: Call, session: Session,
    told: asyncio.Queue[dict[str, Any] | None], task: asyncio.Task[dict[str, Any]],
) -> AsyncIterator[bytes]:  # fmt: skip
    waiting = first
    try:
        while True:
            await asyncio.wait({waiting}, timeout=QUIET)
            if not waiting.done():
                yield STILL_HERE
                continue
            if (said := waiting.result()) is None:
                break
            yield event(said)
            waiting = asyncio.ensure_future(told.get())
        yield event(await task)
    finally:
        waiting.cancel()
        session.cancel(call.id)


async def _hangs_up(request: Request) -> None:
    while (await request.receive()).get("type") != "http.disconnect":
        pass


def _session(client: Client, envelope: Envelope, task: Task) -> Session:
    session = Session(client.who.key, client.view, task, version=REVISION, client=envelope.client)
    session.can, session.level = envelope.can, envelope.level or ""
    return session


def _claim(envelope: Envelope) -> str:
    said = envelope.meta.get(CLAIM)
    return said if isinstance(said, str) and len(said) <= 128 else ""


def _headers(request: Request) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in request.headers.items():
        found.setdefault(name.lower(), []).append(value)
    return found


def _failed(call: Call, fault: Fault) -> Response:
    return whole(failed(call.id, fault), STATUS.get(fault.code, 200))
