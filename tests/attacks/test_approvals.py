"""Approvals through a running broker: what a person approved happens once, and nothing else does."""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from remit_broker.adapters.cedar import CedarEngine, Policies
from remit_broker.core.approvals import MAX_ASKED
from remit_broker.hop import open as open_stage
from remit_broker.hop import pipeline
from remit_broker.hop.decide import Approver, decide
from remit_broker.hop.txn import Opened, close_txn, revoke
from remit_broker.testing import Lab, running_broker
from remit_schemas.budget import Budget
from remit_schemas.envelope import Error, Result
from remit_schemas.errors import Code, ErrorBody, Refusal, refusal
from tests.attacks.test_budget_race import everything, known, two_replicas
from tests.support.raw import Arena, RawAgent, arena_on, error_of, skill, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEND = "mcp/mail/send"
READ = "mcp/mail/read"
PAY = "mcp/mail/pay"


class Office:
    """Alice holds grants, Bob can be delegated to, the mail server sends mails that a person has approved."""

    def __init__(self, arena: Arena, alice: RawAgent, bob: RawAgent, mail: RawAgent, api: httpx.AsyncClient) -> None:
        self.arena, self.alice, self.bob, self.mail, self.api = arena, alice, bob, mail, api

    @property
    def lab(self) -> Lab:
        return self.arena.lab

    async def root(self, **options: Any) -> Opened:
        return await self.lab.grant("alice", "mcp/**", "agent/**", **options)

    async def asks(self, root: Opened, args: Any, resource: str = SEND, **fields: Any) -> ErrorBody:
        """The call, which somebody has to approve: its refusal."""
        body = await self.alice.error(resource, root.txn, root.grant, args, **fields)
        assert body.code == "APPROVAL_REQUIRED", body
        assert body.effect == "none" and body.ask and body.approval and body.approval in (body.approval_url or "")
        return body

    async def sends(self, root: Opened, args: Any, **fields: Any) -> Result:
        return await self.alice.result(SEND, root.txn, root.grant, args, **fields)

    async def says(self, name: str | None, verdict: str = "approve", **more: Any) -> dict[str, Any]:
        answer = await self.api.post(f"/api/approvals/{name}", json={"verdict": verdict, **more})
        told: dict[str, Any] = answer.json()
        return told

    async def shows(self, name: str | None) -> dict[str, Any]:
        told: dict[str, Any] = (await self.api.get(f"/api/approvals/{name}")).json()
        return told

    def sent(self, root: Opened) -> list[dict[str, Any]]:
        """The arguments that reached the mail server."""
        return [taken.dispatch.args for taken in self.mail.work(root.txn) if taken.dispatch.resource == SEND]

    async def kinds(self, root: Opened) -> list[str]:
        return await self.arena.kinds(root.txn)


async def office_on(arena: Arena) -> Office:
    alice, bob = await arena.agent("alice"), await arena.agent("bob")
    mail = await arena.agent("mail", "mcp")
    mail.handlers = {op: lambda taken: taken.done("sent") for op in ("send", "read")}
    await mail.serve({"name": "send", "inputSchema": {"type": "object"}}, tool("read"))
    await bob.serve(skill("brief"))
    broker = arena.lab.broker
    api = httpx.AsyncClient(
        base_url=broker.http, headers={"Authorization": f"Bearer {broker.keys.local_token}"}, trust_env=False
    )
    arena._stack.push_async_callback(api.aclose)
    return Office(arena, alice, bob, mail, api)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(arena: Arena) -> AsyncIterator[Office]:
    yield await office_on(arena)


