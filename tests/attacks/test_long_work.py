"""Long work as an attacker would have it: hops that are parked, resumed and renewed, by raw clients with valid credentials."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from remit_broker.core.fold import Fold, fold_all
from remit_broker.core.revocations import Entry
from remit_broker.hop.scan import close_orphans
from remit_broker.hop.txn import Opened, close_txn, revoke
from remit_schemas import subjects
from remit_schemas.budget import Budget
from remit_schemas.envelope import Accepted, Error, Frame, InputRequired, Request, Result, Started, encode
from remit_schemas.errors import Code, refusal
from remit_schemas.grant import parse
from tests.attacks.test_budget_race import everything, known, two_replicas
from tests.support.raw import Arena, RawAgent, Taken, arena_on, error_of, skill, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")

READ, BRIEF, REVIEW = "mcp/files/read", "agent/bob/brief", "agent/carol/review"
HOLD = {"usd_micros": 1000, "tokens": 0, "calls": 5}
ARGS = {"topic": "hops"}
COST = Budget(100, 0, 0)
RENEW = "remit/grant/renew"
CANCEL = b'{"cancel":true}'
AWS = "AKIA" + "Q3EGRIZ7MJ2VKXHD"


class Stage:
    """Alice holds root grants, Bob and Carol wait to be told what to answer, Files answers at once."""

    def __init__(self, arena: Arena, alice: RawAgent, bob: RawAgent, carol: RawAgent, files: RawAgent) -> None:
        self.arena, self.alice, self.bob, self.carol, self.files = arena, alice, bob, carol, files

    async def root(self, *scopes: str, **options: Any) -> Opened:
        return await self.arena.lab.grant("alice", *(scopes or ("mcp/**", "agent/**")), **options)

    async def brief(self, root: Opened, **fields: Any) -> tuple[asyncio.Task[list[Frame]], Taken]:
        """Alice calls Bob, who has the call."""
        fields = {"want": {"budget": HOLD}, **fields}
        calling = asyncio.ensure_future(self.alice.call(BRIEF, root.txn, root.grant, ARGS, **fields))
        return calling, await self.bob.took(root.txn, len(self.bob.work(root.txn)) + 1)

    async def parked(self, root: Opened, cost: Budget | None = None, **fields: Any) -> str:
        """Alice has called Bob, who asks for an input."""
        calling, taken = await self.brief(root, **fields)
        await taken.park(cost=cost)
        final = (await calling)[-1]
        assert isinstance(final, InputRequired), final
        return taken.dispatch.hop

    async def resume(self, root: Opened, hop: str, **fields: Any) -> tuple[asyncio.Task[list[Frame]], Taken]:
        """Alice resumes, and Bob has the input."""
        calling = asyncio.ensure_future(self.ask(root, hop, **fields))
        return calling, await self.bob.took(root.txn, len(self.bob.work(root.txn)) + 1)

    async def ask(
        self, root: Opened, hop: str, by: RawAgent | None = None, resource: str = BRIEF, **fields: Any
    ) -> list[Frame]:
        """A request to resume a hop, whoever makes it."""
        fields = {"args": ARGS, "input": "yes", "want": {"budget": HOLD}, "grant": root.grant, **fields}
        grant, args = fields.pop("grant"), fields.pop("args")
        return await (by or self.alice).call(resource, root.txn, grant, args, resume=hop, **fields)

    async def fold(self, root: Opened) -> Fold:
        return fold_all(await self.arena.lab.records(root.txn))

    async def refused(self, root: Opened, frames: list[Frame], code: str, rule: str) -> None:
        """Refused, recorded, and nothing appended: the last record parked the hop."""
        body = error_of(frames)
        assert (body.code, body.rule) == (code, rule), body
        assert body.ask
        assert (await self.arena.refused.until(hop=body.hop))["code"] == code
        assert (await self.arena.kinds(root.txn))[-1] == "hop.parked"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(arena: Arena) -> Stage:
    alice, bob, carol = [await arena.agent(name) for name in ("alice", "bob", "carol")]
    files = await arena.agent("files", "mcp")
    files.handlers["read"] = lambda taken: taken.done("content")
    await files.serve(tool("read"))
    await bob.serve(skill("brief"), skill("other"))
    await bob.wait_for_input()
    await carol.serve(skill("review"))
    await carol.wait_for_input()
    return Stage(arena, alice, bob, carol, files)


# What parking and resuming is


async def test_a_hop_is_parked_and_resumed_once_per_input(stage: Stage) -> None:
    root = await stage.root()
    hop = await stage.parked(root, COST)
    parked = (await stage.arena.lab.records(root.txn))[-1]
    assert (parked["kind"], parked["cost"]["usd_micros"], parked["spent"]["calls"]) == ("hop.parked", 100, 1)
    assert parked["connection"] == stage.bob.connection and len(parked["request_digest"]) == 64
    left = (await stage.fold(root)).left(parse(root.grant).claims.jti.split(".")[1])
    assert left.usd_micros == parse(root.grant).claims.budget.usd_micros - 100, (
        "the rest of the hold is the caller's again"
    )

    calling, taken = await stage.resume(root, hop, input={"sure": True})
    assert taken.message.subject.startswith(f"_INBOX_bob.{stage.bob.connection}.ctl."), "it goes to who waits"
    assert taken.dispatch.hop == hop and taken.dispatch.args == ARGS
    assert taken.dispatch.resumed == msgspec.convert({"n": 2, "input": {"sure": True}}, type(taken.dispatch.resumed))
    claims = parse(taken.grant).claims
    assert (claims.jti, claims.aud, claims.sub) == (f"{root.txn}.{hop}.2", "bob", "ann")
    assert claims.budget == Budget(**HOLD) and claims.par == parse(root.grant).digest
    assert isinstance((await stage.bob.call(READ, root.txn, taken.grant))[-1], Result)
    await taken.done("finished", Budget(7, 0, 0))
    frames = await calling
    assert frames[0] == Accepted(txn=root.txn, hop=hop, replica=stage.arena.lab.broker.replica)
    final = frames[-1]
    assert isinstance(final, Result) and final.value == "finished"
    assert final.cost is not None and final.cost.usd_micros == 107 and final.cost.calls == 3
    assert await stage.arena.kinds(root.txn) == [
        "txn.opened", "hop.opened", "hop.parked", "hop.resumed", "hop.opened", "hop.closed", "hop.closed",
    ]  # fmt: skip
    fold = await stage.fold(root)
    assert fold.totals.held == Budget(0, 0, 0) and fold.totals.spent.usd_micros == 107


async def test_the_caller_hears_what_is_asked_and_what_it_cost_so_far(stage: Stage) -> None:
    root = await stage.root()
    calling, taken = await stage.brief(root)
    await taken.park({"question": "which one?"}, COST)
    final = (await calling)[-1]
    assert isinstance(final, InputRequired)
    assert final.request == {"question": "which one?"} and final.cost == Budget(100, 0, 1)


async def test_an_input_goes_to_another_connection_where_the_one_that_parked_is_gone(stage: Stage) -> None:
    root = await stage.root()
    elder = await stage.arena.agent("elder")
    await elder.serve(skill("work"))
    calling = asyncio.ensure_future(stage.alice.call("agent/elder/work", root.txn, root.grant, ARGS))
    taken = await elder.took(root.txn)
    await taken.park()
    await calling
    await elder.close()
    younger = await stage.arena.agent("elder")
    await younger.serve(skill("work"))
    resuming = asyncio.ensure_future(stage.ask(root, taken.dispatch.hop, resource="agent/elder/work"))
    again = await younger.took(root.txn)
    assert again.message.subject == "svc.agent.elder.work"
    assert again.dispatch.resumed and again.dispatch.resumed.input == "yes"
    await again.done()
    assert isinstance((await resuming)[-1], Result)
    assert len(younger.work(root.txn)) == 1


async def test_an_input_that_nobody_hears_leaves_the_hop_parked(stage: Stage) -> None:
    root = await stage.root()
    gone = await stage.arena.agent("gone")
    await gone.serve(skill("work"))
    calling = asyncio.ensure_future(stage.alice.call("agent/gone/work", root.txn, root.grant, ARGS))
    taken = await gone.took(root.txn)
    await taken.park()
    await calling
    await gone.close()
    frames = await stage.ask(root, taken.dispatch.hop, resource="agent/gone/work")
    assert (error_of(frames).code, error_of(frames).effect) == ("TARGET_UNAVAILABLE", "none")
    records = await stage.arena.lab.records(root.txn)
    assert [record["kind"] for record in records[-2:]] == ["hop.resumed", "hop.parked"]
    back = await stage.arena.agent("gone")
    await back.serve(skill("work"))
    resuming = asyncio.ensure_future(stage.ask(root, taken.dispatch.hop, resource="agent/gone/work"))
    again = await back.took(root.txn)
    assert again.dispatch.resumed and again.dispatch.resumed.n == 3
    await again.done()
    assert isinstance((await resuming)[-1], Result)


async def test_an_input_that_meets_a_busy_agent_leaves_the_hop_parked(stage: Stage) -> None:
    """The agent has begun nothing and says so: the input is sent once more when there is room."""
    root = await stage.root()
    hop = await stage.parked(root)
    calling, taken = await stage.resume(root, hop)
    busy = refusal(Code.TARGET_UNAVAILABLE, "busy with " + AWS, rule="agent.concurrency", ask="later", retry_after=1.0)
    await taken.say(Error(error=busy.body))
    body = error_of(await calling)
    assert (body.code, body.rule, body.effect) == ("TARGET_UNAVAILABLE", "dispatch.busy", "none")
    records = await stage.arena.lab.records(root.txn)
    assert records[-1]["kind"] == "hop.parked" and AWS not in str(records)
    assert (await stage.fold(root)).totals.held.calls == 2, "two attempts, and nothing of the hold"
    calling, taken = await stage.resume(root, hop)
    await taken.done("finished")
    final = (await calling)[-1]
    assert isinstance(final, Result) and final.value == "finished"


@pytest.mark.parametrize("end", ["no frame", "parts that nobody asked for", "the broker stops"])
async def test_a_callee_is_told_to_stop_whichever_way_its_call_ends(stage: Stage, end: str) -> None:
    root = await stage.root()
    calling, taken = await stage.brief(root)
    await taken.say(Started(connection=stage.bob.connection))
    if end == "no frame":
        await taken.say(b"what?")
    elif end == "the broker stops":
        for task in asyncio.all_tasks():
            if getattr(task.get_coro(), "__name__", "") == "govern":
                task.cancel()
    else:
        await taken.say(b'{"frame":"part","seq":0,"data":"1"}')
    await stage.bob.told_to_stop(taken.dispatch.hop)
    assert error_of(await calling).code in (Code.RESULT_INVALID, Code.CANCELLED)


async def test_a_question_is_handed_up_and_the_answer_down(stage: Stage) -> None:
    """Carol asks Bob, who asks Alice; the answer comes back the same way, and Carol's work was never lost."""
    root = await stage.root()
    calling, bob = await stage.brief(root)
    below = asyncio.ensure_future(stage.bob.call(REVIEW, root.txn, bob.grant, ARGS))
    carol = await stage.carol.took(root.txn)
    await carol.park("which one?")
    assert isinstance((await below)[-1], InputRequired)
    await bob.park("Carol asks which one")
    await calling
    calling, bob = await stage.resume(root, bob.dispatch.hop)
    below = asyncio.ensure_future(
        stage.bob.call(REVIEW, root.txn, bob.grant, ARGS, resume=carol.dispatch.hop, input="the second")
    )
    carol = await stage.carol.took(root.txn, 2)
    assert carol.dispatch.resumed and carol.dispatch.resumed.input == "the second"
    await carol.done("reviewed")
    assert isinstance((await below)[-1], Result)
    await bob.done()
    assert isinstance((await calling)[-1], Result)
    assert (await stage.fold(root)).totals.held == Budget(0, 0, 0)


