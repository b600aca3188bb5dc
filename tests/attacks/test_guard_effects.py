"""What stands between a decision and its effect, and between an effect and its answer: tried by changing the world there."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from remit_broker.core.policy import undecided
from remit_broker.hop.pipeline import _shielded
from remit_schemas.budget import Budget
from remit_schemas.envelope import Progress, Result
from remit_schemas.errors import Code, refusal
from tests.support.raw import Arena, RawAgent, Taken, error_of, tool

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


def trips(*_: Any) -> Any:
    raise refusal(Code.LEDGER_UNAVAILABLE, "the ledger hiccups", rule="test.hiccup", retry_after=1.0)


async def test_a_result_that_cannot_be_inspected_is_charged_and_not_to_be_retried(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is done when the ledger hiccups: whoever did it again would pay and act twice."""
    root = await stage.arena.lab.grant("alice", READ, budget="usd=10,calls=10")
    stage.files.handlers["read"] = lambda taken: taken.done(SECRET_ANSWER, cost=Budget(3_000_000, 0, 0))
    monkeypatch.setattr("remit_broker.hop.inspect_result.at_the_end", trips)
    body = await stage.alice.error(
        READ, root.txn, root.grant, want={"budget": {"usd_micros": 5_000_000, "tokens": 0, "calls": 2}}
    )
    monkeypatch.undo()
    stage.files.handlers["read"] = lambda taken: taken.done(SECRET_ANSWER)
    assert (body.code, body.effect, body.retryable, body.retry_after) == ("LEDGER_UNAVAILABLE", "happened", False, None)
    closed = (await stage.arena.lab.records(root.txn))[-1]
    assert (closed["outcome"], closed["effect"], closed["spent"]["usd_micros"]) == ("error", "happened", 3_000_000)


async def test_a_refusal_after_the_dispatch_is_not_to_be_retried(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An early frame cannot be judged: whether the callee has done anything by then is not known."""
    root = await stage.arena.lab.grant("alice", READ)

    async def speaks(taken: Taken) -> None:
        await taken.say(Progress(message="half way"))

    stage.files.handlers["read"] = speaks
    monkeypatch.setattr("remit_broker.hop.inspect_result.at_the_end", trips)
    body = await stage.alice.error(READ, root.txn, root.grant)
    monkeypatch.undo()
    stage.files.handlers["read"] = lambda taken: taken.done(SECRET_ANSWER)
    assert (body.code, body.effect, body.retryable) == ("LEDGER_UNAVAILABLE", "unknown", False)


async def test_nobody_there_is_no_effect(stage: Stage) -> None:
    """What nobody listened to may be tried again."""
    ghost = await stage.arena.agent("ghost", "mcp")
    await ghost.serve(tool("read"))
    await ghost.nc.close()
    root = await stage.arena.lab.grant("alice", "mcp/ghost/read")
    body = await stage.alice.error("mcp/ghost/read", root.txn, root.grant)
    assert (body.code, body.effect, body.retryable) == ("TARGET_UNAVAILABLE", "none", True)


async def test_a_frame_that_redaction_makes_too_long_is_withheld(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A placeholder may be longer than the secret; the hop and its result are not lost for that."""
    root = await stage.arena.lab.grant("alice", READ)
    secret = "password: 'Tr0ub4dor&3' "

    async def speaks(taken: Taken) -> None:
        await taken.say(Progress(message=secret + "x" * (4096 - len(secret))))
        await taken.done(SECRET_ANSWER)

    stage.files.handlers["read"] = speaks
    engine = type(stage.ports.policy)
    decide = engine.decide

    def redacting(self: Any, request: Any) -> Any:
        return msgspec.structs.replace(decide(self, request), redact=("secret",))

    monkeypatch.setattr(engine, "decide", redacting)
    frames = await stage.alice.call(READ, root.txn, root.grant)
    monkeypatch.undo()
    stage.files.handlers["read"] = lambda taken: taken.done(SECRET_ANSWER)
    [early] = [frame for frame in frames if isinstance(frame, Progress)]
    assert early.message.startswith("withheld") and "Tr0ub" not in early.message
    assert isinstance(frames[-1], Result) and frames[-1].value == SECRET_ANSWER


async def test_a_large_value_is_searched_aside(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop goes on meanwhile: for other hops, and for the heartbeat without which this replica refuses."""
    root = await stage.arena.lab.grant("alice", READ)
    detectors = type(stage.ports.detectors)
    scan = detectors.scan
    aside: set[tuple[bool, bool]] = set()

    def watched(self: Any, value: Any) -> Any:
        aside.add((len(str(value)) > 260_000, threading.current_thread() is not threading.main_thread()))
        return scan(self, value)

    monkeypatch.setattr(detectors, "scan", watched)
    stage.files.handlers["read"] = lambda taken: taken.done("y" * 300_000 if taken.dispatch.args else SECRET_ANSWER)
    await stage.alice.result(READ, root.txn, root.grant)
    await stage.alice.result(READ, root.txn, root.grant, {"text": "x" * 300_000})
    monkeypatch.undo()
    stage.files.handlers["read"] = lambda taken: taken.done(SECRET_ANSWER)
    assert aside == {(False, False), (True, True)}


async def test_what_takes_long_to_search_counts_as_more_calls(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small requests and answers that are slow to search use up the rate of whoever makes the calls."""
    root = await stage.arena.lab.grant("alice", READ, budget="calls=100")
    detectors, charged = type(stage.ports.detectors), []
    late = 0.0

    def slow(self: Any, value: Any) -> Any:
        nonlocal late
        late += 0.040
        return ()

    monkeypatch.setattr(stage.ports.room, "processor", lambda: time.thread_time() + late)
    monkeypatch.setattr(detectors, "scan", slow)
    monkeypatch.setattr(type(stage.ports.rates), "charge", lambda self, who, weight: charged.append((who, weight)))
    await stage.alice.result(READ, root.txn, root.grant)
    monkeypatch.undo()
    assert {who for who, _ in charged} == {"alice"}
    assert len(charged) == 2 and all(weight >= 40 for _, weight in charged)
