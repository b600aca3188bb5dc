"""Work that leaves its task: it takes what was moved and nothing more, and no revocation of its user spares it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from remit_broker.adapters.cedar import packaged
from remit_broker.core.fold import fold_all
from remit_broker.core.listing import ChainFilter
from remit_broker.core.revocations import Entry
from remit_broker.hop import label
from remit_broker.hop.txn import Opened, close_txn, revoke
from remit_broker.testing import running_broker
from remit_schemas.budget import ZERO
from remit_schemas.envelope import Accepted, Frame, Result
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.grant import parse
from remit_schemas.scope import Scope
from tests.support.raw import Arena, RawAgent, Taken, arena_on, error_of, skill, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")

READ, BRIEF, REVIEW, FILE = "mcp/files/read", "agent/bob/brief", "agent/carol/review", "agent/dora/file"
HOLD = {"usd_micros": 1000, "tokens": 50, "calls": 5}
HOUR = 3600
MAY_DETACH = """
@id("bob-may-detach")
@reason("Bob's work may go on")
permit (principal, action == Action::"detach", resource)
when { principal in [Agent::"bob", Agent::"carol"] };
"""


class Stage:
    def __init__(self, arena: Arena, **agents: RawAgent) -> None:
        self.arena = arena
        self.alice, self.bob, self.carol, self.dora = (agents[name] for name in ("alice", "bob", "carol", "dora"))

    async def root(self, *scopes: str, **options: Any) -> Opened:
        return await self.arena.lab.grant("alice", *(scopes or ("mcp/**", "agent/**")), **options)

    async def brief(self, root: Opened, **fields: Any) -> tuple[asyncio.Task[list[Frame]], Taken]:
        """Alice calls Bob, who has the call."""
        calling = asyncio.ensure_future(self.alice.call(BRIEF, root.txn, root.grant, **fields))
        return calling, await self.bob.took(root.txn)

    async def detached(self, taken: Taken, resource: str = REVIEW, **fields: Any) -> dict[str, Any]:
        """Bob detaches a call from the hop he works on."""
        fields = {"want": {"budget": HOLD, "ttl_ms": HOUR * 1000}, **fields}
        frames = await taken.callee.call(
            resource, taken.dispatch.txn, taken.grant, {"say": "on"}, detach=True, **fields
        )
        assert isinstance(frames[0], Accepted) and isinstance(frames[-1], Result), frames
        value: dict[str, Any] = frames[-1].value
        return value

    async def end(self, calling: asyncio.Task[list[Frame]], taken: Taken) -> None:
        await taken.done()
        await calling


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    policies = [("default.cedar", packaged("default.cedar")), ("detach.cedar", MAY_DETACH)]
    config = {
        "labels": {"mcp/files/*": ["web"]},
        "caps": {"agent": {"carol": {"hour": "calls=1000"}}, "user": {"capped": {"hour": "calls=4"}}},
    }
    folder = tmp_path_factory.mktemp("detached")
    async with running_broker(folder, config, policies) as lab, arena_on(lab) as arena:
        lab.broker.refusals._window = 0.02
        agents = {name: await arena.agent(name) for name in ("alice", "bob", "carol", "dora")}
        files = await arena.agent("files", "mcp")
        files.handlers["read"] = lambda taken: taken.done("content")
        await files.serve(tool("read"))
        await agents["alice"].serve(skill("plan"))
        await agents["bob"].serve(skill("brief"))
        await agents["carol"].serve(skill("review"), skill("limited", needs=[READ]))
        await agents["dora"].serve(skill("file"))
        yield Stage(arena, **agents)


async def test_nothing_is_detached_unless_policy_permits_it(stage: Stage) -> None:
    root = await stage.root()
    body = await stage.alice.error(REVIEW, root.txn, root.grant, detach=True)
    record = await stage.arena.refused_before_opening(body, "POLICY_DENIED", "policy.default-deny", root.txn)
    assert 'Action::"detach"' in body.ask and "detach" in body.message
    assert record["stage"] == "authorize"


async def test_a_detached_call_outlives_the_task_it_came_from(stage: Stage) -> None:
    root = await stage.root(user="bea")
    calling, bob = await stage.brief(root)
    told = await stage.detached(bob)
    await stage.end(calling, bob)
    await close_txn("default", root.txn, "ops", "closed", stage.arena.lab.broker.ports)
    going = asyncio.ensure_future(stage.bob.call(REVIEW, told["txn"], told["grant"], {"say": "on"}))
    carol = await stage.carol.took(told["txn"])
    claims = parse(carol.grant).claims
    assert (claims.sub, claims.txn, claims.depth) == ("bea", told["txn"], 1)
    await carol.done("reviewed")
    final = (await going)[-1]
    assert isinstance(final, Result) and final.value == "reviewed"


async def test_what_is_detached_is_charged_in_full(stage: Stage) -> None:
    root = await stage.root()
    calling, bob = await stage.brief(root)
    told = await stage.detached(bob)
    records = await stage.arena.lab.records(root.txn)
    opened, closed = records[-2:]
    assert (opened["kind"], opened["resource"], opened["budget"]) == ("hop.opened", REVIEW, HOLD)
    assert (closed["kind"], closed["outcome"], closed["spent"]) == ("hop.closed", "ok", HOLD)
    first = (await stage.arena.lab.records(told["txn"]))[0]
    assert first["budget"] == {**HOLD, "calls": 4}, "the hold less the one call"
    assert first["continues"] == f"{root.txn}.{opened['hop']}"
    assert told["grant"] not in str(records), "no record and no digest tells the grant"
    await stage.end(calling, bob)
    assert fold_all(await stage.arena.lab.records(root.txn)).totals.held == ZERO


async def test_a_detached_task_has_what_was_moved_and_no_more(stage: Stage) -> None:
    root = await stage.root("agent/**", 'mcp/files/read{"path":{"prefix":"docs/"}}', max_depth=3)
    calling, bob = await stage.brief(root)
    told = await stage.detached(bob, want={"budget": HOLD, "ttl_ms": 10**9, "scopes": [{"resource": READ}]})
    held, given = parse(bob.grant), parse(told["grant"])
    claims = given.claims
    assert (claims.sub, claims.aud, claims.depth, claims.act) == ("ann", "bob", 0, None)
    assert claims.exp - claims.iat <= 8 * HOUR
    # Bob was at depth 1 of 3: a call of his would have been at 2, and so it is here at 1 of 2.
    assert claims.max_depth == 2
    scope = Scope.of(claims.authorization_details)
    assert scope <= Scope.of(held.claims.authorization_details)
    assert {detail.resource for detail in scope.details} == {READ, REVIEW}
    body = await stage.bob.error(FILE, told["txn"], told["grant"])
    assert (body.code, body.rule) == ("OUT_OF_SCOPE", "narrow.scope")
    body = await stage.bob.error(READ, told["txn"], told["grant"], {"path": "etc/passwd"})
    assert body.code == "OUT_OF_SCOPE"
    body = await stage.bob.error(REVIEW, told["txn"], told["grant"], want={"budget": {**HOLD, "calls": 5}})
    assert (body.code, body.rule) == ("BUDGET_EXCEEDED", "open.budget")
    await stage.end(calling, bob)


async def test_a_detached_task_keeps_roles(stage: Stage) -> None:
    """It is the same user's, proved in the same way: neither more than before nor less."""
    root = await stage.root(roles=("analyst",), groups=("research",))
    calling, bob = await stage.brief(root)
    told = await stage.detached(bob, want={"budget": HOLD})
    before, after = [(await stage.arena.lab.records(txn))[0] for txn in (root.txn, told["txn"])]
    for name in ("user", "roles", "groups", "issuer", "client", "token"):
        assert after[name] == before[name]
    assert (after["roles"], after["groups"]) == (["analyst"], ["research"])
    await stage.end(calling, bob)