async def test_what_runs_below_a_parked_hop_is_closed(stage: Stage) -> None:
    root = await stage.root()
    calling, bob = await stage.brief(root)
    below = asyncio.ensure_future(stage.bob.call(REVIEW, root.txn, bob.grant))
    carol = await stage.carol.took(root.txn)
    await bob.park()
    await calling
    records = await stage.arena.lab.records(root.txn)
    assert [(record["kind"], record["hop"]) for record in records[-2:]] == [
        ("hop.closed", carol.dispatch.hop), ("hop.parked", bob.dispatch.hop),
    ]  # fmt: skip
    await carol.done("late")
    assert error_of(await below).code == "CANCELLED"


# By ctl


async def on_ctl(stage: Stage, root: Opened, hop: str, by: RawAgent, **changes: Any) -> list[Frame]:
    request = Request(grant=root.grant, args=ARGS, resume=hop, input="yes")
    subject = subjects.control(by.name, stage.arena.lab.broker.replica, root.txn, hop)
    return await by.ask(subject, encode(msgspec.structs.replace(request, **changes)))


async def test_an_input_may_come_on_ctl(stage: Stage) -> None:
    root = await stage.root()
    hop = await stage.parked(root)
    resuming = asyncio.ensure_future(on_ctl(stage, root, hop, stage.alice))
    taken = await stage.bob.took(root.txn, 2)
    await taken.done()
    assert isinstance((await resuming)[-1], Result)


