"""``/mcp/<server>`` and ``/mcp`` over streamable HTTP: one POST for each message of a client, one GET to listen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from remit_broker.edges.http.desk import Desk, desk_for
from remit_broker.edges.http.guard import Handler, error_response
from remit_broker.edges.http.operators import Operator, bearer
from remit_broker.edges.inside import Calls
from remit_broker.edges.mcp.access import Holder, Who, as_holder, as_user, presented, tenant_of
from remit_broker.edges.mcp.background import Backgrounds, Owner
from remit_broker.edges.mcp.background_calls import Behind, SessionTasks
from remit_broker.edges.mcp.catalogue import Catalogue, Pages
from remit_broker.edges.mcp.deputies import Deputies
from remit_broker.edges.mcp.envelope import REVISION, is_stateless
from remit_broker.edges.mcp.hops import Hops
from remit_broker.edges.mcp.jsonrpc import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    Answer,
    Call,
    Fault,
    failed,
    notification,
    parse,
    result,
)
from remit_broker.edges.mcp.methods import VERSIONS, Methods, agreed, refused, welcome
from remit_broker.edges.mcp.session import Session, Sessions
from remit_broker.edges.mcp.stateless import Client, Stateless
from remit_broker.edges.mcp.streams import SOON, Streams
from remit_broker.edges.mcp.tasks import Agents, Continued, Opened, Rules, Task, narrowed
from remit_broker.edges.mcp.wire import JSON, NO_STORE, SSE, accepted, body_of, whole
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import is_principal

SESSION: Final = "mcp-session-id"
VERSION: Final = "mcp-protocol-version"
LAST: Final = "last-event-id"
VIEW: Final = "view"
VIEW_HEADER: Final = "remit-view"
VIEWS: Final = ("tools", "search")


@dataclass(frozen=True)
class Place:
    """One tenant, for clients: its desk, its pipeline, its registry, and the key of the agent that stands for clients there."""

    desk: Desk
    calls: Calls
    agents: Agents
    seed: str
    searches: bool = False


class Streamable:
    """The routes, and the sessions behind them."""

    def __init__(
        self,
        places: Mapping[str, Place],
        door: tuple[Operator, Callable[[str, str], str]],
        rules: Rules,
        seconds: float,
        secret: bytes,
        fault: Callable[[str, BaseException], None],
    ) -> None:
        """``door`` is how users are known, and the value of WWW-Authenticate for those who are not, by path and error.

        ``seconds`` is the longest that one call may take, ``secret`` seals cursors."""
        self._places, self._rules, self._seconds = places, rules, seconds
        self._operator, self._challenge = door
        self._pages, self._fault = Pages(secret), fault
        clock = next(iter(places.values())).desk.ports.clock
        self._sessions = Sessions(clock.monotonic, self._end)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._backgrounds = Backgrounds(clock.now)
        self._stateless = Stateless(self._pages, seconds, secret, self._spawn, fault)

    def routes(self) -> list[Route]:
        """For one server, and for all."""
        verbs = {"POST": self._post, "GET": self._get, "DELETE": self._delete}
        return [
            Route(path, self._answering(do), methods=[verb])
            for path in ("/mcp", "/mcp/{server}")
            for verb, do in verbs.items()
        ]

    async def stop(self) -> None:
        """End what streams; tasks stay open, for whoever comes back, until they are idle."""
        for session in self._sessions.all():
            session.hush()
        self._stateless.stop()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def changed(self, tenant: str, server: str) -> None:
        """Something about a server changed: its clients list anew."""
        for session in self._of(tenant, server):
            for what in ("tools", "resources", "prompts"):
                session.tell(notification(f"notifications/{what}/list_changed"))

    def updated(self, tenant: str, server: str, uris: tuple[str, ...]) -> None:
        """Resources of a server changed: who asked to be told of them is.

        INVARIANT: nobody is told of a resource that they did not ask about, with a hop of their own
        (test_a_client_is_told_of_the_resources_it_subscribed_to_and_of_no_other).
        """
        for session in self._of(tenant, server):
            for uri in uris:
                if session.subscribed.get(uri) == server:
                    session.tell(notification("notifications/resources/updated", {"uri": uri}))

    def _of(self, tenant: str, server: str) -> list[Session]:
        everyone = (*self._sessions.all(), *self._stateless.listening())
        return [one for one in everyone if one.key[1] == tenant and one.view in (None, server)]

    def _end(self, session: Session) -> None:
        self._backgrounds.drop(_owner(session))
        self._spawn(session.end())

    def _answering(self, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except Refusal as no:
                response = error_response(no.body)
                if response.status_code == 401:
                    # INVARIANT: a client without a token that counts is told where it gets one
                    # (test_a_client_without_a_token_is_told_where_to_get_one).
                    known = "invalid_token" if bearer(request) else ""
                    response.headers["WWW-Authenticate"] = self._challenge(request.url.path, known)
                return response
            except Fault as fault:
                return whole(failed(None, fault), 400)
            except Exception as error:
                self._fault("mcp", error)
                return whole(failed(None, Fault(INTERNAL_ERROR, "the broker failed; its log says why")), 500)

        return answer

    async def _known(self, request: Request) -> tuple[Who, Place, str | None]:
        """Who asks, of which tenant, for which server. Refuses UNAUTHENTICATED, GRANT_…, UNKNOWN_TARGET."""
        view = request.path_params.get("server")
        token = presented(request)
        who: Who
        if token is not None:
            tenant = tenant_of(token)
            place = self._places.get(tenant)
            if place is None:
                raise refusal(
                    Code.GRANT_INVALID,
                    "the grant is of a tenant that is not here",
                    rule="grant.tenant",
                    ask="use your own",
                )
            who = await as_holder(token, tenant, place.desk.ports)
        else:
            caller = await self._operator.known(request)
            desk = desk_for({name: place.desk for name, place in self._places.items()}, request, caller)
            place = self._places[desk.tenant]
            who = as_user(caller, desk.tenant, desk.ports)
        if view is not None and not self._is_server(view, place):
            raise refusal(
                Code.UNKNOWN_TARGET, f"no MCP server is called {view[:64]!r}", rule="mcp.server",
                ask="remit servers list shows them; /mcp is all of them",
            )  # fmt: skip
        return who, replace(place, searches=self._searches(request, view)), view

    def _searches(self, request: Request, view: str | None) -> bool:
        """Whether three tools that search are shown in the place of all: as the client says, else as it is configured."""
        said = request.query_params.get(VIEW) or request.headers.get(VIEW_HEADER)
        if said not in (None, *VIEWS):
            raise Fault(INVALID_REQUEST, f"{VIEW} is one of {', '.join(VIEWS)}")
        return (said or (self._rules.view if view is None else VIEWS[0])) == "search"

    def _is_server(self, name: str, place: Place) -> bool:
        found = place.desk.directory.principal(name) if is_principal(name) else None
        return found is not None and found.kind == "mcp"

    async def _post(self, request: Request) -> Response:
        who, place, view = await self._known(request)
        accepts = accepted(request)
        if JSON not in accepts and SSE not in accepts:
            return whole(failed(None, Fault(INVALID_REQUEST, f"accept {JSON} and {SSE}")), 406)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            return whole(failed(None, Fault(INVALID_REQUEST, f"send {JSON}")), 415)
        message = parse(await body_of(request))
        if isinstance(message, Call) and is_stateless(request.headers.get(VERSION), message):
            client = Client(
                who, view, self._catalogue(view, who, place), self._behind(place), lambda: self._task(who, place)
            )
            return await self._stateless.answer(request, message, client)
        if isinstance(message, Call) and message.method == "initialize" and message.id is not None:
            return self._initialize(message, who, place, view)
        session = self._session(request, who, view)
        if isinstance(session, Response):
            return session
        if isinstance(message, Answer) or message.id is None:
            self._heard(session, message)
            return Response(status_code=202)
        hops = Hops(session, place.calls, self._seconds, asks=SSE in accepts)
        catalogue, tasks = self._catalogue(view, who, place), None
        if session.version == VERSIONS[0] and catalogue.has_tasks():
            tasks = SessionTasks(session, _owner(session), self._behind(place))
        methods = Methods(session, catalogue, hops, self._pages, tasks)
        return await self._request(session.streams, methods, message, SSE in accepts)

    def _rules_for(self, who: Who) -> Rules:
        """What whoever asks is given: of a user who logged in, what that one allowed the program, and no more."""
        return self._rules if isinstance(who, Holder) else narrowed(self._rules, who)

    def _catalogue(self, view: str | None, who: Who, place: Place) -> Catalogue:
        found = Catalogue(view, who, self._rules_for(who), place.desk.ports, place.desk.directory)
        found.searches = place.searches
        return found

    def _behind(self, place: Place) -> Behind:
        return Behind(self._backgrounds, place.calls, place.desk.ports.limits.hop_ttl, self._spawn)

    def _task(self, who: Who, place: Place) -> Task:
        if isinstance(who, Holder):
            agents = {one.name: one.name for one in place.desk.directory.principals() if one.kind == "agent"}
            return Continued(who, Deputies(who.tenant, agents, place.desk.ports, place.agents))
        return Opened(who, self._rules_for(who), place.desk.ports, place.agents, place.seed)

    def _initialize(self, call: Call, who: Who, place: Place, view: str | None) -> Response:
        wanted = call.params.get("protocolVersion")
        if not isinstance(wanted, str) or not isinstance(call.params.get("capabilities"), dict):
            return whole(failed(call.id, Fault(INVALID_PARAMS, "initialize needs protocolVersion and capabilities")))
        task = self._task(who, place)
        about = call.params.get("clientInfo")
        session = Session(
            who.key, view, task, version=agreed(wanted), client=about if isinstance(about, dict) else {},
        )  # fmt: skip
        session.can = call.params["capabilities"]
        self._sessions.add(session)
        found = self._catalogue(view, who, place).servers()
        told = welcome(session.version, view, found[0].server if found else {}, [one.offers for one in found])
        assert call.id is not None  # noqa: S101 - asked by the caller
        return whole(result(call.id, told), headers={SESSION: session.id})

    def _session(self, request: Request, who: Who, view: str | None) -> Session | Response:
        given = request.headers.getlist(SESSION)
        if len(given) != 1:
            return whole(
                failed(None, Fault(INVALID_REQUEST, f"send one {SESSION}; a session begins with initialize")), 400
            )
        said = request.headers.get(VERSION)
        if said is not None and said not in VERSIONS:
            return whole(failed(None, Fault(INVALID_REQUEST, f"unsupported {VERSION}; {', '.join(VERSIONS)} are")), 400)
        session = self._sessions.find(given[0], who.key, view)
        if session is None:
            return whole(failed(None, Fault(INVALID_REQUEST, "there is no such session: initialize another one")), 404)
        if isinstance(who, Holder) and isinstance(session.task, Continued):
            session.task.holder = who
        return session

    def _heard(self, session: Session, message: Call | Answer) -> None:
        if isinstance(message, Answer):
            session.answered(message)
        elif message.method == "notifications/cancelled":
            session.cancel(message.params.get("requestId"))

    async def _request(self, streams: Streams, methods: Methods, call: Call, takes: bool) -> Response:
        """Answered with a stream where the client ``takes`` one: something may have to be told, or asked, before the end."""
        stream = streams.open()

        async def work() -> dict[str, Any]:
            try:
                said = await self._answered(methods, call, stream.tell)
                stream.put(said)
                return said
            finally:
                stream.close()

        # A task of its own: a client that hangs up has not thereby cancelled (2025-11-25, Transports).
        task = self._spawn(work())
        if not takes:
            streams.drop(stream)
            return whole(await task)
        await stream.begun(SOON)
        return StreamingResponse(stream.read(), media_type=SSE, headers=NO_STORE)

    async def _answered(self, methods: Methods, call: Call, tell: Any) -> dict[str, Any]:
        assert call.id is not None  # noqa: S101 - requests only
        try:
            return result(call.id, await methods.answer(call, tell))
        except Fault as fault:
            return failed(call.id, fault)
        except Refusal as no:
            return failed(call.id, refused(no))
        except Exception as error:
            self._fault("mcp", error)
            return failed(call.id, Fault(INTERNAL_ERROR, "the broker failed; its log says why"))

    async def _get(self, request: Request) -> Response:
        who, _, view = await self._known(request)
        if request.headers.get(VERSION) == REVISION:
            return Response(status_code=405, headers={"Allow": "POST"})
        if SSE not in accepted(request):
            return whole(failed(None, Fault(INVALID_REQUEST, f"accept {SSE}")), 406)
        session = self._session(request, who, view)
        if isinstance(session, Response):
            return session
        if (last := request.headers.get(LAST)) is not None:
            if (found := session.streams.find(last)) is None:
                gone = Fault(INVALID_REQUEST, f"{LAST} is no event of this session, or one that is not kept any more")
                return whole(failed(None, gone), 400)
            return StreamingResponse(found[0].read(found[1]), media_type=SSE, headers=NO_STORE)
        if session.streams.outbox.listened:
            return whole(failed(None, Fault(INVALID_REQUEST, "this session is listened to already")), 409)
        return StreamingResponse(session.streams.outbox.read(), media_type=SSE, headers=NO_STORE)

    async def _delete(self, request: Request) -> Response:
        who, _, view = await self._known(request)
        if request.headers.get(VERSION) == REVISION:
            return Response(status_code=405, headers={"Allow": "POST"})
        session = self._session(request, who, view)
        if isinstance(session, Response):
            return session
        self._sessions.drop(session)
        self._backgrounds.drop(_owner(session))
        await session.end()
        return Response(status_code=204)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault("mcp", error)


def _owner(session: Session) -> Owner:
    return Owner(session.key, session.view, session.id)
