"""What ends a task without its opener: idleness, and that it has grown too long to grow on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from remit_broker.core.fold import fold_all
from remit_broker.core.times import rfc3339
from remit_broker.hop import open as opening
from remit_broker.hop.scan import close_idle
from remit_broker.testing import Lab, running_broker
from tests.attacks.test_budget_race import everything, known, two_replicas
from tests.support.raw import Arena, arena_on, error_of, skill, tool

READ = "mcp/files/read"
HELP = "agent/helper/help"
LITTLE = {"budget": {"usd_micros": 0, "tokens": 0, "calls": 3}}


async def closed(lab: Lab, txn: str) -> dict[str, Any]:
    async with asyncio.timeout(15):
        while (last := (await lab.records(txn))[-1])["kind"] != "txn.closed":
            await asyncio.sleep(0.1)
    return last


async def test_a_task_without_records_or_open_hops_is_closed_as_idle(tmp_path: Path) -> None:
    async with running_broker(tmp_path, {"limits": {"txn_idle": 1.0}}) as lab, arena_on(lab) as arena:
        alice, helper = await arena.agent("alice"), await arena.agent("helper")
        await helper.serve(skill("help"))
        idle, busy = await lab.grant("alice", "agent/**"), await lab.grant("alice", "agent/**")
        running = asyncio.ensure_future(alice.call(HELP, busy.txn, busy.grant))
        taken = await helper.took(busy.txn)
        last = await closed(lab, idle.txn)
        assert (last["reason"], last["who"]) == ("idle", "broker")
        assert (await alice.error(HELP, idle.txn, idle.grant)).code == "GRANT_CLOSED"
        # The other one is as old, and somebody works on it.
        assert [record["kind"] for record in await lab.records(busy.txn)] == ["txn.opened", "hop.opened"]
        await taken.done()
        await running
        assert (await closed(lab, busy.txn))["reason"] == "idle"


async def idle_now(lab: Lab) -> list[tuple[str, str, int]]:
    await lab.broker.caught_up()
    return list(await lab.broker.index.idle_txns(rfc3339(lab.broker.ports.clock.now() + 60)))


async def cast(arena: Arena) -> Any:
    alice, files = await arena.agent("alice"), await arena.agent("files", "mcp")
    files.handlers["read"] = lambda taken: taken.done("x")
    await files.serve(tool("read"))
    return alice, files


async def test_a_task_that_goes_on_meanwhile_is_not_closed_as_idle(lab: Lab) -> None:
    """Found idle, then used: what was found is not true any more when its turn comes."""
    async with arena_on(lab) as arena:
        alice, _ = await cast(arena)
        root = await lab.grant("alice", "mcp/**")
        found = await idle_now(lab)
        assert [one[1] for one in found] == [root.txn]
        await alice.result(READ, root.txn, root.grant)
        await close_idle(found, lab.broker.ports)
        await alice.result(READ, root.txn, root.grant)
        await close_idle(await idle_now(lab), lab.broker.ports)
        assert (await lab.records(root.txn))[-1]["kind"] == "txn.closed"


async def test_replicas_that_find_the_same_idle_tasks_close_each_once(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (first, second), arena_on(first) as arena:
        alice, _ = await cast(arena)
        await known(first, second)
        roots = [await first.grant("alice", "mcp/**") for _ in range(20)]
        found = await idle_now(first)
        calls = [asyncio.ensure_future(alice.call(READ, root.txn, root.grant)) for root in roots[:10]]
        await asyncio.gather(*(close_idle(found, lab.broker.ports) for lab in (first, second)), *calls)
        for root in roots:
            kinds = [record["kind"] for record in await everything(first, second, root.txn)]
            assert kinds.count("txn.closed") <= 1 and kinds.count("hop.opened") == kinds.count("hop.closed")
            assert ("txn.closed" in kinds) != ("hop.opened" in kinds), "either it went on, or it was closed"
        ends = [(await first.records(root.txn))[-1]["kind"] for root in roots[10:]]
        assert set(ends) == {"txn.closed"}


async def test_a_task_with_too_many_records_opens_nothing_new_and_closes_what_is_open(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opening.MAX_RECORDS == 2000
    monkeypatch.setattr(opening, "MAX_RECORDS", 5)
    async with arena_on(lab) as arena:
        alice, _ = await cast(arena)
        helper = await arena.agent("helper")
        await helper.serve(skill("help"))
        root = await lab.grant("alice", "mcp/**", "agent/**")
        running = [asyncio.ensure_future(alice.call(HELP, root.txn, root.grant, want=LITTLE)) for _ in range(2)]
        took = [await helper.took(root.txn, number) for number in (1, 2)]
        await helper.result(READ, root.txn, took[0].grant)
        for caller, grant in ((alice, root.grant), (helper, took[1].grant)):
            body = await caller.error(READ, root.txn, grant)
            assert (body.code, body.rule, body.effect, body.retryable) == ("TOO_LARGE", "open.records", "none", False)
            assert "new task" in body.ask
        for taken in took:
            await taken.done()
        assert not any(frames[-1] is None or hasattr(frames[-1], "error") for frames in await asyncio.gather(*running))
        await alice.result("remit/txn/close", root.txn, root.grant)
        fold = fold_all(await lab.records(root.txn))
        assert fold.state == "closed" and fold.seq == 7
        assert error_of(await alice.call(READ, root.txn, root.grant)).code == "GRANT_CLOSED"