@pytest.mark.parametrize("changes", [{"resume": "f" * 16}, {"resume": ""}])
async def test_on_ctl_nothing_but_that_hop_is_resumed(stage: Stage, changes: dict[str, Any]) -> None:
    root = await stage.root()
    hop = await stage.parked(root)
    await stage.refused(root, await on_ctl(stage, root, hop, stage.alice, **changes), "MALFORMED", "admit.resume")
    unknown = "f" * 16
    await stage.refused(root, await on_ctl(stage, root, unknown, stage.alice), "OUT_OF_SCOPE", "resume.unknown")


# Who resumes, and what


async def test_nobody_but_the_caller_resumes_a_parked_hop(stage: Stage) -> None:
    root = await stage.root()
    hop = await stage.parked(root)
    other = await stage.root()
    # With another task's grant; as somebody else; with a grant of the same task that is another hop's.
    await stage.refused(root, await stage.ask(root, hop, grant=other.grant), "GRANT_INVALID", "grant.txn")
    await stage.refused(root, await stage.ask(root, hop, by=stage.carol), "GRANT_INVALID", "grant.audience")
    await stage.refused(root, await on_ctl(stage, root, hop, stage.carol), "GRANT_INVALID", "grant.audience")
    calling = asyncio.ensure_future(stage.alice.call(REVIEW, root.txn, root.grant))
    carol = await stage.carol.took(root.txn)
    body = error_of(await stage.ask(root, hop, by=stage.carol, grant=carol.grant))
    assert (body.code, body.rule) == ("OUT_OF_SCOPE", "resume.unknown")
    # Nor the callee itself, in a task of its own or with the dead grant of its hop.
    body = error_of(await stage.ask(root, hop, by=stage.bob, grant=stage.bob.work(root.txn)[0].grant))
    assert (body.code, body.rule) == ("GRANT_CLOSED", "grant.parked")
    await carol.done()
    await calling
    assert (await stage.fold(root)).nodes[hop].state == "parked"


