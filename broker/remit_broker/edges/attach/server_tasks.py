"""Calls that a server works on in the background: a task of the protocol, seen through to its end within the call that began it.

Two generations have them: 2025-11-25 in its core (Utilities, "Tasks"), where whoever calls says that it wants one, and 2026-07-28
as the extension ``io.modelcontextprotocol/tasks``, where the server decides. To whoever called here it is a call that takes long:
what becomes of a task towards clients is for another edge, and no id of a server's task ever leaves this process.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

import mcp_types as types
from mcp.shared.exceptions import MCPError
from mcp_types import methods

from remit_broker.edges.attach.answers import invalid, unavailable
from remit_broker.edges.attach.outbound import Outgoing
from remit_schemas.errors import Code, refusal

EXTENSION: Final = "io.modelcontextprotocol/tasks"
RELATED: Final = "io.modelcontextprotocol/related-task"
STATUS: Final = "notifications/tasks/status"
"""What is said of a task while it is worked on, whatever the generation of its server."""

ENDED: Final = frozenset({"completed", "failed", "cancelled"})
_STATES: Final = ENDED | {"working", "input_required"}
_ASKED: Final = frozenset({"sampling/createMessage", "elicitation/create", "roots/list"})
_PAUSE: Final = (0.02, 0.5, 10.0)
"""Seconds between two looks at a task: at least, where the server says nothing, and at most."""
_ANSWER: Final = 30.0
"""Seconds within which a server says how a task is."""
_CANCEL: Final = 5.0
_ID: Final = 512
_MESSAGE: Final = 1000

Ask = Callable[["TaskRequest"], Awaitable[dict[str, Any]]]


class TaskRequest(types.Request[dict[str, Any], str]):
    """``tasks/…`` for one task; over HTTP a header repeats which (SEP-2663, "Routing headers")."""

    name_param = "taskId"


class _Answers(Protocol):
    async def asked(self, method: str, params: dict[str, Any]) -> Any:
        """See :meth:`remit_broker.edges.attach.conversation.Conversation.asked`."""


class Job(NamedTuple):
    """A call whose server works on it in the background. ``version`` is the revision that it speaks, ``ask`` puts a request to it."""

    version: str
    has_sessions: bool
    outgoing: Outgoing
    ask: Ask


def begun(raw: dict[str, Any]) -> dict[str, Any] | None:
    """The task that an answer begins, in either shape; None where it is a result as any other."""
    if raw.get("resultType") == "task":
        return raw
    task = raw.get("task")
    return task if isinstance(task, dict) and "content" not in raw else None


class ServerTasks:
    """The tasks of one session with a server, by its own ids."""

    def __init__(self) -> None:
        self._open: dict[str, Outgoing] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def whose(self, related: Any) -> Outgoing | None:
        """The call that a task belongs to, where what a server says names one."""
        task = related.get("taskId") if isinstance(related, dict) else None
        return self._open.get(task) if isinstance(task, str) else None

    async def to_the_end(self, created: dict[str, Any], job: Job) -> dict[str, Any]:
        """The result of the call that ``created`` this task. Whoever is cancelled meanwhile has the server told so.

        Raises :class:`MCPError` where the call failed as one of the protocol, or a refusal.
        """
        name = _name(created)
        # INVARIANT: two calls never share a task, so that nobody gets another's result
        # (test_a_server_that_gives_two_calls_one_task_gives_the_second_nothing).
        if name in self._open:
            raise invalid("the server gave this call a task that another call has")
        self._open[name] = job.outgoing
        try:
            return await _Watched(name, job).to_the_end(_checked(created, name))
        except asyncio.CancelledError:
            self._end(name, job)
            raise
        finally:
            del self._open[name]

    def _end(self, name: str, job: Job) -> None:
        """Nobody waits for it any more: the server need not work on."""

        async def cancel() -> None:
            try:
                async with asyncio.timeout(_CANCEL):
                    await job.ask(_request("tasks/cancel", name))
            except Exception:  # noqa: S110 - a wish: nobody waits for its answer, and the hop has ended
                pass

        task = asyncio.get_running_loop().create_task(cancel())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class _Watched:
    def __init__(self, name: str, job: Job) -> None:
        self._name, self._job = name, job
        self._said: dict[str, Any] | None = None
        self._answered: set[str] = set()

    async def to_the_end(self, task: dict[str, Any]) -> dict[str, Any]:
        while True:
            await self._tell(task)
            status = task["status"]
            if status in ENDED or (status == "input_required" and self._job.has_sessions):
                return await self._ended(task)
            if status == "input_required":
                await self._answer(task)
            await asyncio.sleep(_pause(task))
            task = await self._look()

    async def _look(self) -> dict[str, Any]:
        return _checked(await self._asked("tasks/get"), self._name)

    async def _asked(self, method: str, **more: Any) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_ANSWER):
                return await self._job.ask(_request(method, self._name, **more))
        except TimeoutError:
            raise unavailable(f"it does not say how its task is ({method})", "unknown") from None

    async def _tell(self, task: dict[str, Any]) -> None:
        said = {"status": task["status"], "pollInterval": int(_pause(task) * 1000)}
        if isinstance(message := task.get("statusMessage"), str) and message:
            said["statusMessage"] = message[:_MESSAGE]
        if said != self._said and self._job.outgoing.heard is not None:
            self._said = said
            await self._job.outgoing.heard({"method": STATUS, "params": said})

    async def _ended(self, task: dict[str, Any]) -> dict[str, Any]:
        if task["status"] == "cancelled":
            raise refusal(
                Code.CANCELLED, "the server gave up the task", rule="attach.task",
                ask="find out what it did, then call again", effect="unknown",
            )  # fmt: skip
        if self._job.has_sessions:
            # Waits where the server waits for an input: what it asks comes beside, as from any call.
            return self._result(await self._job.ask(_request("tasks/result", self._name)))
        if task["status"] == "completed":
            result = task.get("result")
            return self._result(result if isinstance(result, dict) else {})
        error = task.get("error")
        code, said = (error.get("code"), error.get("message")) if isinstance(error, dict) else (None, None)
        raise MCPError(code if isinstance(code, int) else types.INTERNAL_ERROR, str(said or "the task failed"))

    def _result(self, raw: dict[str, Any]) -> dict[str, Any]:
        # Where it stands within a task it need not say that it is complete.
        whole = raw if self._job.has_sessions else {"resultType": "complete", **raw}
        methods.validate_server_result("tools/call", self._job.version, whole)
        if begun(whole) is not None or whole.get("resultType", "complete") != "complete":
            raise invalid("the server's task did not end in a result")
        return whole

    async def _answer(self, task: dict[str, Any]) -> None:
        """What a server of the generation without sessions asks stands in its task, and is answered in its task."""
        asks, conversation = task.get("inputRequests"), self._job.outgoing.conversation
        answers: dict[str, Any] = {}
        for key, one in (asks if isinstance(asks, dict) else {}).items():
            if key in self._answered or not isinstance(one, dict) or conversation is None:
                continue
            method, params = one.get("method"), one.get("params") or {}
            if method not in _ASKED or not isinstance(params, dict):
                raise invalid("the server's task asks for an input that no MCP client can give")
            self._answered.add(key)
            answers[key] = _said(await conversation.asked(method, params))
        if answers:
            await self._asked("tasks/update", inputResponses=answers)


def _said(answer: Any) -> dict[str, Any]:
    if isinstance(answer, types.ErrorData):
        return {"action": "cancel"}
    found: dict[str, Any] = answer.model_dump(by_alias=True, mode="json", exclude_none=True)
    return found


def _request(method: str, name: str, **more: Any) -> TaskRequest:
    return TaskRequest(method=method, params={"taskId": name, **more})


def _name(task: dict[str, Any]) -> str:
    name = task.get("taskId")
    if not isinstance(name, str) or not 0 < len(name) <= _ID:
        raise invalid("the server's task has no id")
    return name


def _checked(task: dict[str, Any], name: str) -> dict[str, Any]:
    # INVARIANT: what a server says of another task is nothing about this one
    # (test_a_server_that_answers_for_another_task_is_not_believed).
    if task.get("taskId") != name:
        raise invalid("the server answered for another task than it was asked about")
    if task.get("status") not in _STATES:
        raise invalid("the server's task is in no state that the protocol knows")
    return task


def _pause(task: dict[str, Any]) -> float:
    least, usual, most = _PAUSE
    said = task.get("pollIntervalMs", task.get("pollInterval"))
    if not isinstance(said, int | float) or isinstance(said, bool) or not math.isfinite(said):
        return usual
    return min(max(said / 1000, least), most)
