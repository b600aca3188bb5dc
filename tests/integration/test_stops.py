"""Stopping a whole tenant, running descendants on every replica, and the chain of records of who did it and why."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import nats
import pytest

from remit_broker.adapters.admin_stream import STREAM, AdminStream
from remit_broker.adapters.jetstream import JetStream, Unreachable
from remit_broker.core.admin import broken
from remit_broker.core.revocations import Entry
from remit_broker.hop.txn import Opened, revoke
from remit_broker.testing import Lab, running_broker
from remit_schemas.envelope import Error
from remit_schemas.errors import Refusal, refusal
from remit_schemas.grant import parse
from tests.attacks.test_budget_race import everything, known, two_replicas
from tests.support.raw import Arena, RawAgent, arena_on, error_of, skill, tool

READ = "mcp/files/read"
HELP = "agent/helper/help"
LITTLE = {"budget": {"usd_micros": 0, "tokens": 0, "calls": 5}}


@pytest.fixture
async def arena(lab: Lab) -> AsyncIterator[Arena]:
    async with arena_on(lab) as running:
        yield running


async def asked(lab: Lab, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    token = {"Authorization": f"Bearer {lab.broker.keys.local_token}"}
    async with httpx.AsyncClient(base_url=lab.broker.http, headers=token, trust_env=False) as http:
        return await http.request(method, path, json=body)


async def told(lab: Lab, path: str, **body: Any) -> dict[str, Any]:
    answer = await asked(lab, "POST", path, body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.01)


async def cast(arena: Arena) -> tuple[RawAgent, RawAgent, RawAgent, Opened]:
    """Alice, a helper that calls a tool which takes its time, and a task of Ann's with Alice."""
    alice, helper = await arena.agent("alice"), await arena.agent("helper")
    files = await arena.agent("files", "mcp")
    await files.serve(tool("read"))
    await helper.serve(skill("help"))
    return alice, helper, files, await arena.lab.grant("alice", "mcp/**", "agent/**")


async def deep(alice: RawAgent, helper: RawAgent, files: RawAgent, root: Opened) -> list[asyncio.Task[Any]]:
    """A chain of two hops that runs: Alice waits for the helper, the helper for the tool."""
    outer = asyncio.create_task(alice.call(HELP, root.txn, root.grant, want=LITTLE))
    taken = await helper.took(root.txn, len(helper.work(root.txn)) + 1)
    inner = asyncio.create_task(helper.call(READ, root.txn, taken.grant))
    await files.took(root.txn, len(files.work(root.txn)) + 1)
    return [outer, inner]


STOPPED: dict[str, tuple[dict[str, Any], str]] = {
    "agent at the top": ({"agent": "alice"}, "revoked.agent"),
    "agent in the middle": ({"agent": "helper"}, "revoked.agent"),
    "server at the end": ({"agent": "files"}, "revoked.agent"),
    "user": ({"user": "ann"}, "revoked.user"),
    "tool": ({"tool": "mcp/files/*"}, "revoked.tool"),
    "tenant": ({"tenant": "default"}, "revoked.tenant"),
    "everything": ({"all": True}, "paused"),
    "txn": ({"txn": ""}, "grant.revoked"),
    "grant": ({"grant": ""}, "grant.revoked"),
}