async def test_a_parked_hop_is_resumed_as_what_it_is(stage: Stage) -> None:
    root = await stage.root()
    hop = await stage.parked(root)
    frames = await stage.ask(root, hop, resource="agent/bob/other")
    await stage.refused(root, frames, "OUT_OF_SCOPE", "resume.unknown")
    for unknown in ("f" * 16, parse(root.grant).claims.jti.split(".")[1], "", "x"):
        await stage.refused(root, await stage.ask(root, unknown), "OUT_OF_SCOPE", "resume.unknown")


@pytest.mark.parametrize("args", [{}, {"topic": "others"}, {**ARGS, "more": 1}])
async def test_a_parked_hop_is_not_resumed_with_other_arguments(stage: Stage, args: dict[str, Any]) -> None:
    root = await stage.root()
    hop = await stage.parked(root)
    await stage.refused(root, await stage.ask(root, hop, args=args), "CONFLICT", "resume.arguments")


@pytest.mark.parametrize("fields", [{"input": "yes"}, {"resume": "a" * 16, "detach": True}])
async def test_an_input_belongs_to_a_resumption_and_nothing_is_both(stage: Stage, fields: dict[str, Any]) -> None:
    root = await stage.root()
    body = await stage.alice.error(BRIEF, root.txn, root.grant, ARGS, **fields)
    await stage.arena.refused_before_opening(body, "MALFORMED", "admit.resume", root.txn)


async def test_a_hop_is_resumed_once(stage: Stage) -> None:
    root = await stage.root()
    hop = await stage.parked(root)
    calling, taken = await stage.resume(root, hop)
    body = error_of(await stage.ask(root, hop))
    assert (body.code, body.rule, body.effect) == ("DUPLICATE", "resume.running", "unknown")
    await taken.done()
    await calling
    body = error_of(await stage.ask(root, hop))
    assert (body.code, body.rule) == ("GRANT_CLOSED", "resume.closed")
    assert len(stage.bob.work(root.txn)) == 2


async def test_of_many_that_resume_one_wins(stage: Stage) -> None:
    root = await stage.root()
    hop = await stage.parked(root)
    asks = [asyncio.ensure_future(stage.ask(root, hop)) for _ in range(8)]
    taken = await stage.bob.took(root.txn, 2)
    await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
    await taken.done()
    ends = [(await ask)[-1] for ask in asks]
    assert sum(isinstance(end, Result) for end in ends) == 1
    assert {end.error.code for end in ends if isinstance(end, Error)} <= {"DUPLICATE", "GRANT_CLOSED"}
    assert (await stage.arena.kinds(root.txn)).count("hop.resumed") == 1
    assert len(stage.bob.work(root.txn)) == 2


