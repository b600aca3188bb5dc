"""A replica decides by what it remembers of a task. Where another one has gone on meanwhile, it looks before it says no."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remit_broker.hop.admit import admit
from remit_broker.hop.decide import wait
from remit_broker.hop.hop import Ask, Hop
from remit_broker.hop.keep import find
from remit_broker.hop.txn import revoke
from remit_broker.hop.verify import holder
from remit_schemas import subjects
from remit_schemas.envelope import Request, Result, encode
from remit_schemas.errors import Refusal
from remit_schemas.grant import parse
from remit_schemas.names import Resource
from tests.attacks.test_budget_race import known, two_replicas
from tests.support.raw import Arena, RawAgent, arena_on, skill

BRIEF = "agent/bob/brief"


class Two:
    """Two replicas, a caller and a callee."""

    def __init__(self, first: Arena, second: Arena, alice: RawAgent, bob: RawAgent) -> None:
        self.labs, self.alice, self.bob = (first.lab, second.lab), alice, bob

    async def remember(self, txn: str) -> None:
        """Both remember the task as it is now."""
        for lab in self.labs:
            await lab.broker.ledger.newest("default", txn)


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    async with two_replicas(tmp_path) as (first, second), arena_on(first) as one, arena_on(second) as other:
        alice, bob = await one.agent("alice"), await one.agent("bob")
        await bob.serve(skill("brief"))
        await bob.wait_for_input()
        await known(first, second)
        yield Two(one, other, alice, bob)


@pytest.mark.parametrize("knows_the_hop", [False, True])
async def test_a_replica_that_is_behind_resumes_what_another_one_parked(two: Two, knows_the_hop: bool):
    root = await two.labs[0].grant("alice", "agent/**")
    await two.remember(root.txn)
    calling = asyncio.ensure_future(two.alice.call(BRIEF, root.txn, root.grant))
    taken = await two.bob.took(root.txn)
    if knows_the_hop:
        await two.remember(root.txn)
    await taken.park()
    await calling
    hop, replica = taken.dispatch.hop, taken.dispatch.replica
    behind = next(lab for lab in two.labs if lab.broker.replica != replica)
    request = Request(grant=root.grant, resume=hop, input="yes", deadline=2**50)
    control = subjects.control("alice", behind.broker.replica, root.txn, hop)
    asking = asyncio.ensure_future(two.alice.ask(control, encode(request)))
    await (await two.bob.took(root.txn, 2)).done()
    assert isinstance((await asking)[-1], Result)


async def test_a_replica_that_is_behind_knows_a_grant_that_another_one_renewed(
    two: Two, monkeypatch: pytest.MonkeyPatch
):
    clock = two.labs[0].broker.ports.clock
    now, ahead = clock.now, [0.0]
    monkeypatch.setattr(type(clock), "now", lambda _: now() + ahead[0])
    root = await two.labs[0].grant("alice", "agent/**", ttl=3600)
    calling = asyncio.ensure_future(two.alice.call(BRIEF, root.txn, root.grant, want={"ttl_ms": 1_800_000}))
    taken = await two.bob.took(root.txn)
    await two.remember(root.txn)
    ahead[0] += 40
    subject = f"req.bob.{root.txn}.remit.grant.renew"
    told = (await two.bob.ask(subject, encode(Request(grant=taken.grant, deadline=2**50))))[-1]
    assert isinstance(told, Result) and parse(told.value["grant"]).claims.jti.endswith(".2")
    for lab in two.labs:  # one of them has not heard of it
        await lab.broker.ports.ledger.fold("default", root.txn)
    for _ in range(12):
        body = await two.bob.error(BRIEF, root.txn, told.value["grant"])
        assert body.code == "CYCLE", "it is decided on, and not taken for a grant that nobody minted"
    await taken.done()
    await calling


@pytest.mark.parametrize("service", ["result.get", "approval.wait"])
async def test_a_replica_that_is_behind_gives_out_nothing_for_what_was_revoked(two: Two, service: str):
    """Revoked at one replica; the other one remembers the task as it was, and is asked for what was kept or decided in it."""
    root = await two.labs[0].grant("alice", "agent/**")
    calling = asyncio.ensure_future(two.alice.call(BRIEF, root.txn, root.grant, keep=True, key="k"))
    taken = await two.bob.took(root.txn)
    await taken.done("for nobody else")
    await calling
    await two.remember(root.txn)
    await revoke("default", parse(root.grant).claims.jti, "ops", "", two.labs[0].broker.ports)
    ports = two.labs[1].broker.ports
    assert not (await ports.ledger.fold("default", root.txn)).revoked, "it is behind"
    args = {"hop": taken.dispatch.hop} if service == "result.get" else {"id": "f" * 16}
    ask = Ask(
        tenant="default", caller="alice", txn=root.txn, resource=Resource("agent", "remit", "x"),
        reply="_INBOX_alice.ABCDEFGHIJKLMNOPQRSTUV.x1", data=encode(Request(grant=root.grant, args=args)),
        at=ports.clock.now(), mono=ports.clock.monotonic(),
    )  # fmt: skip
    hop = await holder(await admit(Hop(ask=ask, id=ports.ids.hop()), ports), ports)
    with pytest.raises(Refusal) as no:
        await (find(hop, ports) if service == "result.get" else wait(hop, ports))
    assert (no.value.body.code, no.value.body.rule) == ("GRANT_REVOKED", "grant.revoked")
