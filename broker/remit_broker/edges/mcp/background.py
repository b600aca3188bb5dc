"""Calls that go on after they were answered: tasks of the protocol, as a client knows them.

To the broker such a call is a hop that takes long. It is open until the server's task ends, and its result is held here, in this
process, until the client fetches it or the time of the task is over. The ids are drawn here: a server's own never reach a client.
A task of a client (of which the protocol speaks) is not a task of a user (a txn): one txn may have many.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from remit_broker.core.times import rfc3339
from remit_broker.edges.mcp.answers import refused_tool
from remit_broker.edges.mcp.jsonrpc import INVALID_PARAMS, Fault
from remit_schemas.errors import Code, refusal

RELATED: Final = "io.modelcontextprotocol/related-task"
ENDED: Final = frozenset({"completed", "failed", "cancelled"})

WORKING: Final = 64
"""Tasks of one owner at once that have not ended."""
KEPT: Final = 256
"""Tasks of one principal, with those whose result is still held; of more, those that ended first are forgotten."""
BYTES: Final = 64 * 1024 * 1024
"""Bytes of results that are held for one principal; of more, those that ended first are forgotten."""
AFTER: Final = 300.0
"""Seconds for which a result is held at least, where its client did not wish otherwise."""
POLL: Final = (100, 1000, 60_000)
"""Milliseconds that a client is asked to leave between two questions: at least, where nothing is said, and at most."""


class Owner(NamedTuple):
    """Whose a task is: of a principal, at an address, in a session where there is one. Nobody else knows of it."""

    key: tuple[str, ...]
    view: str | None
    session: str = ""


class Outcome(NamedTuple):
    """How a call ended: with a result, or with an error of the protocol."""

    result: dict[str, Any]
    fault: Fault | None = None


class Background:
    """One task. ``ttl`` is in seconds, from its creation on; ``cancel`` has its hop end."""

    def __init__(self, now: Callable[[], float], ttl: float, cancel: Callable[[], None]) -> None:
        self.id = secrets.token_hex(16)
        self.status, self.message, self.poll = "working", "", POLL[1]
        self.ttl, self._now, self._cancel = ttl, now, cancel
        self.created = self.updated = now()
        self.outcome: Outcome | None = None
        self.asks: dict[str, dict[str, Any]] = {}
        """What the server wants to know, under keys that no other question of this task has."""
        self.begun = asyncio.Event()
        """Set once the server has said that it works on it in the background."""
        self.size = 0
        self._answers: dict[str, Any] = {}
        self._rounds = 0
        self._grew = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None

    @property
    def over(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.status in ENDED

    def told(self, said: dict[str, Any]) -> None:
        """What its server says of it. Whether it has ended is for its hop to say."""
        self.begun.set()
        message, poll = said.get("statusMessage"), said.get("pollInterval")
        if isinstance(poll, int):
            self.poll = min(max(poll, POLL[0]), POLL[2])
        if not self.over:
            self.message = message if isinstance(message, str) else ""
            self._changed()

    async def ask(self, asks: dict[str, dict[str, Any]], seconds: float) -> dict[str, Any]:
        """What the client answers, by the same keys; nothing of what it did not answer in time."""
        self._rounds += 1
        at = {f"{self._rounds}-{key}": key for key in asks}
        self.asks, self._answers = {name: asks[key] for name, key in at.items()}, {}
        self.status = "input_required"
        self._changed()
        try:
            async with asyncio.timeout(seconds):
                while self.asks and not self.over:
                    await self.changed()
        except TimeoutError:
            pass
        said, self.asks, self._answers = self._answers, {}, {}
        if not self.over:
            self.status = "working"
            self._changed()
        return {key: said[name] for name, key in at.items() if name in said}

    def answered(self, answers: dict[str, Any]) -> None:
        """The client answers some of what it was asked; what it was not asked, or has answered, it is not asked about."""
        for name in answers.keys() & self.asks.keys():
            del self.asks[name]
            self._answers[name] = answers[name]
        self._changed()

    def end(self, outcome: Outcome, status: str) -> None:
        """What became of its hop. Whatever was cancelled stays so, and nothing of it is given out."""
        if not self.over:
            self.outcome, self.status, self.message = outcome, status, ""
            self.size = len(msgspec.json.encode(outcome.result))
            self._changed()

    def cancel(self) -> None:
        """Its client does not want it any more."""
        no = refusal(
            Code.CANCELLED, "the task was cancelled", rule="mcp.task", ask="call again if it is still wanted",
            effect="unknown",
        )  # fmt: skip
        self.end(Outcome(refused_tool(no.body)), "cancelled")
        self._cancel()

    async def changed(self) -> None:
        """Wait until something about it has."""
        self._grew.clear()
        await self._grew.wait()

    def _changed(self) -> None:
        self.updated = self._now()
        self._grew.set()
        self.on_change()

    def plain(self) -> dict[str, Any]:
        """As the generation with sessions has it."""
        told = self._said()
        return {**told, "ttl": int(self.ttl * 1000), "pollInterval": self.poll}

    def detailed(self) -> dict[str, Any]:
        """As the generation without has it: with what came of it, or what it waits for."""
        told = {**self._said(), "ttlMs": int(self.ttl * 1000), "pollIntervalMs": self.poll}
        if self.status == "input_required":
            told["inputRequests"] = dict(self.asks)
        elif self.status == "completed" and self.outcome is not None:
            told["result"] = self.outcome.result
        elif self.status == "failed" and self.outcome is not None and (fault := self.outcome.fault) is not None:
            told["error"] = {"code": fault.code, "message": fault.message} | (
                {"data": fault.data} if fault.data else {}
            )
        return told

    def _said(self) -> dict[str, Any]:
        told = {
            "taskId": self.id, "status": self.status, "createdAt": rfc3339(self.created), "lastUpdatedAt": rfc3339(self.updated),
        }  # fmt: skip
        return told | ({"statusMessage": self.message} if self.message else {})


class Backgrounds:
    """All of them, in this process."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._all: dict[Owner, dict[str, Background]] = {}

    def begin(self, owner: Owner, ttl: float, cancel: Callable[[], None]) -> Background:
        """A task of ``owner``. Refuses RATE_LIMITED where that one has too many that have not ended."""
        mine = self._all.get(owner, {})
        # INVARIANT: what clients leave behind is bounded (test_the_tasks_of_a_client_are_bounded).
        if sum(not one.over for one in mine.values()) >= WORKING:
            raise refusal(
                Code.RATE_LIMITED, f"{WORKING} tasks are being worked on", rule="mcp.tasks",
                ask="wait for one of them, or cancel one", retry_after=1.0,
            )  # fmt: skip
        task = Background(self._now, ttl, cancel)
        self._all.setdefault(owner, {})[task.id] = task
        self.make_room(owner)
        asyncio.get_running_loop().call_later(ttl, self._expire, owner, task)
        return task

    def find(self, name: Any, owner: Owner) -> Background:
        """The task of this id, for whom it belongs to. For anybody else there is none: raises :class:`Fault`."""
        # INVARIANT: the id of a task is of no use to anybody else (test_a_task_of_another_is_not_there).
        found = self._all.get(owner, {}).get(name) if isinstance(name, str) else None
        if found is None:
            raise Fault(INVALID_PARAMS, "Task not found: its id is another's, or its time is over")
        return found

    def of(self, owner: Owner) -> list[Background]:
        """Those of ``owner``, the oldest first."""
        return list(self._all.get(owner, {}).values())

    def drop(self, owner: Owner) -> None:
        """The owner is gone: what is worked on ends, and nothing is held."""
        for task in self._all.pop(owner, {}).values():
            task.cancel()

    def make_room(self, owner: Owner) -> None:
        """Forget what ended first, where more is held than may be."""
        mine = [(at, one) for at, some in self._all.items() if at.key == owner.key for one in some.values()]
        count, size = len(mine), sum(one.size for _, one in mine)
        for at, task in sorted((one for one in mine if one[1].over), key=lambda one: one[1].updated):
            if count <= KEPT and size <= BYTES:
                return
            self.forget(at, task)
            count, size = count - 1, size - task.size

    def forget(self, owner: Owner, task: Background) -> None:
        """It is none any more, whatever its hop does."""
        mine = self._all.get(owner, {})
        mine.pop(task.id, None)
        if not mine:
            self._all.pop(owner, None)

    def _expire(self, owner: Owner, task: Background) -> None:
        if task.id in self._all.get(owner, {}):
            self.forget(owner, task)
            task.cancel()
