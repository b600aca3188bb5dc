"""The kill switch against the running broker: agents, users, tools and everything, on every replica, with who and why."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest

from remit_broker.core.revocations import Entry, What
from remit_broker.hop.txn import Opened
from remit_broker.testing import Lab
from remit_schemas.envelope import Accepted, Error, Result, Started
from remit_schemas.errors import Code, ErrorBody, Refusal
from tests.attacks.test_budget_race import known, two_replicas
from tests.support.raw import Arena, RawAgent, Taken, arena_on, error_of, skill, tool

READ = "mcp/files/read"
HELP = "agent/helper/help"


@pytest.fixture
async def arena(lab: Lab) -> AsyncIterator[Arena]:
    async with arena_on(lab) as running:
        yield running


async def say(lab: Lab, kind: What, name: str, state: Any = "revoked", why: str = "a drill") -> None:
    at = "2026-01-01T00:00:00.000Z"
    await lab.broker.revocations.put(Entry(kind=kind, name=name, who="ops", at=at, why=why, state=state))


async def cast(arena: Arena) -> tuple[RawAgent, RawAgent, Opened]:
    """Alice, a server of one tool that answers, and a task of Ann's with Alice."""
    alice, files = await arena.agent("alice"), await arena.agent("files", "mcp")

    async def answer(taken: Taken) -> None:
        await taken.done("x")

    files.handlers["read"] = answer
    await files.serve(tool("read"))
    return alice, files, await arena.lab.grant("alice", "mcp/**", "agent/**")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.01)


def not_begun(body: ErrorBody, code: str, rule: str) -> None:
    assert (body.code, body.rule, body.effect, body.retryable) == (code, rule, "none", False), body
    assert body.message and body.ask


@pytest.mark.parametrize(
    ("kind", "name", "code"),
    [
        ("user", "ann", "GRANT_REVOKED"), ("agent", "files", "POLICY_DENIED"), ("tool", READ, "POLICY_DENIED"),
        ("tool", "mcp/files/*", "POLICY_DENIED"), ("tool", "mcp/**", "POLICY_DENIED"),
    ],
)  # fmt: skip
async def test_what_is_revoked_is_refused_until_it_is_reinstated(
    arena: Arena, kind: What, name: str, code: str
) -> None:
    alice, files, root = await cast(arena)
    await say(arena.lab, kind, name)
    body = await alice.error(READ, root.txn, root.grant)
    not_begun(body, code, f"revoked.{kind}")
    record = await arena.refused.until(hop=body.hop)
    assert record["cause"] == "ops at 2026-01-01T00:00:00.000Z: a drill", (
        "who and why are in the record, not the answer"
    )
    assert "a drill" not in body.message + body.ask
    assert files.work(root.txn) == []
    await say(arena.lab, kind, name, "reinstated")
    if kind == "agent":  # its connection was cut
        again = await arena.agent("files", "mcp")
        again.handlers["read"] = files.handlers["read"]
        await again.serve(tool("read"))
    await alice.result(READ, root.txn, root.grant)


async def test_a_revocation_stops_nothing_else(arena: Arena) -> None:
    alice, _, root = await cast(arena)
    await arena.agent("bob")
    for kind, name in (("agent", "bob"), ("user", "bert"), ("tool", "mcp/files/write"), ("tool", "agent/**")):
        await say(arena.lab, kind, name)  # type: ignore[arg-type]
    await alice.result(READ, root.txn, root.grant)


async def test_a_revoked_agent_is_refused_at_every_replica(tmp_path: Path) -> None:
    """Revoked at one replica; the other one's next call refuses too. The connection is kept, so that only the mark stands there."""
    async with two_replicas(tmp_path) as (first, second), arena_on(first) as arena:
        alice, files, root = await cast(arena)
        await known(first, second)
        for lab in (first, second):
            lab.broker.revocations._heard.clear()  # nobody cuts anything
        await say(first, "agent", "alice")
        async with asyncio.timeout(2):
            await until(lambda: second.broker.revocations.of("default").agent("alice") is not None)
        bodies = [await alice.error(READ, root.txn, root.grant) for _ in range(16)]
        assert {(body.code, body.rule) for body in bodies} == {("GRANT_REVOKED", "revoked.agent")}
        records = [await arena.refused.until(hop=bodies[0].hop)]
        assert records and files.work(root.txn) == []
        await until(lambda: {r["by"] for r in arena.refused.records} == {first.broker.replica, second.broker.replica})


async def test_nobody_acts_below_a_revoked_agent(arena: Arena) -> None:
    alice, files, root = await cast(arena)
    helper = await arena.agent("helper")
    await helper.serve(skill("help"))
    running = asyncio.ensure_future(alice.call(HELP, root.txn, root.grant))
    taken = await helper.took(root.txn)
    arena.lab.broker.revocations._heard.clear()  # the running hop goes on, so that only its grant is asked
    await say(arena.lab, "agent", "alice")
    not_begun(await helper.error(READ, root.txn, taken.grant), "GRANT_REVOKED", "revoked.agent")
    assert files.work(root.txn) == []
    running.cancel()