@pytest.mark.parametrize("what", STOPPED)
async def test_running_descendants_end_at_every_replica_with_who_and_why(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revoked through the second replica; the chains run on whichever took them, and each ends down to the tool."""
    wish, rule = STOPPED[what]
    # Connections are not cut here: it is the hops that are looked at.
    monkeypatch.setattr("remit_broker.adapters.kick.Cutter.cut", lambda *_: None)
    async with two_replicas(tmp_path) as (first, second), arena_on(first) as arena:
        alice, helper, files, root = await cast(arena)
        await known(first, second)
        wish = {key: value if value != "" else root.txn if key == "txn" else jti(root) for key, value in wish.items()}
        running = [task for _ in range(6) for task in await deep(alice, helper, files, root)]
        both = {first.broker.replica, second.broker.replica}
        # The server draws which replica takes a call: until each has some.
        while {taken.dispatch.replica for taken in files.work(root.txn)} != both:
            assert len(running) < 36, "one replica did it all"
            running += await deep(alice, helper, files, root)
        said = await told(second, "/api/revocations", **wish, why="a drill")
        # Where only the tool is stopped, the helper's own work goes on.
        stopped = running[1::2] if what in ("tool", "server at the end") else running
        async with asyncio.timeout(5):
            ends = [error_of(frames) for frames in await asyncio.gather(*stopped)]
        for taken in helper.work(root.txn):
            await taken.done()
        await asyncio.gather(*running)
        assert {body.code for body in ends} == {"CANCELLED"} and rule in {body.rule for body in ends}
        records = await everything(first, second, root.txn)
        closed = {r["hop"]: r for r in records if r["kind"] == "hop.closed"}
        ran = [r for r in records if r["kind"] == "hop.opened" and r["resource"] == READ]
        assert len(ran) == len(running) // 2 and all(closed[r["hop"]]["outcome"] == "cancelled" for r in ran)
        if rule == "grant.revoked":
            recorded = next(r for r in records if r["kind"] == "grant.revoked")
        else:
            recorded = (await asked(first, "GET", "/api/revocations")).json()["history"][-1]
            assert recorded["hash"] == said["hash"]
        assert recorded["who"].startswith("local:") and recorded["why"] == "a drill"


def jti(root: Opened) -> str:
    return parse(root.grant).claims.jti


async def test_a_revoked_tenant_is_stopped_whole_and_reinstated_by_name(arena: Arena) -> None:
    lab = arena.lab
    alice, helper, files, root = await cast(arena)
    files.handlers["read"] = lambda taken: taken.done("x")
    await alice.result(READ, root.txn, root.grant)
    heard, lab.broker.revocations._heard = lab.broker.revocations._heard, []
    entry = await told(lab, "/api/revocations", tenant="default", why="a leak")
    assert (entry["revoked"], entry["kind"], entry["name"]) == ("tenant default", "tenant", "default")
    for refused in (await alice.error(READ, root.txn, root.grant), error_of(await helper.attach(skill("help")))):
        assert (refused.code, refused.rule, refused.effect) == ("POLICY_DENIED", "revoked.tenant", "none")
        assert "remit reinstate --tenant" in refused.ask
    with pytest.raises(Refusal) as no:
        await lab.grant("alice", "mcp/**")
    assert no.value.body.rule == "revoked.tenant"
    for tell in heard:
        tell(Entry(kind="tenant", name="default", who="ops", at=""))
    lab.broker.revocations._heard = heard
    await until(lambda: alice.nc.is_closed and helper.nc.is_closed and files.nc.is_closed)
    with pytest.raises(nats.errors.Error):
        await RawAgent(lab, "alice", "agent").connect()
    assert lab.broker.nats.bus.is_connected, "the broker's own connection is nobody's of the tenant"
    await told(lab, "/api/revocations/reinstate", tenant="default", why="closed")
    again, files = await RawAgent(lab, "alice", "agent").connect(), await arena.agent("files", "mcp")
    files.handlers["read"] = lambda taken: taken.done("x")
    await files.serve(tool("read"))
    await again.result(READ, root.txn, root.grant)
    await again.close()


async def test_what_is_open_in_a_revoked_tenant_can_be_closed(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remit_broker.adapters.kick.Cutter.cut", lambda *_: None)
    alice, _, _, root = await cast(arena)
    await told(arena.lab, "/api/revocations", tenant="default")
    await alice.result("remit/txn/close", root.txn, root.grant)


async def test_a_hop_that_opens_just_before_its_grant_is_revoked_is_cancelled(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of the revocation comes after the opening, its announcement before anybody listens for the hop."""
    lab = arena.lab
    alice, _, files, root = await cast(arena)

    async def same_world(*_: Any) -> None:
        await revoke("default", jti(root), "ops", "late", lab.broker.ports)
        await lab.broker.revocations.announce("default", jti(root))
        await until(lambda: root.txn in lab.broker.ports.bus._suspect)  # type: ignore[attr-defined]

    monkeypatch.setattr("remit_broker.hop.dispatch.same_world", same_world)
    frames = await alice.call(READ, root.txn, root.grant)
    assert (error_of(frames).code, error_of(frames).rule) == ("CANCELLED", "grant.revoked")
    kinds = [record["kind"] for record in await lab.records(root.txn)]
    assert kinds == ["txn.opened", "hop.opened", "grant.revoked", "hop.closed"]
    assert len(files.work(root.txn)) <= 1


@pytest.mark.parametrize("what", ["txn", "grant"])
async def test_a_revocation_through_one_replica_is_in_one_line_with_opens_on_both(tmp_path: Path, what: str) -> None:
    async with two_replicas(tmp_path) as (first, second), arena_on(first) as arena:
        alice, _, files, _ = await cast(arena)
        files.handlers["read"] = lambda taken: taken.done("x")
        await known(first, second)
        took = set()
        for number in range(6):
            root = await first.grant("alice", "mcp/**")
            calls = [asyncio.ensure_future(alice.call(READ, root.txn, root.grant)) for _ in range(12)]
            if number % 2:
                await files.took(root.txn)
            lab = (first, second)[number % 2]
            await told(lab, "/api/revocations", **{what: root.txn if what == "txn" else jti(root)})
            after = await asyncio.gather(*(alice.call(READ, root.txn, root.grant) for _ in range(4)))
            ends = await asyncio.gather(*calls)
            assert {error_of(frames).code for frames in after} == {"GRANT_REVOKED"}
            records = await everything(first, second, root.txn)
            kinds = [record["kind"] for record in records]
            assert "hop.opened" not in kinds[kinds.index("grant.revoked") :]
            codes = {error_of(frames).code for frames in ends if isinstance(frames[-1], Error)}
            assert codes <= {"GRANT_REVOKED", "CANCELLED"}
            took |= {record["by"] for record in records if record["kind"] == "hop.opened"}
        assert took <= {first.broker.replica, second.broker.replica} and took


# The chain of what operators did


async def test_the_history_forgets_nothing_and_is_one_chain_over_all_replicas(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (first, second):
        await first.agent("alice")
        await known(first, second)
        for number in range(40):
            lab = (first, second)[number % 2]
            await told(lab, "/api/revocations", agent="alice", why=f"r{number}")
            await told(lab, "/api/revocations/reinstate", agent="alice", why=f"i{number}")
        labs = (("one", first), ("two", second))
        await asyncio.gather(*(told(lab, "/api/revocations", agent="alice", why=why) for why, lab in labs))
        found = (await asked(second, "GET", "/api/revocations")).json()
        assert found["chain"] == {"records": 82, "broken": None}
        assert [row["why"] for row in found["history"]][:3] == ["r0", "i0", "r1"], "more than a bucket keeps"
        assert {row["record"] for row in found["history"]} == set(range(82))


async def test_an_append_without_an_answer_is_recorded_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    js = JetStream(lab.broker.nats.core)
    admin, publish, lost = AdminStream(js, "default"), js.publish, 2

    async def deaf(*args: Any, **kwargs: Any) -> Any:
        nonlocal lost
        ack = await publish(*args, **kwargs)
        if lost:
            lost -= 1
            raise Unreachable("no answer")
        return ack

    monkeypatch.setattr(js, "publish", deaf)
    for name in ("ann", "bob"):
        await admin.append(Entry(kind="user", name=name, who="ops", at="2026-01-01T00:00:00.000Z"))
    records = await admin.history()
    assert [record.name for record in records] == ["ann", "bob"] and broken(records) is None


async def test_what_was_stopped_and_not_recorded_is_recorded_at_the_next_start(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as lab:
        await lab.agent("alice")
        append = lab.broker.tenants["default"].admin.append

        async def away(entry: Entry) -> Any:
            raise refusal("LEDGER_UNAVAILABLE", "away", rule="admin.stream", ask="")  # type: ignore[arg-type]

        lab.broker.tenants["default"].admin.append = away  # type: ignore[method-assign]
        answer = await asked(lab, "POST", "/api/revocations", {"agent": "alice", "why": "now"})
        body = answer.json()
        assert (body["error"]["rule"], body["error"]["effect"]) == ("revoke.unrecorded", "happened"), body
        assert lab.broker.revocations.of("default").agent("alice") is not None, "it is stopped all the same"
        lab.broker.tenants["default"].admin.append = append  # type: ignore[method-assign]
        assert (await asked(lab, "GET", "/api/revocations")).json()["history"] == []
    for _ in range(2):
        async with running_broker(tmp_path) as lab:
            (row,) = (await asked(lab, "GET", "/api/revocations")).json()["history"]
            assert (row["kind"], row["name"], row["why"]) == ("agent", "alice", "now")


async def test_nothing_is_reinstated_without_a_record(lab: Lab) -> None:
    await lab.agent("alice")
    await told(lab, "/api/revocations", agent="alice")

    async def away(entry: Entry) -> Any:
        raise refusal("LEDGER_UNAVAILABLE", "away", rule="admin.stream", ask="")  # type: ignore[arg-type]

    lab.broker.tenants["default"].admin.append = away  # type: ignore[method-assign]
    answer = await asked(lab, "POST", "/api/revocations/reinstate", {"agent": "alice"})
    assert answer.status_code == 503
    assert lab.broker.revocations.of("default").agent("alice") is not None


async def test_a_changed_record_of_an_operator_is_found(lab: Lab) -> None:
    await lab.agent("alice")
    for _ in range(2):
        await told(lab, "/api/revocations", agent="alice", why="mine")
        await told(lab, "/api/revocations/reinstate", agent="alice")
    records = await lab.broker.tenants["default"].admin.history()
    assert broken(records) is None
    for number in range(4):
        other = msgspec.structs.replace(records[number], why="yours")
        assert (broken([*records[:number], other, *records[number + 1 :]]) or "").startswith(f"#{number}")
        if number < 3:
            assert (broken([*records[:number], *records[number + 1 :]]) or "").startswith(f"#{number}")
    stream = await JetStream(lab.broker.nats.core).api(f"STREAM.INFO.{STREAM}")
    assert stream["config"]["deny_delete"] and stream["config"]["deny_purge"]


async def test_no_agent_reaches_the_records_of_operators(arena: Arena) -> None:
    alice = await arena.agent("alice")
    for verb in ("revoke", "reinstate"):
        body = await alice.error(f"remit/revocations/{verb}", "new", None)
        assert (body.code, body.rule) == ("UNKNOWN_TARGET", "service.unknown")
    ear = await alice.nc.subscribe("admin.>")
    await alice.nc.publish("admin.default", b"{}")
    with contextlib.suppress(TimeoutError, nats.errors.Error):
        await ear.next_msg(0.2)
    await alice.nc.flush()
    assert await arena.lab.broker.tenants["default"].admin.history() == []
    assert any("permissions violation" in error.lower() for error in alice.errors)


async def test_an_unknown_txn_or_grant_is_refused_with_the_nearest(arena: Arena) -> None:
    lab = arena.lab
    await arena.agent("alice")
    root = await lab.grant("alice", "mcp/**")
    nearly = root.txn[:-1] + ("0" if root.txn[-1] != "0" else "1")
    for wish in ({"txn": nearly}, {"grant": jti(root).replace(root.txn, nearly)}):
        answer = await asked(lab, "POST", "/api/revocations", wish)
        body = answer.json()["error"]
        assert body["code"] == "UNKNOWN_TARGET" and root.txn in body["ask"], body
    hop = jti(root).split(".")[1]
    wrong = hop[:-1] + ("0" if hop[-1] != "0" else "1")
    answer = await asked(lab, "POST", "/api/revocations", {"grant": f"{root.txn}.{wrong}.1"})
    body = answer.json()["error"]
    assert body["rule"] == "revoke.unknown" and jti(root) in body["ask"], body
