"""One request to the attached server, which may ask something back before it answers: for a sample, for a person's word, for roots."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import mcp_types as types
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter, ValidationError

from remit_broker.edges.attach.outbound import Outgoing

MAX_ROUNDS: Final = 32
"""How often a server may ask within one request."""

Send = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Sends the request with these further params and gives the result as it came."""

Heard = Callable[[dict[str, Any]], Awaitable[None]]
"""What the server says meanwhile, as a notification of MCP."""


class Asked(NamedTuple):
    """What the server wants to know, each under a key of its own: ``{"method", "params"}``."""

    requests: dict[str, dict[str, Any]]


class _Question(NamedTuple):
    method: str
    params: dict[str, Any]
    answer: asyncio.Future[dict[str, Any]]


_ANSWERS: Final[dict[str, TypeAdapter[Any]]] = {
    "sampling/createMessage": TypeAdapter(types.CreateMessageResult | types.CreateMessageResultWithTools),
    "elicitation/create": TypeAdapter(types.ElicitResult),
    "roots/list": TypeAdapter(types.ListRootsResult),
}


class Conversation:
    """A request on its way. :meth:`next` waits for what the server says; what it asked is answered with :meth:`answer`.

    Servers of the generation with sessions ask by a request of their own, while theirs waits; those of 2026-07-28 answer that they
    need an input, and are asked once more with it. To whoever talks to them here it is the same.
    """

    def __init__(self, outgoing: Outgoing, send: Send) -> None:
        self.outgoing = outgoing
        self._send = send
        self._task: asyncio.Task[dict[str, Any]] | None = None
        self._questions: asyncio.Queue[_Question] = asyncio.Queue()
        self._open: _Question | None = None
        self._again: dict[str, Any] | None = None
        self._rounds = 0

    @property
    def waits(self) -> bool:
        """Whether the server waits for an answer."""
        return self._open is not None or self._again is not None

    async def next(self, seconds: float) -> asyncio.Task[dict[str, Any]] | Asked | None:
        """The request, once it is answered; or what is asked; or None after ``seconds``."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run({}))
        question = asyncio.ensure_future(self._questions.get())
        try:
            done, _ = await asyncio.wait(
                {self._task, question}, timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            if not question.done():
                question.cancel()
        if question in done:
            self._open = question.result()
            self._count()
            return Asked({"1": {"method": self._open.method, "params": self._open.params}})
        if self._task not in done:
            return None
        return self._wants(self._task) or self._task

    def _wants(self, task: asyncio.Task[dict[str, Any]]) -> Asked | None:
        if task.cancelled() or task.exception() is not None:
            return None
        raw = task.result()
        if raw.get("resultType") != "input_required":
            return None
        requests = raw.get("inputRequests") or {}
        if not isinstance(requests, dict) or not all(isinstance(one, dict) for one in requests.values()):
            return None
        self._again = {"requestState": raw["requestState"]} if "requestState" in raw else {}
        self._count()
        return Asked(
            {
                str(key): {"method": one.get("method"), "params": one.get("params") or {}}
                for key, one in requests.items()
            }
        )

    def _count(self) -> None:
        self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            raise MCPError(types.INTERNAL_ERROR, f"the server asked more than {MAX_ROUNDS} times")

    def answer(self, answers: dict[str, Any]) -> None:
        """What was asked, by the same keys: each ``{"result": …}`` or ``{"error": {"code", "message"}}``."""
        if self._open is not None:
            question, self._open = self._open, None
            said = answers.get("1")
            if not question.answer.done():
                question.answer.set_result(said if isinstance(said, dict) else {})
        elif self._again is not None:
            more, self._again = self._again, None
            more["inputResponses"] = {
                key: said["result"] if isinstance(said, dict) and "result" in said else {"action": "cancel"}
                for key, said in answers.items()
            }
            self._task = asyncio.get_running_loop().create_task(self._run(more))

    async def asked(self, method: str, params: dict[str, Any]) -> Any:
        """The server asks by a request of its own: what it is to be told."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._questions.put_nowait(_Question(method, params, answer))
        said = await answer
        error = said.get("error")
        if "result" not in said:
            told = error if isinstance(error, dict) else {}
            code = told.get("code")
            return types.ErrorData(
                code=code if isinstance(code, int) else types.INTERNAL_ERROR,
                message=str(told.get("message") or "it was not answered")[:500],
            )
        try:
            return _ANSWERS[method].validate_python(said["result"], by_alias=True)
        except ValidationError:
            return types.ErrorData(code=types.INTERNAL_ERROR, message="the answer is not one of the protocol")

    def abandon(self) -> asyncio.Task[dict[str, Any]] | None:
        """Nobody waits any more; the task to be cancelled."""
        if self._open is not None and not self._open.answer.done():
            self._open.answer.set_result({})
        return self._task if self._task is not None and not self._task.done() else None

    async def _run(self, more: dict[str, Any]) -> dict[str, Any]:
        return await self._send(more)