async def test_a_revoked_agents_connection_is_cut_and_it_cannot_come_back(arena: Arena) -> None:
    lab = arena.lab
    alice, files, _ = await cast(arena)
    twin = await arena.agent("alice")
    await say(lab, "agent", "alice")
    await until(lambda: alice.nc.is_closed and twin.nc.is_closed)
    assert not files.nc.is_closed, "nobody else is cut"
    with pytest.raises(nats.errors.Error):
        await RawAgent(lab, "alice", "agent").connect()
    await say(lab, "agent", "alice", "reinstated")
    await (await RawAgent(lab, "alice", "agent").connect()).close()


async def test_a_connection_let_in_just_before_the_mark_is_cut_too(arena: Arena) -> None:
    """Nothing cuts at the mark itself; the later looks find who was being let in then."""
    lab = arena.lab
    await lab.agent("late")
    heard, lab.broker.revocations._heard = lab.broker.revocations._heard, []
    await say(lab, "agent", "late")
    revoked = lab.broker.revocations.revoked_in("default").last.pop(("agent", "late"))
    late = await arena.agent("late")
    lab.broker.revocations.revoked_in("default").apply(revoked)
    for tell in heard:
        tell(revoked)
    await until(lambda: late.nc.is_closed)


@pytest.mark.parametrize(
    ("kind", "name", "rule"),
    [
        ("agent", "helper", "revoked.agent"), ("agent", "alice", "revoked.agent"), ("user", "ann", "revoked.user"),
        ("tool", "agent/helper/*", "revoked.tool"), ("all", "everything", "paused"),
    ],
)  # fmt: skip
async def test_running_work_is_cancelled_and_its_hop_closed(arena: Arena, kind: What, name: str, rule: str) -> None:
    lab = arena.lab
    alice, _, root = await cast(arena)
    helper = await arena.agent("helper")
    await helper.serve(skill("help"))
    told: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def stop(message: Any) -> None:
        told.set_result(message.data)

    running = asyncio.ensure_future(alice.call(HELP, root.txn, root.grant, want={"ttl_ms": 60_000}))
    taken = await helper.took(root.txn)
    ctl = f"_INBOX_helper.{helper.connection}.ctl.{root.txn}.{taken.dispatch.hop}"
    await helper.nc.subscribe(ctl, cb=stop)
    await taken.say(Started(connection=helper.connection))
    await helper.nc.flush()
    with contextlib.ExitStack() as stack:
        # The word to the callee is what is looked at here, so its connection is not cut under it.
        cutter = pytest.MonkeyPatch()
        stack.callback(cutter.undo)
        cutter.setattr("remit_broker.adapters.kick.Cutter.cut", lambda *_: None)
        await say(lab, kind, name)
        async with asyncio.timeout(5):
            assert await told == b'{"cancel":true}'
            frames = await running
    body = error_of(frames)
    assert (body.code, body.rule, body.effect) == ("CANCELLED", rule, "unknown")
    closed = (await lab.records(root.txn))[-1]
    assert (closed["kind"], closed["outcome"], closed["rule"]) == ("hop.closed", "cancelled", rule)


