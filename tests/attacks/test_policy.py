"""Policy on the path of a hop: what it takes away is taken away, and what changes while a hop runs is noticed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from remit_broker.adapters.cedar import packaged
from remit_broker.testing import running_broker
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