async def test_of_two_replicas_that_resume_one_wins(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (first, second), arena_on(first) as arena:
        alice, bob = await arena.agent("alice"), await arena.agent("bob")
        await bob.serve(skill("brief"))
        await bob.wait_for_input()
        await known(first, second)
        for _ in range(4):
            root = await first.grant("alice", "agent/**")
            calling = asyncio.ensure_future(alice.call(BRIEF, root.txn, root.grant, ARGS))
            taken = await bob.took(root.txn)
            await taken.park()
            await calling
            hop, before = taken.dispatch.hop, len(bob.work(root.txn))
            request = Request(grant=root.grant, args=ARGS, resume=hop, input="yes", deadline=2**50)
            asks = [
                asyncio.ensure_future(
                    alice.ask(subjects.control("alice", lab.broker.replica, root.txn, hop), encode(request))
                )
                for lab in (first, second)
            ]
            again = await bob.took(root.txn, before + 1)
            await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
            await again.done()
            ends = [(await ask)[-1] for ask in asks]
            assert [type(end) for end in sorted(ends, key=lambda end: isinstance(end, Error))] == [Result, Error]
            assert next(end.error.code for end in ends if isinstance(end, Error)) in ("DUPLICATE", "GRANT_CLOSED")
            kinds = [record["kind"] for record in await everything(first, second, root.txn)]
            assert kinds.count("hop.resumed") == 1 and len(bob.work(root.txn)) == before + 1


# When


async def test_nothing_is_resumed_after_its_task_was_closed(stage: Stage) -> None:
    root = await stage.root()
    hop = await stage.parked(root)
    await close_txn("default", root.txn, "ops", "closed", stage.arena.lab.broker.ports)
    await stage.bob.told_to_stop(hop)
    body = error_of(await stage.ask(root, hop))
    assert body.code == "GRANT_CLOSED"
    assert (await stage.arena.kinds(root.txn))[-2:] == ["hop.closed", "txn.closed"]


async def test_a_parked_hop_ends_with_the_one_above_it(stage: Stage) -> None:
    root = await stage.root()
    calling, bob = await stage.brief(root)
    below = asyncio.ensure_future(stage.bob.call(REVIEW, root.txn, bob.grant))
    carol = await stage.carol.took(root.txn)
    await carol.park()
    await below
    await bob.done()
    await calling
    closed = [record for record in await stage.arena.lab.records(root.txn) if record["kind"] == "hop.closed"]
    assert [(record["hop"], record["outcome"]) for record in closed] == [
        (carol.dispatch.hop, "cancelled"), (bob.dispatch.hop, "ok"),
    ]  # fmt: skip
    await stage.carol.told_to_stop(carol.dispatch.hop)


Stop = Callable[[Stage, Opened, str], Any]


async def _revoke_root(stage: Stage, root: Opened, _: str) -> None:
    await revoke("default", parse(root.grant).claims.jti, "ops", "", stage.arena.lab.broker.ports)


async def _revoke_it(stage: Stage, root: Opened, hop: str) -> None:
    await revoke("default", f"{root.txn}.{hop}.1", "ops", "", stage.arena.lab.broker.ports)


@pytest.mark.parametrize("stop", [_revoke_root, _revoke_it])
async def test_nothing_is_resumed_after_its_grant_was_revoked(stage: Stage, stop: Stop) -> None:
    root = await stage.root()
    hop = await stage.parked(root)
    await stop(stage, root, hop)
    body = error_of(await stage.ask(root, hop))
    assert body.code == "GRANT_REVOKED"
    assert len(stage.bob.work(root.txn)) == 1


@pytest.mark.parametrize(
    ("kind", "name", "code"),
    [("user", "eve", "GRANT_REVOKED"), ("tool", BRIEF, "POLICY_DENIED"), ("all", "everything", "POLICY_DENIED")],
)
async def test_nothing_is_resumed_while_an_operator_stops_it(stage: Stage, kind: Any, name: str, code: str) -> None:
    root = await stage.root(user="eve")
    hop = await stage.parked(root)
    said = stage.arena.lab.broker.revocations
    entry = Entry(kind=kind, name=name, who="ops", at="2026-01-01T00:00:00.000Z", why="a drill")
    await said.put(entry)
    try:
        body = error_of(await stage.ask(root, hop))
    finally:
        await said.put(msgspec.structs.replace(entry, state="reinstated"))
    assert (body.code, body.effect) == (code, "none")
    assert (await stage.arena.kinds(root.txn))[-1] == "hop.parked"
    calling, taken = await stage.resume(root, hop)
    await taken.done()
    assert isinstance((await calling)[-1], Result)


async def test_a_resumption_is_decided_by_the_policy_of_its_time(stage: Stage) -> None:
    """What was permitted when the hop was opened is asked again: a secret in the input does not leave."""
    root = await stage.root()
    hop = await stage.parked(root)
    frames = await stage.ask(root, hop, input={"key": AWS})
    await stage.refused(root, frames, "CONTENT_DENIED", "no-secret-leaves")
    record = await stage.arena.refused.until(hop=error_of(frames).hop)
    assert [finding["where"] for finding in record["findings"]] == ["/input/key"]


async def test_a_target_that_waits_to_be_accepted_is_not_resumed(stage: Stage) -> None:
    root = await stage.root()
    shop = await stage.arena.agent("shop", "mcp")
    await shop.serve(tool("buy"))
    calling = asyncio.ensure_future(stage.alice.call("mcp/shop/buy", root.txn, root.grant, ARGS))
    taken = await shop.took(root.txn)
    await taken.park()
    await calling
    await shop.attach(tool("buy", description="and something else"))
    frames = await stage.ask(root, taken.dispatch.hop, resource="mcp/shop/buy")
    await stage.refused(root, frames, "TARGET_QUARANTINED", "resolve.pin")


# Grants of a hop that is parked or was resumed


async def test_a_grant_is_of_no_use_while_its_hop_is_parked(stage: Stage) -> None:
    root = await stage.root()
    hop = await stage.parked(root)
    grant = stage.bob.work(root.txn)[0].grant
    await stage.refused(root, await stage.bob.call(READ, root.txn, grant), "GRANT_CLOSED", "grant.parked")
    await stage.refused(root, await stage.bob.call(RENEW, root.txn, grant), "GRANT_CLOSED", "grant.parked")
    assert (await stage.fold(root)).nodes[hop].state == "parked"


async def test_the_grant_from_before_a_resumption_is_of_no_use(stage: Stage) -> None:
    root = await stage.root()
    hop = await stage.parked(root)
    old = stage.bob.work(root.txn)[0].grant
    calling, taken = await stage.resume(root, hop)
    for resource in (READ, RENEW):
        body = await stage.bob.error(resource, root.txn, old)
        assert (body.code, body.rule) == ("GRANT_INVALID", "grant.unknown")
    assert isinstance((await stage.bob.call(READ, root.txn, taken.grant))[-1], Result)
    await taken.done()
    await calling


# Money and time


async def test_the_hold_of_a_parked_hop_is_not_spent_twice(stage: Stage) -> None:
    """All the money was held; parked, the caller has the rest again, spends it, and what resumes finds nothing left."""
    root = await stage.root(budget="usd=0.001,calls=20")
    hop = await stage.parked(root, COST)
    calling = asyncio.ensure_future(
        stage.alice.call(REVIEW, root.txn, root.grant, want={"budget": {**HOLD, "usd_micros": 900}})
    )
    carol = await stage.carol.took(root.txn)
    body = error_of(await stage.ask(root, hop))
    assert (body.code, body.rule) == ("BUDGET_EXCEEDED", "open.budget")
    await carol.done(cost=Budget(900, 0, 0))
    await calling
    body = error_of(await stage.ask(root, hop, want={"budget": {**HOLD, "usd_micros": 1}}))
    assert body.code == "BUDGET_EXCEEDED"
    calling, taken = await stage.resume(root, hop, want={"budget": {**HOLD, "usd_micros": 0}})
    await taken.done(cost=Budget(0, 0, 0))
    await calling
    fold = await stage.fold(root)
    assert fold.totals.spent.usd_micros == 1000 and fold.totals.overrun == Budget(0, 0, 0)


async def test_parking_again_and_again_escapes_no_budget(stage: Stage) -> None:
    """Each stretch reports more than it held: all of it is charged, and blocks what it would go on with."""
    root = await stage.root(budget="usd=0.01,calls=20")
    hop = await stage.parked(root, Budget(3000, 0, 0))
    fold = await stage.fold(root)
    assert (fold.nodes[hop].spent.usd_micros, fold.totals.overrun.usd_micros) == (1000, 2000)
    calling, taken = await stage.resume(root, hop)
    body = await stage.bob.error(READ, root.txn, taken.grant, want={"budget": {**HOLD, "calls": 1}})
    assert body.code == "BUDGET_EXCEEDED", "what it overran before is not its to spend"
    await taken.park(cost=Budget(9000, 0, 0))
    await calling
    body = error_of(await stage.ask(root, hop))
    assert body.code == "BUDGET_EXCEEDED"
    assert (await stage.fold(root)).totals.left.usd_micros == 0


async def test_parking_escapes_no_deadline(stage: Stage) -> None:
    """A resumption has a deadline of its own, never later than the caller's."""
    root = await stage.root(ttl=30)
    calling, bob = await stage.brief(root, want={"budget": HOLD, "ttl_ms": 20_000})
    below = asyncio.ensure_future(stage.bob.call(REVIEW, root.txn, bob.grant, ARGS))
    carol = await stage.carol.took(root.txn)
    await carol.park()
    await below
    resuming = asyncio.ensure_future(
        stage.bob.call(
            REVIEW, root.txn, bob.grant, ARGS, resume=carol.dispatch.hop, input=1, want={"ttl_ms": 3_600_000}
        )
    )
    again = await stage.carol.took(root.txn, 2)
    assert again.dispatch.deadline <= bob.dispatch.deadline
    assert parse(again.grant).claims.exp <= parse(bob.grant).claims.exp
    for taken in (again, bob):
        await taken.done()
    await asyncio.gather(resuming, calling)


async def test_the_scan_leaves_alone_what_is_parked_or_was_resumed(stage: Stage) -> None:
    """The index may still say that the first deadline has passed."""
    root = await stage.root()
    ports = stage.arena.lab.broker.ports
    hop = await stage.parked(root, want={"budget": HOLD, "ttl_ms": 300})
    late = [("default", root.txn, hop)]
    assert await close_orphans(late, ports) == 0
    calling, taken = await stage.resume(root, hop)
    assert await close_orphans(late, ports) == 0
    await taken.done()
    assert isinstance((await calling)[-1], Result)


async def test_a_request_that_is_not_released_ends_the_hop_and_tells_the_callee(stage: Stage) -> None:
    root = await stage.root()
    calling, taken = await stage.brief(root)
    await taken.park({AWS: "the name of a member cannot be replaced"})
    body = error_of(await calling)
    assert (body.code, body.rule) == ("RESULT_DENIED", "no-secret-as-a-name")
    await stage.bob.told_to_stop(taken.dispatch.hop)
    assert (await stage.arena.lab.records(root.txn))[-1]["outcome"] == "refused"


async def test_a_secret_in_a_request_is_replaced(stage: Stage) -> None:
    root = await stage.root()
    calling, taken = await stage.brief(root)
    await taken.park({"use": AWS})
    final = (await calling)[-1]
    assert isinstance(final, InputRequired) and AWS not in str(final.request)
    parked = (await stage.arena.lab.records(root.txn))[-1]
    assert parked["redacted"] == ["/use"] and AWS not in str(parked)


async def test_a_parked_hop_is_cancelled_by_its_caller_alone(stage: Stage) -> None:
    root = await stage.root()
    hop = await stage.parked(root)
    replica = stage.arena.lab.broker.replica
    for stranger in (stage.carol, stage.bob):
        await stranger.nc.publish(subjects.control(stranger.name, replica, root.txn, hop), CANCEL)
        await stranger.nc.flush()
    await stage.arena.silent(stage.carol)
    calling, taken = await stage.resume(root, hop)
    await taken.park()
    await calling
    await stage.alice.nc.publish(subjects.control("alice", replica, root.txn, hop), CANCEL)
    await stage.bob.told_to_stop(hop)
    closed = (await stage.arena.lab.records(root.txn))[-1]
    assert (closed["kind"], closed["outcome"], closed["spent"]["calls"]) == ("hop.closed", "cancelled", 2)


# Renewal


async def renewed(stage: Stage, who: RawAgent, root: Opened, grant: str) -> dict[str, Any]:
    final = (await who.call(RENEW, root.txn, grant))[-1]
    assert isinstance(final, Result), final
    value: dict[str, Any] = final.value
    return value


@pytest.fixture
def later(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the broker's clock ahead: what it says is the time, not how long anything takes."""
    clock = stage.arena.lab.broker.ports.clock
    now, ahead = clock.now, [0.0]
    monkeypatch.setattr(type(clock), "now", lambda _: now() + ahead[0])

    def move(seconds: float) -> None:
        ahead[0] += seconds

    return move


async def test_a_grant_is_renewed_while_its_hop_is_open(stage: Stage, later: Callable[[float], None]) -> None:
    root = await stage.root(ttl=3600)
    calling, bob = await stage.brief(root, want={"budget": HOLD, "ttl_ms": 1_800_000})
    first = parse(bob.grant).claims
    later(40)
    told = await renewed(stage, stage.bob, root, bob.grant)
    claims = parse(told["grant"]).claims
    assert claims.exp == told["exp"] > first.exp and claims.exp - claims.iat <= 60
    record = (await stage.arena.lab.records(root.txn))[-1]
    assert (record["kind"], record["exp"], record["jti"]) == (
        "grant.renewed",
        claims.exp,
        f"{root.txn}.{bob.dispatch.hop}.2",
    )
    unchanged = msgspec.structs.replace(
        claims, jti=first.jti, iat=first.iat, exp=first.exp, rec=first.rec, par=first.par
    )
    assert unchanged == first and claims.rec == record["hash"] and claims.par == parse(root.grant).digest
    # The one before is still good, for a call that was on its way.
    for grant in (bob.grant, told["grant"]):
        assert isinstance((await stage.bob.call(READ, root.txn, grant))[-1], Result)
    # Whoever did not hear the answer asks again with what it has, and gets the same.
    assert await renewed(stage, stage.bob, root, bob.grant) == told
    later(30)
    assert (await stage.bob.error(READ, root.txn, bob.grant)).code == "GRANT_EXPIRED"
    assert isinstance((await stage.bob.call(READ, root.txn, told["grant"]))[-1], Result)
    await bob.done()
    await calling


async def test_renewing_in_a_loop_appends_nothing(stage: Stage, later: Callable[[float], None]) -> None:
    root = await stage.root(ttl=3600)
    calling, bob = await stage.brief(root, want={"budget": HOLD, "ttl_ms": 1_800_000})
    for _ in range(3):
        body = await stage.bob.error(RENEW, root.txn, bob.grant)
        assert (body.code, body.rule) == ("RATE_LIMITED", "renew.early")
        assert body.retry_after is not None and 25 < body.retry_after <= 30
    later(40)
    told = await renewed(stage, stage.bob, root, bob.grant)
    for _ in range(5):
        await stage.bob.call(RENEW, root.txn, told["grant"])
        await stage.bob.call(RENEW, root.txn, bob.grant)
    assert (await stage.arena.kinds(root.txn)).count("grant.renewed") == 1
    await bob.done()
    await calling


async def test_only_the_holder_renews_and_no_root(stage: Stage, later: Callable[[float], None]) -> None:
    root = await stage.root(ttl=3600)
    calling, bob = await stage.brief(root, want={"budget": HOLD, "ttl_ms": 1_800_000})
    later(40)
    body = await stage.carol.error(RENEW, root.txn, bob.grant)
    assert (body.code, body.rule) == ("GRANT_INVALID", "grant.audience")
    body = await stage.alice.error(RENEW, root.txn, root.grant)
    assert (body.code, body.rule) == ("OUT_OF_SCOPE", "renew.root")
    body = await stage.bob.error(RENEW, "new", bob.grant)
    assert (body.code, body.rule) == ("GRANT_INVALID", "grant.txn")
    body = await stage.bob.error(RENEW, root.txn, None)
    assert (body.code, body.rule) == ("GRANT_INVALID", "grant.missing")
    later(21)
    body = await stage.bob.error(RENEW, root.txn, bob.grant)
    assert body.code == "GRANT_EXPIRED"
    assert "grant.renewed" not in await stage.arena.kinds(root.txn)
    await bob.done()
    await calling


@pytest.mark.parametrize("how", ["closed", "revoked", "revoked above", "user", "tool", "all"])
async def test_no_grant_is_renewed_that_is_of_no_use(stage: Stage, later: Callable[[float], None], how: str) -> None:
    root = await stage.root(ttl=3600, user="eve")
    calling, bob = await stage.brief(root, want={"budget": HOLD, "ttl_ms": 1_800_000})
    later(40)
    ports, said = stage.arena.lab.broker.ports, stage.arena.lab.broker.revocations
    name = {"user": "eve", "tool": BRIEF, "all": "everything"}.get(how, "")
    entry = Entry(kind=how, name=name, who="ops", at="2026-01-01T00:00:00.000Z", why="")  # type: ignore[arg-type]
    match how:
        case "closed":
            await bob.done()
            await calling
        case "revoked" | "revoked above":
            grant = bob.grant if how == "revoked" else root.grant
            await revoke("default", parse(grant).claims.jti, "ops", "", ports)
        case _:
            await said.put(entry)
    body = await stage.bob.error(RENEW, root.txn, bob.grant)
    if name:
        await said.put(msgspec.structs.replace(entry, state="reinstated"))
    assert body.code in ("GRANT_CLOSED", "GRANT_REVOKED", "POLICY_DENIED"), body
    assert "grant.renewed" not in await stage.arena.kinds(root.txn)
    await bob.done()
    await calling


async def test_a_hop_of_a_silent_replica_is_not_kept_alive_by_its_callee(
    stage: Stage, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = await stage.root(ttl=3600)
    calling, bob = await stage.brief(root, want={"budget": HOLD, "ttl_ms": 1_800_000})
    later(40)
    opener = (await stage.arena.lab.records(root.txn))[-1]["by"]
    said = stage.arena.lab.broker.revocations
    with monkeypatch.context() as gone:
        gone.setattr(said, "silence", lambda replica: 31.0 if replica == opener else 0.0)
        body = await stage.bob.error(RENEW, root.txn, bob.grant)
    assert (body.code, body.rule) == ("GRANT_CLOSED", "renew.replica")
    assert "grant.renewed" not in await stage.arena.kinds(root.txn)
    # Heard again, it is renewed as ever.
    await renewed(stage, stage.bob, root, bob.grant)
    await bob.done()
    await calling


async def test_a_renewed_grant_does_not_outlive_the_one_above_it(stage: Stage, later: Callable[[float], None]) -> None:
    root = await stage.root(ttl=3600)
    calling, bob = await stage.brief(root, want={"budget": HOLD, "ttl_ms": 1_800_000})
    below = asyncio.ensure_future(
        stage.bob.call(REVIEW, root.txn, bob.grant, want={"budget": {**HOLD, "calls": 1}, "ttl_ms": 1_800_000})
    )
    carol = await stage.carol.took(root.txn)
    later(40)
    body = await stage.carol.error(RENEW, root.txn, carol.grant)
    assert (body.code, body.rule, body.retryable) == ("RATE_LIMITED", "renew.parent", True)
    told = await renewed(stage, stage.bob, root, bob.grant)
    mine = await renewed(stage, stage.carol, root, carol.grant)
    assert mine["exp"] <= told["exp"]
    assert parse(mine["grant"]).claims.par == parse(told["grant"]).digest
    for taken in (carol, bob):
        await taken.done()
    await asyncio.gather(below, calling)


async def test_a_renewed_grant_does_not_outlive_its_hop(stage: Stage, later: Callable[[float], None]) -> None:
    root = await stage.root(ttl=3600)
    calling, bob = await stage.brief(root, want={"budget": HOLD, "ttl_ms": 70_000})
    later(40)
    told = await renewed(stage, stage.bob, root, bob.grant)
    assert told["exp"] * 1000 <= bob.dispatch.deadline
    later(20)
    body = await stage.bob.error(RENEW, root.txn, told["grant"])
    assert (body.code, body.rule) == ("DEADLINE_EXCEEDED", "renew.deadline")
    await bob.done()
    await calling


async def test_a_grant_whose_record_this_replica_does_not_remember_is_read_from_the_ledger(
    stage: Stage, later: Callable[[float], None]
) -> None:
    root = await stage.root(ttl=3600)
    calling, bob = await stage.brief(root, want={"budget": HOLD, "ttl_ms": 1_800_000})
    later(40)
    stage.arena.lab.broker.ledger._memory.clear()
    told = await renewed(stage, stage.bob, root, bob.grant)
    assert parse(told["grant"]).claims.par == parse(root.grant).digest
    await bob.done()
    await calling