async def test_what_is_revoked_between_opening_and_dispatch_is_not_sent(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = arena.lab
    alice, files, root = await cast(arena)
    revocations = lab.broker.revocations

    class AfterOpen:
        def hit(self, name: str) -> None:
            if name == "open":
                revocations.revoked_in("default").apply(Entry(kind="tool", name=READ, who="ops", at=""))

    monkeypatch.setattr(type(lab.broker.ports.failpoints), "hit", AfterOpen.hit)
    frames = await alice.call(READ, root.txn, root.grant)
    not_begun(error_of(frames), "POLICY_DENIED", "revoked.tool")
    assert isinstance(frames[0], Accepted | Error)
    records = await lab.records(root.txn)
    assert [record["kind"] for record in records] == ["txn.opened", "hop.opened", "hop.closed"]
    await arena.silent(files)
    assert files.work(root.txn) == []


async def test_a_record_names_the_revocations_it_was_decided_under(arena: Arena) -> None:
    alice, _, root = await cast(arena)
    await alice.result(READ, root.txn, root.grant)
    await say(arena.lab, "user", "bert")
    await alice.result(READ, root.txn, root.grant)
    opened = [r for r in await arena.lab.records(root.txn) if r["kind"] == "hop.opened"]
    assert [r["epochs"].get("revocations", 0) for r in opened] == [0, arena.lab.broker.revocations.revision]


@pytest.mark.parametrize("part", ["hears nothing", "says nothing"])
async def test_a_replica_that_cannot_hear_refuses(arena: Arena, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    lab = arena.lab
    alice, files, root = await cast(arena)
    revocations = lab.broker.revocations
    mirror, beat = revocations.tasks
    stopped = mirror if part == "hears nothing" else beat
    stopped.cancel()
    await asyncio.wait([stopped])
    await alice.result(READ, root.txn, root.grant)
    before = revocations._clock.monotonic
    monkeypatch.setattr(
        type(revocations._clock), "monotonic", lambda self: before() + (0 if self is not revocations._clock else 2.5)
    )
    if part == "hears nothing":
        assert not beat.done()
    body = await alice.error(READ, root.txn, root.grant)
    assert (body.code, body.rule, body.effect, body.retryable) == (
        Code.LEDGER_UNAVAILABLE,
        "revocations.silence",
        "none",
        True,
    )
    with pytest.raises(Refusal, match="two seconds"):
        await lab.grant("alice", "mcp/**")
    assert "revocations" in lab.broker.health.problems()
    assert len(files.work(root.txn)) == 1
    monkeypatch.undo()


async def test_another_replicas_heartbeat_says_nothing_about_this_ones_watch(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (first, second):
        beat = second.broker.revocations.tasks[1]
        beat.cancel()
        await asyncio.wait([beat])
        at = second.broker.revocations._beaten
        seen, first_at = second.broker.revocations._seen_seq, first.broker.revocations._beaten
        await until(lambda: second.broker.revocations._seen_seq > seen and first.broker.revocations._beaten > first_at)
        assert second.broker.revocations._beaten == at


async def test_a_pause_stops_everything_and_the_status_says_so(arena: Arena) -> None:
    lab = arena.lab
    alice, files, root = await cast(arena)
    assert (await lab.broker.health.status())["paused"] is None
    await say(lab, "all", "everything")
    not_begun(await alice.error(READ, root.txn, root.grant), "POLICY_DENIED", "paused")
    with pytest.raises(Refusal) as no:
        await lab.grant("alice", "mcp/**")
    not_begun(no.value.body, "POLICY_DENIED", "paused")
    assert (await lab.broker.health.status())["paused"]["why"] == "a drill"
    assert files.work(root.txn) == []
    await alice.result("remit/txn/close", root.txn, root.grant)  # letting go is always possible
    await say(lab, "all", "everything", "reinstated")
    again = await lab.grant("alice", "mcp/**")
    await alice.result(READ, again.txn, again.grant)


@pytest.mark.parametrize(("kind", "name"), [("user", "ann"), ("agent", "alice")])
async def test_no_task_is_opened_for_what_is_revoked(arena: Arena, kind: What, name: str) -> None:
    await cast(arena)
    await say(arena.lab, kind, name)
    with pytest.raises(Refusal) as no:
        await arena.lab.grant("alice", "mcp/**")
    not_begun(no.value.body, "POLICY_DENIED", f"revoked.{kind}")


async def test_a_revoked_agent_attaches_nothing(arena: Arena) -> None:
    alice, _, _ = await cast(arena)
    arena.lab.broker.revocations._heard.clear()
    await say(arena.lab, "agent", "alice")
    not_begun(error_of(await alice.attach(skill("new"))), "POLICY_DENIED", "revoked.agent")


async def test_an_entry_nobody_can_read_stops_everything(arena: Arena) -> None:
    revocations = arena.lab.broker.revocations
    await revocations._bucket.put("agent.0", b'{"kind":"tenant"}')
    await until(lambda: revocations.paused is not None)


async def test_revocations_are_there_after_a_restart(tmp_path: Path) -> None:
    from remit_broker.testing import running_broker

    async with running_broker(tmp_path) as lab:
        await lab.agent("alice")
        await say(lab, "agent", "alice")
    async with running_broker(tmp_path) as lab:
        entry = lab.broker.revocations.of("default").agent("alice")
        assert entry is not None and entry.who == "ops"


async def test_what_runs_below_a_revoked_grant_is_cancelled_at_every_replica(tmp_path: Path) -> None:
    """Revoked through the second replica's API; the hops run on whichever replica took them."""
    async with two_replicas(tmp_path) as (first, second), arena_on(first) as arena:
        alice, _, root = await cast(arena)
        await known(first, second)
        helper = await arena.agent("helper")
        await helper.serve(skill("help"))
        await known(first, second)
        other = await first.grant("alice", "agent/**")
        little = {"budget": {"usd_micros": 0, "tokens": 0, "calls": 1}}
        running = [asyncio.ensure_future(alice.call(HELP, root.txn, root.grant, want=little)) for _ in range(8)]
        spared = asyncio.ensure_future(alice.call(HELP, other.txn, other.grant))
        await helper.took(root.txn, 8)
        untouched = await helper.took(other.txn)
        token = {"Authorization": f"Bearer {second.broker.keys.local_token}"}
        async with httpx.AsyncClient(base_url=second.broker.http, headers=token, trust_env=False) as http:
            told = await http.post("/api/revocations", json={"txn": root.txn, "why": "enough"})
            assert told.status_code == 200, told.text
        async with asyncio.timeout(5):
            ends = [error_of(frames) for frames in await asyncio.gather(*running)]
        assert {(body.code, body.rule, body.effect) for body in ends} == {("CANCELLED", "grant.revoked", "unknown")}
        replicas = {taken.dispatch.replica for taken in helper.work(root.txn)}
        assert replicas == {first.broker.replica, second.broker.replica}
        await untouched.done()
        assert isinstance((await spared)[-1], Result)
