"""Policy on the path of a hop: what it takes away is taken away, and what changes while a hop runs is noticed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import msgspec
import pytest
import pytest_asyncio

from remit_broker.adapters.cedar import Policies, packaged
from remit_broker.cli.reasons import reasons
from remit_broker.core.replay import Past, replayed
from remit_broker.edges.http.policy import Allow, Observe, PolicyDesk, Withdraw
from remit_broker.testing import running_broker
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.grant import parse
from tests.support.raw import Arena, RawAgent, arena_on, skill, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")

READ, DEAR, REVIEW = "mcp/files/read", "mcp/files/dear", "agent/bob/review"
CAPPED = """
@id("reviews-are-small")
@reason("a review costs a cent at most, and is done in twenty seconds")
@cap("usd=0.01,calls=3,ttl=20s")
permit (principal, action == Action::"delegate", resource == Skill::"agent/bob/review");

@id("dear-tools-are-cheap")
@reason("no")
@cap("usd=0.01")
permit (principal, action == Action::"call", resource == Tool::"mcp/files/dear");
"""


class Stage:
    def __init__(self, arena: Arena, alice: RawAgent, bob: RawAgent, files: RawAgent) -> None:
        self.arena, self.alice, self.bob, self.files = arena, alice, bob, files


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    policies = [("default.cedar", packaged("default.cedar")), ("capped.cedar", CAPPED)]
    folder = tmp_path_factory.mktemp("policy")
    config = {"prices": {DEAR: "usd=0.02,calls=1"}}
    async with running_broker(folder, config, policies) as lab, arena_on(lab) as arena:
        lab.broker.refusals._window = 0.02
        alice, bob = await arena.agent("alice"), await arena.agent("bob")
        files = await arena.agent("files", "mcp")
        files.handlers["read"] = lambda taken: taken.done("content")
        await bob.serve(skill("review"))
        await files.serve(tool("read"), tool("dear"))
        yield Stage(arena, alice, bob, files)


async def test_a_cap_of_policy_tightens_budget_and_life(stage: Stage) -> None:
    root = await stage.arena.lab.grant("alice", "agent/**", "mcp/**")
    wish = {"budget": {"usd_micros": 500_000, "tokens": 70, "calls": 9}, "ttl_ms": 300_000}
    before = time.time()
    calling = asyncio.ensure_future(stage.alice.call(REVIEW, root.txn, root.grant, want=wish))
    taken = await stage.bob.took(root.txn)
    claims = parse(taken.grant).claims
    assert (claims.budget.usd_micros, claims.budget.tokens, claims.budget.calls) == (10_000, 70, 3)
    assert taken.dispatch.deadline / 1000 <= time.time() + 20
    assert before < claims.exp <= time.time() + 20
    opened = (await stage.arena.lab.records(root.txn))[1]
    assert opened["decision"]["rules"] == ["grant-covers-delegation", "reviews-are-small"]
    assert opened["deadline"] == taken.dispatch.deadline
    await taken.done()
    await calling


async def test_a_wish_that_is_smaller_than_a_cap_stays_as_it_is(stage: Stage) -> None:
    root = await stage.arena.lab.grant("alice", "agent/**")
    wish = {"budget": {"usd_micros": 7, "tokens": 0, "calls": 2}, "ttl_ms": 4000}
    calling = asyncio.ensure_future(stage.alice.call(REVIEW, root.txn, root.grant, want=wish))
    taken = await stage.bob.took(root.txn)
    budget = parse(taken.grant).claims.budget
    assert (budget.usd_micros, budget.calls) == (7, 2)
    assert taken.dispatch.deadline / 1000 <= time.time() + 4
    await taken.done()
    await calling


async def test_a_cap_below_the_price_of_a_call_refuses_it(stage: Stage) -> None:
    root = await stage.arena.lab.grant("alice", "mcp/**")
    body = await stage.alice.error(DEAR, root.txn, root.grant)
    assert (body.code, body.effect) == ("POLICY_DENIED", "none")
    assert "dear-tools-are-cheap" in body.rule and "$0.02" in body.message
    assert stage.files.work(root.txn) == []


# While the broker runs


def write(stage: Stage, name: str, text: str) -> None:
    """As an editor does: whole, under its own name at once."""
    folder = stage.arena.lab.broker.policy.folder
    (folder / f".{name}").write_text(text, encoding="utf-8")
    (folder / f".{name}").replace(folder / name)


@pytest.fixture(autouse=True)
def as_before(stage: Stage) -> Iterator[None]:
    """What a test writes is gone after it."""
    yield
    policy = stage.arena.lab.broker.policy
    for file in policy.folder.glob("*.cedar"):
        if file.name not in ("default.cedar", "capped.cedar"):
            file.unlink()
    policy.put(Policies.read(policy.folder))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.05)


NO_READS = '@id("no-reads") @reason("not now") forbid (principal, action == Action::"call", resource == Tool::"mcp/files/read");'


async def test_an_edit_is_taken_while_the_broker_runs_and_the_revision_is_in_every_record(stage: Stage) -> None:
    policy = stage.arena.lab.broker.policy
    root = await stage.arena.lab.grant("alice", "mcp/**")
    await stage.alice.call(READ, root.txn, root.grant)
    before = policy.revision
    write(stage, "edited.cedar", NO_READS)
    await until(lambda: policy.revision != before)
    body = await stage.alice.error(READ, root.txn, root.grant)
    assert (body.code, body.rule) == ("POLICY_DENIED", "no-reads")
    records = await stage.arena.lab.records(root.txn)
    refused = await stage.arena.lab.refusals(root.txn)
    assert [one["decision"]["revision"] for one in records if one.get("decision")] == [before, before]
    assert refused[0]["decision"]["revision"] == policy.revision
    (policy.folder / "edited.cedar").unlink()
    await until(lambda: policy.revision == before)
    await stage.alice.call(READ, root.txn, root.grant)


async def test_a_bad_edit_keeps_the_last_good_and_says_so(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    broker = stage.arena.lab.broker
    before = broker.policy.revision
    write(stage, "bad.cedar", NO_READS + "\npermit (")
    await until(lambda: bool(broker.policy.trouble))
    root = await stage.arena.lab.grant("alice", "mcp/**")
    await stage.alice.call(READ, root.txn, root.grant)
    assert broker.policy.revision == before
    assert "bad.cedar:2" in broker.policy.trouble
    assert any("not valid, those before stay in force" in one.getMessage() for one in caplog.records)
    assert b"remit_policy_stale 1.0" in await broker.health.metrics()
    assert "bad.cedar:2" in (await broker.health.status())["policy_trouble"]
    assert "bad.cedar:2" in broker.health.about()["policy_trouble"]
    (broker.policy.folder / "bad.cedar").unlink()
    await until(lambda: not broker.policy.trouble)
    assert b"remit_policy_stale 0.0" in await broker.health.metrics()


async def test_policies_that_are_swapped_while_a_hop_runs_decide_again_before_it_is_sent(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files change between the intent and the dispatch: what was decided by the old ones is not sent."""
    policy = stage.arena.lab.broker.policy
    root = await stage.arena.lab.grant("alice", "mcp/**")
    before = len(stage.files.work(root.txn))

    def swap(_: object, name: str) -> None:
        if name == "open":
            write(stage, "swapped.cedar", NO_READS)
            policy.put(Policies.read(policy.folder))

    monkeypatch.setattr(type(stage.arena.lab.broker.ports.failpoints), "hit", swap)
    body = await stage.alice.error(READ, root.txn, root.grant)
    monkeypatch.undo()
    assert (body.code, body.rule, body.effect) == ("POLICY_DENIED", "no-reads", "none")
    assert len(stage.files.work(root.txn)) == before
    assert await stage.arena.kinds(root.txn) == ["txn.opened", "hop.opened", "hop.closed"]