async def test_whoever_stood_above_an_agent_stands_above_what_it_detached(stage: Stage) -> None:
    """For policy, for cycles, for revocations and for the record; and detaching once more does not forget them either."""
    root = await stage.root(user="fay")
    calling, bob = await stage.brief(root)
    told = await stage.detached(bob)
    assert (await stage.arena.lab.records(told["txn"]))[0]["before"] == ["alice"]
    going = asyncio.ensure_future(
        stage.bob.call(REVIEW, told["txn"], told["grant"], want={"budget": {**HOLD, "calls": 4}})
    )
    carol = await stage.carol.took(told["txn"])
    opened = (await stage.arena.lab.records(told["txn"]))[-1]
    assert (opened["depth"], opened["facts"]["depth"], opened["facts"]["actors"]) == (1, 2, ["bob", "alice"])
    body = await stage.carol.error("agent/alice/plan", told["txn"], carol.grant)
    assert (body.code, body.rule) == ("CYCLE", "narrow.cycle")
    again = await stage.detached(carol, FILE, want={"budget": {**HOLD, "calls": 2}})
    assert (await stage.arena.lab.records(again["txn"]))[0]["before"] == ["alice", "bob"]
    said = stage.arena.lab.broker.revocations
    entry = Entry(kind="agent", name="alice", who="ops", at="2026-01-01T00:00:00.000Z", why="")
    said.revoked_in("default").apply(entry)
    bodies = [
        await stage.bob.error(READ, told["txn"], told["grant"]),
        await stage.carol.error(FILE, again["txn"], again["grant"]),
    ]
    said.revoked_in("default").apply(msgspec.structs.replace(entry, state="reinstated"))
    assert [(body.code, body.rule) for body in bodies] == [("GRANT_REVOKED", "revoked.agent")] * 2
    await carol.done()
    await going
    await stage.end(calling, bob)


