"""One hop for one request of a client: what comes before its end is passed on, and what the server asks is asked of that client."""

from __future__ import annotations

import itertools
from typing import Any, Final, NamedTuple

from remit_broker.edges.inside import Calls, Running
from remit_broker.edges.mcp.deputies import AGENT, Holding
from remit_broker.edges.mcp.envelope import passed_on
from remit_broker.edges.mcp.jsonrpc import METHOD_NOT_FOUND, Call, Id, notification
from remit_broker.edges.mcp.session import Session, Tell
from remit_broker.edges.mcp.tasks import is_over
from remit_schemas.envelope import Error, Event, InputRequired, Progress, Request, Result, Trace, Want
from remit_schemas.errors import Code, ErrorBody, Refusal, refusal
from remit_schemas.names import Resource

MAX_ROUNDS: Final = 32
"""Times that a client is asked for one call."""
LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""Of RFC 5424, from the least on."""


class Ended(NamedTuple):
    """The final frame of a hop, and its ids."""

    frame: Result | Error
    txn: str
    hop: str


class Aim(NamedTuple):
    """What is called, with what."""

    resource: Resource
    args: dict[str, Any]
    agent: Any = None
    """The sub-agent of the client that calls, as that one names it."""


class Waits(NamedTuple):
    """A hop that waits for what ``asked`` says."""

    asked: Any
    held: Holding
    running: Running
    aim: Aim


class Hops:
    """The hops of one session. ``seconds`` is the longest that one call may take, and a client to answer a question; ``asks`` is
    whether a question reaches it before its request is answered.
    """

    def __init__(self, session: Session, calls: Calls, seconds: float, *, asks: bool = True) -> None:
        self._session, self._calls, self._seconds, self._asks = session, calls, seconds, asks

    async def run(self, call: Call, resource: Resource, args: dict[str, Any], tell: Tell) -> Ended:
        """A hop to its end. Refuses what does not become one."""
        ended = await self._once(call, resource, args, tell)
        if isinstance(ended.frame, Error) and is_over(Refusal(ended.frame.error)) and not ended.hop:
            # The task ended between two calls, by an operator's word or its time: the next one has another.
            ended = await self._once(call, resource, args, tell)
        return ended

    async def _once(self, call: Call, resource: Resource, args: dict[str, Any], tell: Tell) -> Ended:
        assert call.id is not None  # noqa: S101 - requests only
        self._session.begin(call.id)
        try:
            return await self._governed(call, call.id, resource, args, tell)
        finally:
            self._session.over(call.id)

    async def _governed(self, call: Call, at: Id, resource: Resource, args: dict[str, Any], tell: Tell) -> Ended:
        meta = meta_of(call.params)
        aim = Aim(resource, args, meta.get(AGENT))
        task = self._session.task
        mine = await task.holding()
        try:
            return await self._held_to_the_end(at, await self._acting(mine, aim), aim, meta, tell)
        finally:
            task.left(mine.txn)

    async def _held_to_the_end(self, at: Id, held: Holding, aim: Aim, meta: dict[str, Any], tell: Tell) -> Ended:
        request = Request(
            grant=held.grant,
            args=aim.args,
            want=Want(ttl_ms=int(self._seconds * 1000)),
            parts=True,
            trace=_trace(meta),
            meta=self._passed_on(meta),
        )
        running = self._begin(at, held, aim.resource, request)
        return await self._to_the_end(at, held, running, aim, meta, tell)

    def _passed_on(self, meta: dict[str, Any]) -> dict[str, Any]:
        return passed_on(meta, self._session.can)

    async def _acting(self, held: Holding, aim: Aim) -> Holding:
        """``held``, or what the sub-agent has that the client names."""
        return held if aim.agent is None else await self._session.task.deputies.of(held, aim.agent)

    async def _to_the_end(
        self, at: Id, held: Holding, running: Running, aim: Aim, meta: dict[str, Any], tell: Tell
    ) -> Ended:
        for rounds in itertools.count():
            frame = await self._until_end(running, meta, tell)
            if not isinstance(frame, InputRequired):
                return Ended(frame, held.txn, running.hop)
            if rounds == MAX_ROUNDS:
                # INVARIANT: no server keeps asking a client (test_questions_without_end_end_with_the_call).
                running.give_up()
                return Ended(Error(error=_too_many(aim.resource)), held.txn, running.hop)
            hop, answers = running.hop, await self._answers(at, Waits(frame.request, held, running, aim), tell)
            if at in self._session.unwanted or answers is None:
                running.give_up()
                return Ended(
                    Error(error=_not_answered(aim.resource, cancelled=at in self._session.unwanted)), held.txn, hop
                )
            held, running = await self._resume(at, held, hop, aim, answers)
        raise RuntimeError("a count ended")

    async def _resume(
        self, at: Id, held: Holding, hop: str, aim: Aim, answers: dict[str, Any]
    ) -> tuple[Holding, Running]:
        # The input goes through the whole pipeline: it is data that leaves, as the arguments are.
        held = await self._acting(self._session.task.going_on(held), aim)
        again = Request(
            grant=held.grant, args=aim.args, want=Want(ttl_ms=int(self._seconds * 1000)), parts=True, resume=hop,
            input={"answers": answers},
        )  # fmt: skip
        return held, self._begin(at, held, aim.resource, again)

    def _begin(self, at: Id, held: Holding, resource: Resource, request: Request) -> Running:
        running = self._calls.begin(held.caller, held.txn, resource, request)
        self._session.runs(at, running)
        return running

    async def _until_end(self, running: Running, meta: dict[str, Any], tell: Tell) -> Result | Error | InputRequired:
        async for frame in running:
            if isinstance(frame, Progress):
                await self._progress(frame, meta, tell)
            elif isinstance(frame, Event):
                await self._said(frame, tell)
            elif isinstance(frame, Result | Error | InputRequired):
                return frame
        raise RuntimeError("a call ended without an end")

    async def _progress(self, frame: Progress, meta: dict[str, Any], tell: Tell) -> None:
        token = meta.get("progressToken")
        if not isinstance(token, str | int) or frame.progress is None:
            return
        said: dict[str, Any] = {"progressToken": token, "progress": frame.progress}
        if frame.total is not None:
            said["total"] = frame.total
        if frame.message:
            said["message"] = frame.message
        await tell(notification("notifications/progress", said))

    async def _said(self, frame: Event, tell: Tell) -> None:
        """A log message of the server, from the level on that the client wants."""
        said = frame.data if isinstance(frame.data, dict) else {}
        params = said.get("params")
        if said.get("method") == "notifications/message" and isinstance(params, dict):
            level = params.get("level")
            wanted = self._session.level
            if level in LEVELS and wanted in LEVELS and LEVELS.index(level) >= LEVELS.index(wanted):
                await tell(notification("notifications/message", params))

    async def _answers(self, at: Id, waits: Waits, tell: Tell) -> dict[str, Any] | None:
        """What the client says to each question; None where it is none that an MCP client can be asked."""
        if (asks := asks_of(waits.asked)) is None:
            return None
        answers = {}
        for key, question in asks.items():
            method, params = question.get("method"), question.get("params") or {}
            if not self._asks:
                answers[key] = {"error": {"code": METHOD_NOT_FOUND, "message": "this client takes no streams"}}
                continue
            answers[key] = await self._session.ask(at, str(method), params, tell, self._seconds)
        return answers


def asks_of(asked: Any) -> dict[str, dict[str, Any]] | None:
    """The questions of a parked hop by their keys; None where it asks for something that no MCP client knows."""
    asks = asked.get("asks") if isinstance(asked, dict) else None
    if not isinstance(asks, dict) or not all(isinstance(one, dict) for one in asks.values()):
        return None
    return {key: _alone(question) for key, question in asks.items()}


def _alone(question: dict[str, Any]) -> dict[str, Any]:
    """A question as a client is asked it: a model is given the server's own words, and nothing that others told the client.

    INVARIANT: no server gets what other servers said by having a client's model say it
    (test_a_server_gets_nothing_of_other_servers_out_of_a_clients_model).
    """
    params = question.get("params")
    if question.get("method") != "sampling/createMessage" or not isinstance(params, dict):
        return question
    return {**question, "params": {**params, "includeContext": "none"}} if "includeContext" in params else question


def meta_of(params: dict[str, Any]) -> dict[str, Any]:
    """``_meta`` of a request."""
    meta = params.get("_meta")
    return meta if isinstance(meta, dict) else {}


def _trace(meta: dict[str, Any]) -> Trace | None:
    """The client's trace context, for a link of the span; whatever cannot be one is left out."""
    parent, state = meta.get("traceparent"), meta.get("tracestate", "")
    if not isinstance(parent, str) or len(parent) > 55 or not isinstance(state, str) or len(state) > 512:
        return None
    return Trace(parent, state)


def _too_many(resource: Resource) -> ErrorBody:
    return refusal(
        Code.RESULT_INVALID, f"{resource} asked {MAX_ROUNDS} times, and asks again", rule="mcp.rounds",
        ask="look at the chain before calling again; tell whoever runs the server", effect="unknown",
    ).body  # fmt: skip


def _not_answered(resource: Resource, *, cancelled: bool) -> ErrorBody:
    if cancelled:
        return refusal(
            Code.CANCELLED, "the call was cancelled while it waited for an answer", rule="mcp.cancelled",
            ask="look at the chain before calling again", effect="unknown",
        ).body  # fmt: skip
    return refusal(
        Code.RESULT_INVALID, f"{resource} asks for an input that no MCP client can give", rule="mcp.input",
        ask="call it from an agent that knows what it asks", effect="unknown",
    ).body  # fmt: skip