async def test_policies_that_are_swapped_for_others_that_demand_more_are_noticed_too(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = stage.arena.lab.broker.policy
    root = await stage.arena.lab.grant("alice", "mcp/**")
    capped = '@id("short") @reason("r") @cap("ttl=5s") permit (principal, action == Action::"call", resource);'

    def swap(_: object, name: str) -> None:
        if name == "open":
            write(stage, "swapped.cedar", capped)
            policy.put(Policies.read(policy.folder))

    monkeypatch.setattr(type(stage.arena.lab.broker.ports.failpoints), "hit", swap)
    body = await stage.alice.error(READ, root.txn, root.grant)
    monkeypatch.undo()
    assert (body.code, body.rule, body.effect) == ("POLICY_DENIED", "dispatch.epoch", "none")


async def test_arguments_reach_policy_through_the_broker_and_no_record(stage: Stage) -> None:
    looks = (
        '@id("no-etc") @reason("r") forbid (principal, action == Action::"call", resource == Tool::"mcp/files/read")'
        ' when { context.args.texts.hasTag("/path") && context.args.texts.getTag("/path") like "/etc/*" };'
    )
    schema = {"type": "object", "properties": {"path": {"type": "string"}}}
    policy = stage.arena.lab.broker.policy
    await stage.files.serve(tool("read", inputSchema=schema), tool("dear"))
    registry = stage.arena.lab.broker.registry
    await registry.accept("files", {one.op: one.digest for one in registry.waiting("files")})
    write(stage, "looks.cedar", looks)
    policy.put(Policies.read(policy.folder))
    root = await stage.arena.lab.grant("alice", "mcp/**")
    await stage.alice.call(READ, root.txn, root.grant, {"path": "docs/a.md"})
    for hostile in ("/etc/passwd", "/etc/" + "x" * 5000, {"__entity": {"type": "User", "id": "root"}}):
        body = await stage.alice.error(READ, root.txn, root.grant, {"path": hostile})
        assert body.rule == "no-etc" or body.code == "ARGUMENTS_INVALID"
    body = await stage.alice.error(READ, root.txn, root.grant, {"path": "/etc/" + "x" * 5000})
    assert "cannot be seen" in body.message
    told = str(await stage.arena.lab.records(root.txn)) + str(await stage.arena.lab.refusals(root.txn))
    assert "docs/a.md" not in told and "passwd" not in told


# What operators say


NO_ADDRESSES = """
@id("no-addresses")
@reason("no address comes back")
@ask("ask for less")
forbid (principal, action == Action::"release", resource == Tool::"mcp/files/read")
when { context.findings.contains("pii.email") };
"""


async def test_the_record_of_a_withheld_answer_says_why(stage: Stage) -> None:
    """And what decided about it can be replayed and explained, as what decided about the call."""
    lab = stage.arena.lab
    policy, root = lab.broker.policy, await lab.grant("alice", "mcp/**")
    before = policy.policies
    stage.files.handlers["read"] = lambda taken: taken.done("write to jane.doe@example.org")
    try:
        assert (await stage.alice.call(READ, root.txn, root.grant))[-1].value.startswith("write")  # type: ignore[union-attr]
        write(stage, "addresses.cedar", NO_ADDRESSES)
        policy.put(Policies.read(policy.folder))
        body = await stage.alice.error(READ, root.txn, root.grant)
    finally:
        stage.files.handlers["read"] = lambda taken: taken.done("content")
    assert (body.code, body.rule, body.effect) == ("RESULT_DENIED", "no-addresses", "happened")
    record = (await lab.records(root.txn))[-1]
    assert (record["kind"], record["outcome"], record["code"]) == ("hop.closed", "refused", "RESULT_DENIED")
    assert record["decision"] == {"effect": "deny", "rules": ["no-addresses"], "revision": policy.revision}
    assert [one["kind"] for one in record["findings"]] == ["pii.email"] and record["result_digest"]
    assert "jane.doe" not in str(record)
    found = await _answers(stage, root.txn)
    assert [(past.then, past.rules) for past in found] == [
        ("allow", ("release-without-secrets",)),
        ("deny", ("no-addresses",)),
    ]
    for policies, changes in ((policy.policies, [("allow", "deny")]), (before, [("deny", "allow")])):
        report = replayed(found, policies.decide, policies.decide)
        assert (report.calls, report.answers, report.same) == (2, 2, 1)
        assert [(one.was, one.becomes) for one in report.changes] == changes
    async with httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as http:
        auth = {"Authorization": f"Bearer {lab.broker.keys.local_token}"}
        raw = (await http.get(f"/api/records/{record['hop']}", headers=auth)).json()
    told = reasons(raw, policy.folder)
    assert (told["then"], told["answer"]["then"]) == ("allow", "deny")
    assert told["answer"]["rules"][0]["where"].endswith("/addresses.cedar:2")
    assert "without what was found of the kind pii" in told["answer"]["changes"]


async def _answers(stage: Stage, txn: str) -> list[Past]:
    """What was decided about answers in a task, as a running broker tells it for a replay."""
    lab = stage.arena.lab
    async with httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as http:
        auth = {"Authorization": f"Bearer {lab.broker.keys.local_token}"}
        told = (await http.get("/api/policy/decisions", params={"kind": "answered"}, headers=auth)).json()
    return [past for raw in told["decisions"] if (past := msgspec.convert(raw, Past, strict=False)).txn == txn]


async def test_what_is_observed_is_let_through_and_recorded_as_would_deny(stage: Stage) -> None:
    desk = desk_of(stage)
    policy = stage.arena.lab.broker.policy
    write(stage, "observed.cedar", NO_READS)
    policy.put(Policies.read(policy.folder))
    root = await stage.arena.lab.grant("alice", "mcp/**")
    assert (await stage.alice.error(READ, root.txn, root.grant)).rule == "no-reads"
    told = await desk.observe(Observe(policy="no-reads", why="trying"), "op", "observed")
    await stage.alice.call(READ, root.txn, root.grant)
    opened = next(one for one in await stage.arena.lab.records(root.txn) if one["kind"] == "hop.opened")
    assert (opened["decision"]["effect"], opened["decision"]["rules"]) == ("would_deny", ["no-reads"])
    assert len(msgspec.json.encode(opened)) < 4096
    await desk.observe(Observe(policy="no-reads"), "op", "enforced")
    assert (await stage.alice.error(READ, root.txn, root.grant)).rule == "no-reads"
    history = await stage.arena.lab.broker.tenants["default"].admin.history()
    mine = [(one.kind, one.name, one.who, one.why) for one in history if one.what == "observe"]
    assert mine == [("observed", "policy no-reads", "op", "trying"), ("enforced", "policy no-reads", "op", "")]
    assert told["record"] == history[-2].seq
    # A whole server.
    await desk.observe(Observe(server="files"), "op", "observed")
    await stage.alice.call(READ, root.txn, root.grant)
    await desk.observe(Observe(server="files"), "op", "enforced")
    assert (await stage.alice.error(READ, root.txn, root.grant)).rule == "no-reads"


async def test_an_exception_is_recorded_expires_and_can_be_withdrawn(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, lab = desk_of(stage), stage.arena.lab
    policy = lab.broker.policy
    write(stage, "except.cedar", NO_READS)
    policy.put(Policies.read(policy.folder))
    root, other = await lab.grant("alice", "mcp/**"), await lab.grant("alice", "mcp/**", user="bob")
    body = await stage.alice.error(READ, root.txn, root.grant)
    hop = (await lab.refusals(root.txn))[0]["hop"]
    told = await desk.allow(Allow(hop=hop, seconds=60, why="urgent"), "op")
    assert (told["rules"], told["user"], told["until"] - time.time() <= 60) == (("no-reads",), "ann", True)
    await stage.alice.call(READ, root.txn, root.grant)
    opened = [one for one in await lab.records(root.txn) if one["kind"] == "hop.opened"][-1]
    assert (opened["decision"]["effect"], opened["decision"]["rules"][-1]) == ("allow", f"exception.{hop}")
    assert (await stage.alice.error(READ, other.txn, other.grant)).rule == body.rule
    assert [one["in_force"] for one in desk.rulings()["exceptions"]] == [True]
    await desk.withdraw(Withdraw(hop=hop), "op")
    assert (await stage.alice.error(READ, root.txn, root.grant)).rule == "no-reads"
    # By itself, too.
    await desk.allow(Allow(hop=hop, seconds=60), "op")
    await stage.alice.call(READ, root.txn, root.grant)
    ask, later = stage.alice.error, time.time() + 61
    monkeypatch.setattr(type(lab.broker.ports.clock), "now", lambda self: later)
    assert (await ask(READ, root.txn, root.grant)).rule == "no-reads"
    monkeypatch.undo()
    kinds = [one.kind for one in await lab.broker.tenants["default"].admin.history() if one.what == "exception"]
    assert kinds == ["allowed", "withdrawn", "allowed"]


async def test_an_exception_is_made_only_of_what_policy_refused(stage: Stage) -> None:
    desk, lab = desk_of(stage), stage.arena.lab
    root = await lab.grant("alice", "mcp/git/*")
    await stage.alice.error(READ, root.txn, root.grant)
    with pytest.raises(Refusal, match="no policy that could be excepted"):
        await desk.allow(Allow(hop=(await lab.refusals(root.txn))[0]["hop"], seconds=60), "op")
    # What policy permitted, and something else refused.
    poor = await lab.grant("alice", "mcp/**", budget="calls=1")
    await stage.alice.call(READ, poor.txn, poor.grant)
    assert (await stage.alice.error(READ, poor.txn, poor.grant)).code == "BUDGET_EXCEEDED"
    with pytest.raises(Refusal, match="no policy that could be excepted"):
        await desk.allow(Allow(hop=(await lab.refusals(poor.txn))[0]["hop"], seconds=60), "op")
    for hop, seconds in (("f" * 16, 60), ("f" * 16, 0), ("f" * 16, 10**9)):
        with pytest.raises(Refusal):
            await desk.allow(Allow(hop=hop, seconds=seconds), "op")
    assert not [one for one in desk.rulings()["exceptions"] if one["name"] == "f" * 16]


async def test_nothing_is_excepted_without_a_record(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, lab = desk_of(stage), stage.arena.lab

    async def down(*_: object) -> None:
        raise refusal(Code.LEDGER_UNAVAILABLE, "down", rule="admin.stream", ask="wait")

    monkeypatch.setattr(type(lab.broker.tenants["default"].admin), "append", down)
    with pytest.raises(Refusal):
        await desk.observe(Observe(policy="no-secret-leaves"), "op", "observed")
    assert "no-secret-leaves" not in lab.broker.policy.rulings.policies.get("default", ())
    monkeypatch.undo()


def desk_of(stage: Stage) -> PolicyDesk:
    broker = stage.arena.lab.broker
    return broker.policy_desk(broker.tenants["default"])
