"""What stands between a decision and its effect, and between an effect and its answer: tried by changing the world there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio

from remit_broker.core.policy import undecided
from remit_broker.hop.pipeline import _shielded
from remit_schemas.envelope import Result
from tests.support.raw import Arena, RawAgent, error_of, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")

READ = "mcp/files/read"
SECRET_ANSWER = "what was read"


class Stage:
    """Alice calls, Files answers at once."""

    def __init__(self, arena: Arena, alice: RawAgent, files: RawAgent) -> None:
        self.arena, self.alice, self.files = arena, alice, files
        self.ports = arena.lab.broker.ports


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(arena: Arena) -> AsyncIterator[Stage]:
    alice, files = await arena.agent("alice"), await arena.agent("files", "mcp")
    files.handlers["read"] = lambda taken: taken.done(SECRET_ANSWER)
    await files.serve(tool("read"))
    yield Stage(arena, alice, files)


def when(stage: Stage, monkeypatch: pytest.MonkeyPatch, point: str, do: Callable[[], None]) -> None:
    """Do something at a named point of the next hop."""

    def hit(_: Any, name: str) -> None:
        if name == point:
            do()

    monkeypatch.setattr(type(stage.ports.failpoints), "hit", hit)


async def test_what_policy_would_deny_by_now_is_not_sent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy changes while the intent is being written: what was decided before is decided again before anything is sent."""
    root = await stage.arena.lab.grant("alice", READ)
    engine = type(stage.ports.policy)

    def change() -> None:
        monkeypatch.setattr(engine, "revision", "f" * 64)
        monkeypatch.setattr(engine, "decide", lambda self, request: undecided("f" * 64, "changed"))

    when(stage, monkeypatch, "open", change)
    body = await stage.alice.error(READ, root.txn, root.grant)
    monkeypatch.undo()
    assert (body.code, body.effect) == ("POLICY_DENIED", "none")
    assert stage.files.work(root.txn) == []
    assert await stage.arena.kinds(root.txn) == ["txn.opened", "hop.opened", "hop.closed"]


async def test_what_is_late_by_now_is_not_sent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that was frozen between intent and dispatch does not act late."""
    root = await stage.arena.lab.grant("alice", READ)

    def freeze() -> None:
        monkeypatch.setattr(type(stage.ports.clock), "monotonic", lambda self: time.monotonic() + 3600)

    when(stage, monkeypatch, "open", freeze)
    body = await stage.alice.error(READ, root.txn, root.grant)
    monkeypatch.undo()
    await stage.arena.silent(stage.files)
    assert (body.code, body.effect) == ("DEADLINE_EXCEEDED", "none")
    assert stage.files.work(root.txn) == []


async def test_in_the_last_second_of_a_call_it_is_late_and_its_grant_not_called_bad(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = await stage.arena.lab.grant("alice", READ)

    def wait() -> None:
        monkeypatch.setattr(type(stage.ports.clock), "now", lambda self: time.time() + 3)

    when(stage, monkeypatch, "approve", wait)
    body = await stage.alice.error(READ, root.txn, root.grant, want={"ttl_ms": 2000})
    monkeypatch.undo()
    assert (body.code, body.rule, body.effect) == ("DEADLINE_EXCEEDED", "open.deadline", "none")
    assert await stage.arena.kinds(root.txn) == ["txn.opened"]


async def test_what_cannot_be_recorded_is_not_released(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller hears the end of its hop only after that end is durable."""
    root = await stage.arena.lab.grant("alice", READ)

    def lose() -> None:
        def turn(*_: Any, **__: Any) -> Any:
            raise RuntimeError("the ledger is gone")

        monkeypatch.setattr(type(stage.ports.ledger), "turn", turn)

    when(stage, monkeypatch, "inspect_result", lose)
    frames = await stage.alice.call(READ, root.txn, root.grant)
    monkeypatch.undo()
    assert (error_of(frames).code, error_of(frames).effect) == ("INTERNAL", "unknown")
    assert SECRET_ANSWER not in str(frames)


async def test_after_all_of_this_an_honest_call_passes(stage: Stage) -> None:
    root = await stage.arena.lab.grant("alice", READ)
    assert isinstance((await stage.alice.call(READ, root.txn, root.grant))[-1], Result)


async def test_a_close_that_has_begun_is_finished_although_its_task_is_cancelled() -> None:
    begun, going_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def close() -> str:
        begun.set()
        await going_on.wait()
        ended.set()
        return "closed"

    waiting = asyncio.ensure_future(_shielded(close()))
    await begun.wait()
    waiting.cancel()
    await asyncio.sleep(0)
    going_on.set()
    with suppress(asyncio.CancelledError):
        assert await waiting == "closed"
    assert ended.is_set()