async def test_what_is_approved_goes_through_once(office: Office) -> None:
    root, args = await office.root(), {"to": "ann@example.org", "n": 3}
    asked = await office.asks(root, args)
    assert office.sent(root) == []
    shown = await office.shows(asked.approval)
    assert (shown["state"], shown["args"], shown["match"]) == ("waiting", args, True)
    assert (shown["user"], shown["chain"], shown["resource"]) == ("ann", ["alice"], SEND)
    assert (await office.says(asked.approval, reason="fine"))["state"] == "approved"
    assert (await office.sends(root, args)).value == "sent"
    assert office.sent(root) == [args]
    again = await office.asks(root, args)
    assert again.approval != asked.approval
    kinds = await office.kinds(root)
    assert kinds == [
        "txn.opened", "approval.requested", "approval.decided", "hop.opened", "hop.closed", "approval.requested",
    ]  # fmt: skip
    opened = (await office.lab.records(root.txn))[3]
    assert opened["approval"] == asked.approval
    assert (await office.shows(asked.approval))["state"] == "used"


async def test_a_request_whose_append_had_no_answer_can_be_approved(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker gives up on it, and it is stored all the same: what it asks for is kept for whoever approves."""
    root, args = await office.root(), {"to": "ann"}

    def gives_up(*_: object) -> None:
        raise refusal(Code.LEDGER_UNAVAILABLE, "no answer came", rule="test", retry_after=1.0)

    monkeypatch.setattr(office.lab.broker.ports.ledger, "_remembered", gives_up)
    assert (await office.alice.error(SEND, root.txn, root.grant, args)).code == "LEDGER_UNAVAILABLE"
    monkeypatch.undo()
    asked = await office.asks(root, args)
    assert await office.kinds(root) == ["txn.opened", "approval.requested"]
    assert (await office.says(asked.approval))["state"] == "approved"
    assert (await office.sends(root, args)).value == "sent"


async def test_an_identical_call_is_attached_to_the_request_that_waits(office: Office) -> None:
    root = await office.root()
    first = await office.asks(root, {"to": "ann", "n": 3})
    for same in ({"to": "ann", "n": 3}, {"n": 3, "to": "ann"}, {"n": 3.0, "to": "ann"}):
        again = await office.asks(root, same)
        assert again.approval == first.approval
    assert (await office.asks(root, {"n": 3, "to": "ann"}, approval=first.approval)).approval == first.approval
    assert await office.kinds(root) == ["txn.opened", "approval.requested"]


async def test_a_flood_of_identical_calls_at_once_asks_once(office: Office) -> None:
    root = await office.root()
    asked = await asyncio.gather(*(office.asks(root, {"to": "ann"}) for _ in range(20)))
    assert len({body.approval for body in asked}) == 1
    assert await office.kinds(root) == ["txn.opened", "approval.requested"]


OTHERS: list[dict[str, Any]] = [
    {"to": "eve", "n": 3}, {"to": "ann", "n": 4}, {"to": "ann", "n": "3"}, {"to": "ann", "n": 3, "cc": None}, {"to": "ann"},
    {"To": "ann", "n": 3}, {"to": "ann\u200b", "n": 3}, {"to": "\u0430nn", "n": 3}, {"to": "ann ", "n": 3},
    {"to": ["ann"], "n": 3}, {"to": "ann", "n": 3.0000000001}, {"to": "ann", "n": True},
]  # fmt: skip


@pytest.mark.parametrize("other", OTHERS, ids=repr)
async def test_an_approval_is_for_the_bytes_that_were_approved(office: Office, other: dict[str, Any]) -> None:
    root, args = await office.root(), {"to": "ann", "n": 3}
    asked = await office.asks(root, args)
    await office.says(asked.approval)
    body = await office.alice.error(SEND, root.txn, root.grant, other, approval=asked.approval)
    assert (body.code, body.rule) == ("APPROVAL_INVALID", "approve.other")
    assert (await office.asks(root, other)).approval != asked.approval, "without the id, other people are asked"
    assert office.sent(root) == []
    assert (await office.sends(root, args, approval=asked.approval)).value == "sent"


async def test_an_approval_is_for_one_form_of_a_text_that_looks_the_same(office: Office) -> None:
    root = await office.root()
    asked = await office.asks(root, {"to": "caf\u00e9"})
    await office.says(asked.approval)
    assert (await office.asks(root, {"to": "cafe\u0301"})).approval != asked.approval
    assert office.sent(root) == []


async def test_numbers_are_sent_in_the_form_that_was_approved(office: Office) -> None:
    root = await office.root()
    asked = await office.asks(root, {"n": 1e3, "m": [2.0, -0.0, 2.5], "big": 1e22})
    assert (await office.shows(asked.approval))["text"].split() == [
        "{", '"big":', "1e+22,", '"m":', "[", "2,", "0,", "2.5", "],", '"n":', "1000", "}",
    ]  # fmt: skip
    await office.says(asked.approval)
    await office.sends(root, {"m": [2, 0, 2.5], "n": 1000, "big": 1e22})
    assert b'{"big":1e22,"m":[2,0,2.5],"n":1000}' in office.mail.work(root.txn)[0].message.data


async def test_of_many_uses_at_once_one_goes_through(office: Office) -> None:
    root, args = await office.root(), {"to": "ann"}
    asked = await office.asks(root, args)
    await office.says(asked.approval)
    ends = await asyncio.gather(
        *(office.alice.call(SEND, root.txn, root.grant, args, approval=asked.approval) for _ in range(12))
    )
    assert sum(isinstance(frames[-1], Result) for frames in ends) == 1
    assert office.sent(root) == [args]
    assert (await office.kinds(root)).count("hop.opened") == 1


async def test_of_two_replicas_that_race_for_one_approval_one_wins(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (one, two), arena_on(one) as first:
        office = await office_on(first)
        await known(one, two)
        for number in range(6):
            root, args = await office.root(), {"n": number}
            asked = await office.asks(root, args)
            await office.says(asked.approval)
            ends = await asyncio.gather(
                *(office.alice.call(SEND, root.txn, root.grant, args) for _ in range(8)), return_exceptions=True
            )
            assert sum(isinstance(end, list) and isinstance(end[-1], Result) for end in ends) == 1, ends
            assert office.sent(root) == [args]
            records = await everything(one, two, root.txn)
            assert [record.get("approval") for record in records if record["kind"] == "hop.opened"] == [asked.approval]
        raced = {record["by"] for record in first.refused.records}
        raced |= {taken.dispatch.replica for taken in office.mail.dispatched}
        assert raced == {one.broker.replica, two.broker.replica}, "both took part"


async def test_a_replica_that_is_behind_finds_the_decision(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (one, two), arena_on(one) as first:
        office = await office_on(first)
        await known(one, two)
        for number in range(4):
            root, args = await office.root(), {"n": number}
            # Both have seen the task as it is before the decision.
            asked = [await office.asks(root, args) for _ in range(4)]
            await office.says(asked[0].approval)
            assert (await office.sends(root, args)).value == "sent"


async def test_a_denied_call_is_denied_until_the_request_would_have_expired(office: Office) -> None:
    root, args = await office.root(), {"to": "ann"}
    asked = await office.asks(root, args)
    told = await office.says(asked.approval, "deny", reason="not to her")
    assert told["state"] == "denied"
    for named in ({}, {"approval": asked.approval}):
        body = await office.alice.error(SEND, root.txn, root.grant, args, **named)
        assert (body.code, body.rule) == ("APPROVAL_INVALID", "approve.denied")
        assert "not to her" in body.message
    assert await office.kinds(root) == ["txn.opened", "approval.requested", "approval.decided"]
    assert (await office.says(asked.approval))["error"]["rule"] == "approvals.ended"


async def test_a_used_approval_names_the_hop_that_used_it(office: Office) -> None:
    root, args = await office.root(), {"to": "ann"}
    asked = await office.asks(root, args)
    await office.says(asked.approval)
    await office.sends(root, args)
    body = await office.alice.error(SEND, root.txn, root.grant, args, approval=asked.approval)
    assert (body.code, body.rule) == ("APPROVAL_INVALID", "approve.used")
    assert office.mail.work(root.txn)[0].dispatch.hop in body.message


async def test_an_approval_of_one_task_is_nothing_in_another(office: Office) -> None:
    root, other, args = await office.root(), await office.root(), {"to": "ann"}
    asked = await office.asks(root, args)
    await office.says(asked.approval)
    body = await office.alice.error(SEND, other.txn, other.grant, args, approval=asked.approval)
    assert (body.code, body.rule) == ("APPROVAL_INVALID", "approve.unknown")
    assert (await office.asks(other, args)).approval != asked.approval


async def test_an_approval_is_for_the_chain_that_asked(office: Office) -> None:
    root, args = await office.root(), {"to": "ann"}
    calling = asyncio.ensure_future(office.alice.call("agent/bob/brief", root.txn, root.grant))
    taken = await office.bob.took(root.txn)
    body = await office.bob.error(SEND, root.txn, taken.grant, args)
    assert (body.code, (await office.shows(body.approval))["chain"]) == ("APPROVAL_REQUIRED", ["alice", "bob"])
    await office.says(body.approval)
    stolen = await office.alice.error(SEND, root.txn, root.grant, args, approval=body.approval)
    assert (stolen.code, stolen.rule) == ("APPROVAL_INVALID", "approve.other")
    assert (await office.asks(root, args)).approval != body.approval
    assert office.sent(root) == []
    assert (await office.bob.result(SEND, root.txn, taken.grant, args)).value == "sent"
    await taken.done()
    await calling


async def test_the_same_chain_may_use_it_from_another_call(office: Office) -> None:
    root, args = await office.root(), {"to": "ann"}
    calling = asyncio.ensure_future(office.alice.call("agent/bob/brief", root.txn, root.grant))
    taken = await office.bob.took(root.txn)
    body = await office.bob.error(SEND, root.txn, taken.grant, args)
    await taken.done("it needs an approval")
    await calling
    await office.says(body.approval)
    calling = asyncio.ensure_future(office.alice.call("agent/bob/brief", root.txn, root.grant))
    taken = await office.bob.took(root.txn, 2)
    assert (await office.bob.result(SEND, root.txn, taken.grant, args)).value == "sent"
    await taken.done()
    await calling


async def test_what_a_revoked_hop_asked_for_is_void(office: Office) -> None:
    root = await office.root()
    calling = asyncio.ensure_future(office.alice.call("agent/bob/brief", root.txn, root.grant))
    taken = await office.bob.took(root.txn)
    asked = await office.bob.error(SEND, root.txn, taken.grant, {"to": "ann"})
    await revoke("default", f"{root.txn}.{taken.dispatch.hop}.1", "ops", "", office.lab.broker.ports)
    shown = await office.shows(asked.approval)
    assert (shown["state"], shown["why"]) == ("void", "the grant of the hop that asked was revoked")
    assert (await office.says(asked.approval))["error"]["rule"] == "approvals.void"
    await taken.done()
    await calling


async def test_what_a_closed_task_asked_for_is_void(office: Office) -> None:
    root = await office.root()
    asked = await office.asks(root, {"to": "ann"})
    await close_txn("default", root.txn, "ops", "closed", office.lab.broker.ports)
    assert (await office.shows(asked.approval))["state"] == "void"
    assert (await office.says(asked.approval))["error"]["rule"] == "approvals.void"


async def test_a_flood_of_requests_grows_no_txn_without_end(office: Office) -> None:
    root = await office.root()
    bodies = await asyncio.gather(
        *(office.alice.error(SEND, root.txn, root.grant, {"n": number}) for number in range(MAX_ASKED + 10))
    )
    codes = [body.code for body in bodies]
    assert codes.count(Code.APPROVAL_REQUIRED) == MAX_ASKED and codes.count(Code.TOO_LARGE) == 10
    assert (await office.kinds(root)).count("approval.requested") == MAX_ASKED
    calling = asyncio.ensure_future(office.alice.call("agent/bob/brief", root.txn, root.grant))
    taken = await office.bob.took(root.txn)
    assert (await office.bob.error(SEND, root.txn, taken.grant, {"to": "ann"})).code == "APPROVAL_REQUIRED"
    await taken.done()
    await calling


async def test_requests_for_approvals_take_no_room_of_the_task(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_stage, "MAX_RECORDS", 4)
    root = await office.root()
    for number in range(8):
        asked = await office.asks(root, {"n": number})
        await office.says(asked.approval, "deny")
    assert len(await office.kinds(root)) == 17
    assert (await office.alice.result(READ, root.txn, root.grant)).value == "sent"


async def test_nobody_is_asked_about_a_call_that_could_not_be_paid(office: Office) -> None:
    root = await office.root(budget=Budget(0, 0, 1))
    await office.alice.result(READ, root.txn, root.grant)
    body = await office.alice.error(SEND, root.txn, root.grant, {"to": "ann"})
    assert (body.code, body.rule) == ("BUDGET_EXCEEDED", "open.budget")
    assert "approval.requested" not in await office.kinds(root)


async def test_a_call_that_was_made_with_its_key_is_a_duplicate_and_asks_nobody(office: Office) -> None:
    root, args = await office.root(), {"to": "ann"}
    asked = await office.asks(root, args, key="once")
    await office.says(asked.approval)
    await office.sends(root, args, key="once")
    body = await office.alice.error(SEND, root.txn, root.grant, args, key="once")
    assert body.code == "DUPLICATE"
    assert (await office.kinds(root)).count("approval.requested") == 1


async def test_an_approval_that_expired_is_of_no_use(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = office.lab.broker.ports.clock
    now, ahead = clock.now, [0.0]
    monkeypatch.setattr(type(clock), "now", lambda _: now() + ahead[0])
    root, args = await office.root(ttl=7200), {"to": "ann"}
    asked = await office.asks(root, args)
    await office.says(asked.approval)
    ahead[0] += office.lab.broker.ports.limits.approval_use + 1
    body = await office.alice.error(SEND, root.txn, root.grant, args, approval=asked.approval)
    assert (body.code, body.rule) == ("APPROVAL_INVALID", "approve.expired")
    again = await office.asks(root, args)
    ahead[0] += office.lab.broker.ports.limits.approval_ttl + 1
    assert (await office.says(again.approval))["error"]["rule"] == "approvals.ended"
    assert office.sent(root) == []


async def test_nothing_is_approved_whose_arguments_are_not_those_of_the_request(office: Office) -> None:
    root = await office.root()
    asked = await office.asks(root, {"to": "ann"})
    at = ("default", root.txn, asked.approval or "")
    arguments = office.lab.broker.ports.arguments
    await arguments.put(at, b'{"args":{"to":"eve"}}')
    assert (await office.shows(asked.approval))["match"] is False
    assert (await office.says(asked.approval))["error"]["rule"] == "approvals.digest"
    await arguments.forget(at)
    assert (await office.says(asked.approval))["error"]["rule"] == "approvals.not-kept"
    assert (await office.says(asked.approval, "deny"))["state"] == "denied"


async def test_what_is_asked_about_is_kept_encrypted_and_only_until_it_is_decided(office: Office) -> None:
    root, secret = await office.root(), "a-very-special-word"
    asked = await office.asks(root, {"to": secret})
    bucket = await office.lab.broker.nats.core.jetstream().key_value("approvals")
    entry = await bucket.get(f"default.{root.txn}.{asked.approval}.0")
    assert entry.value and secret.encode() not in entry.value
    assert secret not in str(await office.lab.records(root.txn))
    await office.says(asked.approval)
    shown = await office.shows(asked.approval)
    assert (shown["kept"], shown["text"]) == (False, None)
    assert await office.lab.broker.ports.arguments.get(("default", root.txn, asked.approval or "")) is None


async def test_what_is_redacted_is_neither_shown_nor_sent(tmp_path: Path) -> None:
    policy = """
        @id("all") @reason("all") @approve("look") @redact("pii")
        permit (principal, action == Action::"call", resource);
        @id("back") @reason("back") permit (principal, action == Action::"release", resource);
        @id("who") @reason("who") permit (principal, action == Action::"approve", resource);
    """
    async with running_broker(tmp_path, policies=[("own.cedar", policy)]) as lab, arena_on(lab) as arena:
        office = await office_on(arena)
        root, args = await office.root(), {"to": "ann.smith@example.org"}
        asked = await office.asks(root, args)
        shown = await office.shows(asked.approval)
        assert "smith" not in shown["text"] and shown["redacted"] == ["/to"]
        await office.says(asked.approval)
        await office.sends(root, args)
        assert office.sent(root) == [shown["args"]]


DEMANDS = """
    @id("all") @reason("all") @approve("look at the sum; count=2; role=approver; four-eyes; ttl=90s")
    permit (principal, action == Action::"call", resource);
    @id("back") @reason("back") permit (principal, action == Action::"release", resource);
    @id("who") @reason("approvers decide") permit (principal in Role::"approver", action == Action::"approve", resource);
    @id("not-eve") @reason("eve is on leave")
    forbid (principal == User::"eve", action == Action::"approve", resource);
"""


def person(user: str, *roles: str) -> Approver:
    """Somebody whom the API knows, with their roles."""
    return Approver(who=f"test:{user}", user=user, tenant="default", auth="test", roles=roles)


async def test_only_whom_policy_lets_decides(tmp_path: Path) -> None:
    async with running_broker(tmp_path, policies=[("own.cedar", DEMANDS)]) as lab, arena_on(lab) as arena:
        office = await office_on(arena)
        root, args = await office.root(), {"to": "ann"}
        asked = await office.asks(root, args)
        name = asked.approval or ""
        assert (await office.shows(name))["needs"] == [
            {"rule": "all", "text": "look at the sum", "count": 2, "role": "approver", "four_eyes": True}
        ]
        wrong = {
            "not-eve": person("eve", "approver"), "policy.default-deny": person("bob", "sales"),
            "approvals.four-eyes": person("ann", "approver"),
        }  # fmt: skip
        for rule, somebody in wrong.items():
            with pytest.raises(Refusal) as no:
                await decide(root.txn, name, "approve", "", somebody, lab.broker.ports)
            assert (no.value.body.rule in (rule, "approvals.roles"), no.value.body.effect) == (True, "none")
        one = await decide(root.txn, name, "approve", "", person("kim", "approver"), lab.broker.ports)
        assert not one.given
        assert (await office.asks(root, args)).approval == name, "it waits for the second person"
        with pytest.raises(Refusal, match="has decided on it before"):
            await decide(root.txn, name, "approve", "", person("kim", "approver"), lab.broker.ports)
        two = await decide(root.txn, name, "approve", "", person("lee", "approver"), lab.broker.ports)
        assert two.given
        assert (await office.sends(root, args)).value == "sent"


def taken_in(lab: Lab) -> None:
    """The policies of the folder are in force, as when the broker looks at it."""
    engine = lab.broker.ports.policy
    assert isinstance(engine, CedarEngine)
    engine.put(Policies.read(engine.folder))


SMALL = """
@id("all") @reason("all") @approve("look at the sum") permit (principal, action == Action::"call", resource);
@id("release") @reason("all") permit (principal, action == Action::"release", resource);
@id("clerks-to-50") @reason("clerks decide up to 50, of what people of sales ask for")
permit (principal in Role::"clerk", action == Action::"approve", resource)
when { context.args.numbers.hasTag("/sum") && context.args.numbers.getTag("/sum") <= 50 && context.user in Role::"sales" };
"""
TYPED = {"type": "object", "properties": {"sum": {"type": "integer"}, "to": {"type": "string"}}, "required": ["sum"]}


async def test_policy_sees_the_arguments_that_an_approver_decides_on(tmp_path: Path) -> None:
    async with running_broker(tmp_path, policies=[("own.cedar", SMALL)]) as lab, arena_on(lab) as arena:
        office = await office_on(arena)
        await office.mail.serve(
            {"name": "send", "inputSchema": {"type": "object"}}, tool("read"), {"name": "pay", "inputSchema": TYPED}
        )
        clerk = person("kim", "clerk")
        root, other = await office.root(roles=["sales"]), await office.root()
        small, large = [await office.asks(root, {"sum": amount, "to": "ann"}, PAY) for amount in (50, 51)]
        strange, lost = await office.asks(other, {"sum": 1}, PAY), await office.asks(root, {"sum": 2}, PAY)
        await lab.broker.ports.arguments.forget(("default", root.txn, lost.approval or ""))
        for held, asked in ((root, large), (other, strange), (root, lost)):
            with pytest.raises(Refusal) as no:
                await decide(held.txn, asked.approval or "", "approve", "", clerk, lab.broker.ports)
            assert no.value.body.code == "POLICY_DENIED", asked
        assert (await decide(root.txn, small.approval or "", "approve", "", clerk, lab.broker.ports)).given


async def test_policies_that_change_void_what_was_asked_and_approved(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as lab, arena_on(lab) as arena:
        office = await office_on(arena)
        root, args, other = await office.root(), {"to": "ann"}, {"to": "bob"}
        asked, waiting = await office.asks(root, args), await office.asks(root, other)
        await office.says(asked.approval)
        (tmp_path / "policies" / "more.cedar").write_text("// nothing\n", encoding="utf-8")
        taken_in(lab)
        body = await office.alice.error(SEND, root.txn, root.grant, args, approval=asked.approval)
        assert (body.code, body.rule) == ("APPROVAL_INVALID", "approve.other") and "policies" in body.message
        assert (await office.says(waiting.approval))["error"]["rule"] == "approvals.void"
        assert (await office.asks(root, args)).approval != asked.approval
        assert office.sent(root) == []


async def test_policies_that_change_between_opening_and_dispatch_void_an_approval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_broker(tmp_path) as lab, arena_on(lab) as arena:
        office = await office_on(arena)
        root, args = await office.root(), {"to": "ann"}
        asked = await office.asks(root, args)
        await office.says(asked.approval)
        opened = open_stage.open_

        async def swapped(*given: Any) -> Any:
            done = await opened(*given)
            (tmp_path / "policies" / "more.cedar").write_text("// nothing\n", encoding="utf-8")
            taken_in(lab)
            return done

        monkeypatch.setattr(pipeline, "open_", swapped)
        body = await office.alice.error(SEND, root.txn, root.grant, args)
        assert (body.code, body.rule) == ("POLICY_DENIED", "dispatch.epoch")
        assert office.sent(root) == []


async def test_nobody_without_the_operators_token_decides(office: Office) -> None:
    root = await office.root()
    asked = await office.asks(root, {"to": "ann"})
    async with httpx.AsyncClient(base_url=office.lab.broker.http, trust_env=False) as stranger:
        for headers in ({}, {"Authorization": f"Bearer {root.grant}"}):
            answer = await stranger.post(
                f"/api/approvals/{asked.approval}", json={"verdict": "approve"}, headers=headers
            )
            assert answer.status_code == 401
    assert (await office.shows(asked.approval))["state"] == "waiting"


async def test_a_decision_can_be_bound_to_what_was_shown(office: Office) -> None:
    root = await office.root()
    one, two = await office.asks(root, {"n": 1}), await office.asks(root, {"n": 2})
    digest = (await office.shows(one.approval))["args_digest"]
    assert (await office.says(two.approval, args_digest=digest))["error"]["rule"] == "approvals.other"
    assert (await office.says(one.approval, args_digest=digest))["state"] == "approved"


async def test_nobody_approves_a_call_of_their_own(tmp_path: Path) -> None:
    me = getpass.getuser()
    async with running_broker(tmp_path, {"approvals": {"four_eyes": True}}) as lab, arena_on(lab) as arena:
        office = await office_on(arena)
        mine, theirs = await office.root(user=me), await office.root(user="ann")
        asked, other = await office.asks(mine, {"n": 1}), await office.asks(theirs, {"n": 1})
        assert (await office.says(asked.approval))["error"]["rule"] == "approvals.four-eyes"
        assert (await office.shows(asked.approval))["state"] == "waiting"
        assert (await office.says(other.approval))["state"] == "approved"
        assert (await office.says(asked.approval, "deny"))["state"] == "denied"


async def test_somebody_who_is_revoked_decides_nothing(tmp_path: Path) -> None:
    me = getpass.getuser()
    async with running_broker(tmp_path) as lab, arena_on(lab) as arena:
        office = await office_on(arena)
        await office.root(user=me)  # whom nobody knows cannot be revoked
        root, args = await office.root(), {"to": "ann"}
        asked, other = await office.asks(root, args), await office.asks(root, {"to": "bob"})
        await office.says(other.approval)
        assert (await office.api.post("/api/revocations", json={"user": me})).status_code == 200
        assert (await office.says(asked.approval))["error"]["rule"] == "revoked.user"
        assert (await office.shows(asked.approval))["state"] == "waiting"


async def test_an_approval_of_somebody_who_was_revoked_is_void(tmp_path: Path) -> None:
    me = getpass.getuser()
    async with running_broker(tmp_path) as lab, arena_on(lab) as arena:
        office = await office_on(arena)
        await office.root(user=me)
        root, args = await office.root(), {"to": "ann"}
        asked = await office.asks(root, args)
        await office.says(asked.approval)
        assert (await office.api.post("/api/revocations", json={"user": me})).status_code == 200
        body = await office.alice.error(SEND, root.txn, root.grant, args, approval=asked.approval)
        assert (body.code, body.rule) == ("APPROVAL_INVALID", "approve.revoked")
        assert (await office.asks(root, args)).approval != asked.approval, "somebody else is asked"
        assert office.sent(root) == []


async def wait_for(agent: RawAgent, txn: str, grant: str, name: str | None, seconds: float = 2.0) -> list[Any]:
    """``approval.wait``, as the wire has it."""
    deadline = int((time.time() + seconds) * 1000)
    return list(await agent.call("remit/approval/wait", txn, grant, {"id": name}, deadline=deadline))


async def test_who_asked_and_those_above_hear_of_the_decision_as_it_is_made(office: Office) -> None:
    root = await office.root()
    calling = asyncio.ensure_future(office.alice.call("agent/bob/brief", root.txn, root.grant))
    taken = await office.bob.took(root.txn)
    asked = await office.bob.error(SEND, root.txn, taken.grant, {"to": "ann"})
    waiting = [
        asyncio.ensure_future(wait_for(who, root.txn, grant, asked.approval))
        for who, grant in ((office.bob, taken.grant), (office.alice, root.grant))
    ]
    await office.says(asked.approval, "deny", reason="no")
    for end in await asyncio.gather(*waiting):
        assert end[-1].value == {"id": asked.approval, "state": "denied", "reason": "no"}
    await taken.done()
    await calling


async def test_nobody_else_waits_for_an_approval(office: Office) -> None:
    root = await office.root()
    asked = await office.asks(root, {"to": "ann"})
    calling = asyncio.ensure_future(office.alice.call("agent/bob/brief", root.txn, root.grant))
    taken = await office.bob.took(root.txn)
    for name in (asked.approval, "f" * 16):
        body = error_of(await wait_for(office.bob, root.txn, taken.grant, name))
        assert (body.code, body.rule) == ("UNKNOWN_TARGET", "approval.unknown")
    body = error_of(await wait_for(office.alice, root.txn, root.grant, asked.approval, 0.4))
    assert (body.code, body.rule) == ("DEADLINE_EXCEEDED", "approval.waiting")
    await taken.done()
    await calling


async def test_a_callee_cannot_name_an_approval(office: Office) -> None:
    root = await office.root()
    calling = asyncio.ensure_future(office.alice.call("agent/bob/brief", root.txn, root.grant))
    taken = await office.bob.took(root.txn)
    body = ErrorBody(code=Code.APPROVAL_REQUIRED, message="pay", approval="f" * 16, approval_url="http://evil.example")
    await taken.say(Error(error=body))
    heard = error_of(await calling)
    assert (heard.approval, heard.approval_url) == (None, None)
