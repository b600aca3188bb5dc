"""What a client asks of its tasks, in the two generations, and the hops behind them.

2025-11-25 (Utilities, "Tasks"): whoever calls says that the call is to be a task, and is answered with it at once. 2026-07-28
(extension ``io.modelcontextprotocol/tasks``): the server decides, so the call is answered once it is known which it became.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from typing import Any, Final, NamedTuple, Protocol

from remit_broker.edges.inside import Calls
from remit_broker.edges.mcp.answers import MISSING_CAPABILITY, refused_tool, said_by_server, tool_result
from remit_broker.edges.mcp.background import AFTER, RELATED, Background, Backgrounds, Outcome, Owner
from remit_broker.edges.mcp.hops import Ended, Hops, Waits, asks_of
from remit_broker.edges.mcp.jsonrpc import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    RESULT_REFUSED,
    Call,
    Fault,
    notification,
)
from remit_broker.edges.mcp.rounds import Asking, Parked, Rounds
from remit_broker.edges.mcp.session import NEEDS, Session, Tell
from remit_schemas.envelope import Error, Event
from remit_schemas.errors import Refusal
from remit_schemas.names import Resource

EXTENSION: Final = "io.modelcontextprotocol/tasks"
WISH: Final = "dev.remit/task"
"""The key of ``_meta`` under which the worker of a server is told that it may have the server work in the background."""
STATUS: Final = "notifications/tasks/status"


class Spawn(Protocol):
    """Runs something beside, and says what went wrong in it."""

    def __call__(self, work: Any) -> asyncio.Task[Any]: ...


class Behind(NamedTuple):
    """What tasks are made of: all of them, the pipeline, and the longest that a hop may take in seconds."""

    all: Backgrounds
    calls: Calls
    seconds: float
    spawn: Spawn


class TaskCalls(Protocol):
    """The tasks of one client, in its generation of the protocol."""

    def wanted(self, call: Call, support: str) -> bool:
        """Whether a call may become a task, of a tool with this support of tasks. Raises :class:`Fault` where it must not."""

    async def begin(self, call: Call, resource: Resource, args: dict[str, Any], tell: Tell) -> dict[str, Any]:
        """The task that a call became, or its result."""

    async def answer(self, call: Call, tell: Tell) -> dict[str, Any]:
        """What a client asks of a task. Raises :class:`Fault`."""

    def mine(self) -> list[Background]:
        """Every task of this client."""


def tool_answer(ended: Ended, can: Container[str]) -> dict[str, Any]:
    """What a tool answered, or the refusal of it in band. Raises :class:`Fault` for what is for a client to act on, not for a model."""
    if isinstance(ended.frame, Error):
        fault = said_by_server(ended.frame.error, can)
        if fault is not None and fault.code == MISSING_CAPABILITY:
            raise fault
    return tool_result(*ended)


class _Hop(Hops):
    """The hop of a task: what its server asks waits in the task for the client."""

    task: Background
    life: float

    def _passed_on(self, meta: dict[str, Any]) -> dict[str, Any]:
        return super()._passed_on(meta) | {WISH: {"ttl": int(self.life * 1000)}}

    async def _said(self, frame: Event, tell: Tell) -> None:
        said = frame.data if isinstance(frame.data, dict) else {}
        if said.get("method") == STATUS and isinstance(params := said.get("params"), dict):
            self.task.told(params)
        else:
            await super()._said(frame, tell)

    async def _answers(self, at: Any, waits: Waits, tell: Tell) -> dict[str, Any] | None:
        if (asks := asks_of(waits.asked)) is None:
            return None
        # INVARIANT: a client is asked nothing that it did not say it can be asked
        # (test_a_task_asks_its_client_only_what_it_can_be_asked).
        can = {key: one for key, one in asks.items() if NEEDS.get(str(one.get("method"))) in self._session.can}
        given = await self.task.ask(can, self._seconds) if can else {}
        return {key: given.get(key) or _not_asked(key in can) for key in asks}


class _RoundsHop(_Hop, Rounds):
    """Likewise without a session: what is asked before there is a task is asked in the answer of the call."""

    async def _answers(self, at: Any, waits: Waits, tell: Tell) -> dict[str, Any] | None:
        if self.task.begun.is_set():
            return await super()._answers(at, waits, tell)
        return await Rounds._answers(self, at, waits, tell)


def _not_asked(could: bool) -> dict[str, Any]:
    if could:
        return {"error": {"code": RESULT_REFUSED, "message": "the client did not answer this"}}
    return {"error": {"code": METHOD_NOT_FOUND, "message": "the client cannot be asked for this"}}


class _Tasks:
    def __init__(self, session: Session, owner: Owner, behind: Behind) -> None:
        self._session, self._owner, self._behind = session, owner, behind

    def mine(self) -> list[Background]:
        """Every task of this client."""
        return self._behind.all.of(self._owner)

    def _begin(self, ttl: float) -> Background:
        def cancel() -> None:
            self._session.cancel(_at(task))

        task = self._behind.all.begin(self._owner, ttl, cancel)
        return task

    def _find(self, call: Call) -> Background:
        return self._behind.all.find(call.params.get("taskId"), self._owner)

    async def _outcome(
        self, task: Background, hops: Hops, call: Call, aim: tuple[Resource, dict[str, Any]], tell: Tell
    ) -> Outcome:
        """How its hop ended: nothing is released before the record of that."""
        try:
            if task.over:
                return Outcome({})
            ended = await hops.run(Call(_at(task), call.method, call.params), *aim, tell)
            return Outcome(tool_answer(ended, self._session.can))
        except Refusal as no:
            return Outcome(refused_tool(no.body))
        except Fault as fault:
            return Outcome({}, fault)
        except Asking:
            raise
        except BaseException:
            task.end(Outcome({}, Fault(INTERNAL_ERROR, "the broker failed; its log says why")), "failed")
            raise
        finally:
            self._behind.all.make_room(self._owner)

    def _life(self, ttl: float) -> float:
        return min(ttl, self._behind.seconds)


def _at(task: Background) -> str:
    """The id under which the hop of a task runs in its session."""
    return f"task {task.id}"


class SessionTasks(_Tasks):
    """Of a session of 2025-11-25."""

    def wanted(self, call: Call, support: str) -> bool:
        """Whether the client says so, of a tool of a server that has tasks."""
        if "task" not in call.params:
            return False
        wish = call.params["task"]
        ttl = wish.get("ttl") if isinstance(wish, dict) else None
        if (
            not isinstance(wish, dict)
            or isinstance(ttl, bool)
            or not (ttl is None or (isinstance(ttl, int) and ttl > 0))
        ):
            raise Fault(INVALID_PARAMS, "task is an object, with a ttl in milliseconds where there is one")
        if not support:
            raise Fault(METHOD_NOT_FOUND, "this tool cannot be called as a task (execution.taskSupport in its listing)")
        return True

    async def begin(self, call: Call, resource: Resource, args: dict[str, Any], tell: Tell) -> dict[str, Any]:
        """The task, at once. What becomes of it, a refusal as well, is its result."""
        wish = call.params["task"].get("ttl")
        longest = self._behind.seconds + AFTER
        task = self._begin(longest if wish is None else min(max(wish / 1000, 1.0), longest))
        hops = _Hop(self._session, self._behind.calls, self._life(task.ttl))
        hops.task, hops.life = task, self._life(task.ttl)
        began = {"task": task.plain()}
        task.on_change = lambda: self._session.tell(notification(STATUS, task.plain()))

        async def work() -> None:
            outcome = await self._outcome(task, hops, call, (resource, args), self._tell)
            task.end(outcome, "failed" if outcome.fault is not None or outcome.result.get("isError") else "completed")

        self._behind.spawn(work())
        return began

    async def _tell(self, message: dict[str, Any]) -> None:
        """Progress and log messages of a task have no request to stand on."""
        self._session.tell(message)

    async def answer(self, call: Call, tell: Tell) -> dict[str, Any]:
        """``tasks/get``, ``tasks/result`` and ``tasks/cancel``."""
        match call.method:
            case "tasks/get":
                return self._find(call).plain()
            case "tasks/cancel":
                task = self._find(call)
                if task.over:
                    raise Fault(INVALID_PARAMS, f"this task has ended: {task.status}")
                task.cancel()
                return task.plain()
            case "tasks/result":
                return await self._result(self._find(call), call, tell)
        raise Fault(METHOD_NOT_FOUND, f"there is no method {call.method[:64]!r} here")

    async def _result(self, task: Background, call: Call, tell: Tell) -> dict[str, Any]:
        asked: set[str] = set()
        while not task.over:
            if (name := next((key for key in task.asks if key not in asked), None)) is not None:
                asked.add(name)
                await self._ask(task, name, call, tell)
            else:
                await task.changed()
        outcome = task.outcome
        if outcome is None or outcome.fault is not None:
            raise outcome.fault if outcome and outcome.fault else Fault(INTERNAL_ERROR, "the task has no result")
        return _related(outcome.result, task)

    async def _ask(self, task: Background, name: str, call: Call, tell: Tell) -> None:
        """Ask the client on the stream of this request, until it answers, here or on another."""
        question = task.asks[name]
        asking = asyncio.ensure_future(
            self._session.ask(
                call.id or 0, str(question.get("method")), _related(question.get("params") or {}, task), tell, self._behind.seconds
            )
        )  # fmt: skip
        try:
            while name in task.asks and not asking.done():
                changed = asyncio.ensure_future(task.changed())
                await asyncio.wait({asking, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            if asking.done():
                task.answered({name: asking.result()})
        finally:
            asking.cancel()


def _related(said: dict[str, Any], task: Background) -> dict[str, Any]:
    meta = said.get("_meta")
    return {**said, "_meta": {**(meta if isinstance(meta, dict) else {}), RELATED: {"taskId": task.id}}}


class RequestTasks(_Tasks):
    """Of clients of 2026-07-28. ``over`` is called when a hop has ended whose request had been answered before."""

    def __init__(
        self, session: Session, owner: Owner, behind: Behind, parked: Parked | None, over: Callable[[], None]
    ) -> None:
        super().__init__(session, owner, behind)
        self._parked, self._over = parked, over
        self.handed_over = False
        """Whether the request was answered with a task."""

    def wanted(self, call: Call, support: str) -> bool:
        """Whether the client knows tasks, and the server has them; which it becomes is for the server to say."""
        extensions = self._session.can.get("extensions")
        return bool(support) and isinstance(extensions, dict) and EXTENSION in extensions

    async def begin(self, call: Call, resource: Resource, args: dict[str, Any], tell: Tell) -> dict[str, Any]:
        """The task where it becomes one, else its result. Whoever hangs up before has cancelled the call."""
        assert call.id is not None  # noqa: S101 - requests only
        task = self._begin(self._behind.seconds + AFTER)
        hops = _RoundsHop(self._session, self._behind.calls, self._behind.seconds, self._parked)
        hops.task, hops.life = task, self._behind.seconds

        async def heard(message: dict[str, Any]) -> None:
            if not task.begun.is_set():
                await tell(message)

        async def work() -> Outcome:
            try:
                outcome = await self._outcome(task, hops, call, (resource, args), heard)
                task.end(outcome, "failed" if outcome.fault is not None else "completed")
                return outcome
            finally:
                if self.handed_over:
                    self._over()

        self._session.begin(call.id)
        self._session.runs(call.id, _Handed(task))
        working = self._behind.spawn(_told(work()))
        begun = asyncio.ensure_future(task.begun.wait())
        try:
            await asyncio.wait({working, begun}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self.handed_over = True
                return {"resultType": "task", **_bare(task)}
        finally:
            begun.cancel()
            self._session.over(call.id)
            if not self.handed_over:
                self._behind.all.forget(self._owner, task)
        outcome: Outcome | Asking = working.result()
        if isinstance(outcome, Asking):
            raise outcome
        if outcome.fault is not None:
            raise outcome.fault
        return outcome.result

    async def answer(self, call: Call, tell: Tell) -> dict[str, Any]:
        """``tasks/get``, ``tasks/update`` and ``tasks/cancel``."""
        task = self._find(call)
        if call.method == "tasks/update":
            answers = call.params.get("inputResponses")
            if not isinstance(answers, dict):
                raise Fault(INVALID_PARAMS, "inputResponses is an object")
            task.answered({key: {"result": said} for key, said in answers.items() if isinstance(said, dict)})
            return {}
        if call.method == "tasks/cancel":
            if not task.over:
                task.cancel()
            return {}
        return task.detailed()


async def _told(work: Any) -> Outcome | Asking:
    try:
        found: Outcome = await work
        return found
    except Asking as asking:
        return asking


def _bare(task: Background) -> dict[str, Any]:
    told = task.detailed()
    return {key: said for key, said in told.items() if key not in ("result", "error", "inputRequests")}


class _Handed:
    """The request of a call that may yet become a task: to hang up ends the hop that runs under the name of the task."""

    def __init__(self, task: Background) -> None:
        self._task = task

    def cancel(self) -> None:
        self._task.cancel()