async def test_more_than_is_left_is_not_moved(stage: Stage) -> None:
    root = await stage.root()
    calling, bob = await stage.brief(root, want={"budget": HOLD})
    body = await stage.bob.error(REVIEW, root.txn, bob.grant, detach=True, want={"budget": HOLD})
    assert (body.code, body.rule) == ("BUDGET_EXCEEDED", "open.budget")
    await stage.detached(bob, want={"budget": {**HOLD, "calls": 4}})
    body = await stage.bob.error(READ, root.txn, bob.grant)
    assert body.code == "BUDGET_EXCEEDED", "moved is gone"
    await stage.end(calling, bob)


async def test_detaching_again_and_again_ends_with_the_depth_and_the_money(stage: Stage) -> None:
    root = await stage.root(max_depth=3)
    calling, bob = await stage.brief(root)
    told = await stage.detached(bob, want={"budget": HOLD})
    going = asyncio.ensure_future(
        stage.bob.call(REVIEW, told["txn"], told["grant"], want={"budget": {**HOLD, "calls": 4}})
    )
    carol = await stage.carol.took(told["txn"])
    again = await stage.detached(carol, FILE, want={"budget": {**HOLD, "calls": 2}})
    claims = parse(again["grant"]).claims
    assert (claims.max_depth, claims.budget.calls) == (1, 1)
    further = asyncio.ensure_future(stage.carol.call(FILE, again["txn"], again["grant"]))
    dora = await stage.dora.took(again["txn"])
    body = await stage.dora.error(READ, again["txn"], dora.grant)
    assert body.code == "DEPTH_EXCEEDED"
    for taken in (dora, carol, bob):
        await taken.done()
    await asyncio.gather(further, going, calling)


async def test_nothing_is_detached_deeper_than_granted(stage: Stage) -> None:
    root = await stage.root(max_depth=1)
    calling, bob = await stage.brief(root)
    body = await stage.bob.error(REVIEW, root.txn, bob.grant, detach=True)
    assert (body.code, body.rule) == ("DEPTH_EXCEEDED", "narrow.depth")
    await stage.end(calling, bob)


@pytest.mark.parametrize(("kind", "name"), [("user", "eve"), ("all", "everything"), ("agent", "carol")])
async def test_a_detached_task_does_not_outlive_a_revocation(stage: Stage, kind: Any, name: str) -> None:
    root = await stage.root(user="eve")
    calling, bob = await stage.brief(root)
    told = await stage.detached(bob)
    await stage.end(calling, bob)
    # The tool of Carol's rather than Carol: her connection is to outlive this test.
    kind, name = ("tool", REVIEW) if kind == "agent" else (kind, name)
    said = stage.arena.lab.broker.revocations
    entry = Entry(kind=kind, name=name, who="ops", at="2026-01-01T00:00:00.000Z", why="")
    await said.put(entry)
    body = await stage.bob.error(REVIEW, told["txn"], told["grant"])
    await said.put(msgspec.structs.replace(entry, state="reinstated"))
    assert body.code in ("GRANT_REVOKED", "POLICY_DENIED") and body.rule in (f"revoked.{kind}", "paused")
    assert stage.carol.work(told["txn"]) == []


async def test_nothing_is_detached_for_what_is_revoked(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Revoked after the opening: no task begins."""
    root = await stage.root(user="eve")
    calling, bob = await stage.brief(root)
    revocations = stage.arena.lab.broker.revocations
    entry = Entry(kind="user", name="eve", who="ops", at="2026-01-01T00:00:00.000Z", why="")

    class AfterOpen:
        def hit(self, name: str) -> None:
            if name == "open":
                revocations.revoked_in("default").apply(entry)

    monkeypatch.setattr(type(stage.arena.lab.broker.ports.failpoints), "hit", AfterOpen.hit)
    body = await stage.bob.error(REVIEW, root.txn, bob.grant, detach=True)
    monkeypatch.undo()
    revocations.revoked_in("default").apply(msgspec.structs.replace(entry, state="reinstated"))
    assert body.code == "GRANT_REVOKED"
    opened, closed = (await stage.arena.lab.records(root.txn))[-2:]
    assert (opened["kind"], closed["kind"], closed["spent"]["calls"]) == ("hop.opened", "hop.closed", 1)
    page = await stage.arena.lab.broker.index.chains("default", ChainFilter(limit=500))
    assert f"{root.txn}.{opened['hop']}" not in {row.continues for row in page.rows}
    await stage.end(calling, bob)


async def test_labels_go_with_the_data(stage: Stage) -> None:
    root = await stage.root()
    calling, bob = await stage.brief(root)
    await stage.bob.result(READ, root.txn, bob.grant)
    told = await stage.detached(bob)
    assert (await stage.arena.lab.records(told["txn"]))[0]["labels"] == ["web"]
    await stage.end(calling, bob)


async def test_a_ledger_that_does_not_answer_leaves_the_hold_charged(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = await stage.root()
    calling, bob = await stage.brief(root)

    async def silent(*_: Any) -> Any:
        raise refusal(Code.LEDGER_UNAVAILABLE, "no answer", rule="ledger.unreachable", ask="later")

    monkeypatch.setattr(stage.arena.lab.broker.ledger, "create", silent)
    frames = await stage.bob.call(REVIEW, root.txn, bob.grant, detach=True, want={"budget": HOLD})
    monkeypatch.undo()
    body = error_of(frames)
    assert (body.code, body.effect, body.retryable) == ("LEDGER_UNAVAILABLE", "unknown", False)
    closed = (await stage.arena.lab.records(root.txn))[-1]
    assert (closed["outcome"], closed["spent"]) == ("error", HOLD)
    await stage.end(calling, bob)


async def test_a_detached_hop_counts_as_one_call_and_its_task_as_it_works(stage: Stage) -> None:
    """The cap of four calls: Alice's call of Bob, the detaching, and then the call itself."""
    root = await stage.root(user="capped")
    calling, bob = await stage.brief(root)
    told = await stage.detached(bob)
    await stage.end(calling, bob)
    going = asyncio.ensure_future(stage.bob.call(REVIEW, told["txn"], told["grant"]))
    await (await stage.carol.took(told["txn"])).done()
    assert isinstance((await going)[-1], Result)
    report = await stage.arena.lab.broker.accounts.report("default")
    used = next(row for row in report if (row["kind"], row["name"]) == ("user", "capped"))
    assert used["spent"]["calls"] == 3 and used["held"].get("calls", 0) == 0


async def test_a_detached_grant_is_of_use_to_its_holder_alone(stage: Stage) -> None:
    root = await stage.root()
    calling, bob = await stage.brief(root)
    told = await stage.detached(bob)
    body = await stage.carol.error(REVIEW, told["txn"], told["grant"])
    assert (body.code, body.rule) == ("GRANT_INVALID", "grant.audience")
    with pytest.raises(Refusal):
        await revoke("default", f"{told['txn']}.{'f' * 16}.1", "ops", "", stage.arena.lab.broker.ports)
    await revoke("default", parse(told["grant"]).claims.jti, "ops", "", stage.arena.lab.broker.ports)
    assert (await stage.bob.error(REVIEW, told["txn"], told["grant"])).code == "GRANT_REVOKED"
    await stage.end(calling, bob)


async def test_a_task_that_has_ended_is_not_read_again_for_its_labels(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = await stage.root()
    calling, bob = await stage.brief(root)
    ended, open_ = [(await stage.detached(bob, want={"budget": {**HOLD, "calls": 2}}))["txn"] for _ in range(2)]
    await close_txn("default", ended, "ops", "closed", stage.arena.lab.broker.ports)
    ledger, read = stage.arena.lab.broker.ledger, []
    newest = ledger.newest

    async def reading(tenant: str, txn: str) -> Any:
        read.append(txn)
        return await newest(tenant, txn)

    monkeypatch.setattr(ledger, "newest", reading)
    await stage.bob.result(READ, root.txn, bob.grant)
    monkeypatch.undo()
    assert open_ in read and ended not in read
    await stage.end(calling, bob)


async def test_an_agent_detaches_no_more_tasks_than_its_calls_can_look_at(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label, "MAX_RELATIVES", 2)
    root = await stage.root()
    calling, bob = await stage.brief(root)
    want = {"budget": {**HOLD, "calls": 2}}
    for _ in range(2):
        await stage.detached(bob, want=want)
    body = await stage.bob.error(REVIEW, root.txn, bob.grant, detach=True, want=want)
    assert (body.code, body.rule) == ("TOO_LARGE", "labels.relatives")
    await stage.bob.result(READ, root.txn, bob.grant)
    await stage.end(calling, bob)
