"""Many callers, one last cent: whatever the interleaving, and however many replicas, the tree never authorises more than its root."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from remit_broker.core.fold import Fold, apply
from remit_broker.hop.txn import Opened, revoke
from remit_broker.testing import Lab, running_broker
from remit_schemas.budget import Budget
from remit_schemas.envelope import Error, Result
from remit_schemas.grant import parse
from tests.support.raw import Arena, RawAgent, Taken, arena_on, error_of, skill, tool

READ = "mcp/files/read"
ONE = {"budget": {"usd_micros": 100_000, "tokens": 0, "calls": 1}}


def conserved(records: list[dict[str, Any]]) -> Fold:
    """Replay the records; at each one, at every node, held and spent are within the limit. The last fold."""
    fold: Fold | None = None
    for record in records:
        fold = apply(fold, record)
        for node in fold.nodes.values():
            assert (node.held + node.spent).within(node.limit), f"at seq {fold.seq}, hop {node.hop}"
    assert fold is not None
    return fold


@asynccontextmanager
async def two_replicas(
    folder: Path, config: Mapping[str, Any] | None = None, policies: Sequence[tuple[str, str]] = ()
) -> AsyncIterator[tuple[Lab, Lab]]:
    """Two brokers on one bus with the same keys, each in a folder of its own."""
    async with running_broker(folder / "one", config, policies) as first:
        keys = folder / "two" / "data" / "keys"
        keys.parent.mkdir(parents=True, mode=0o700)
        shutil.copytree(folder / "one" / "data" / "keys", keys)
        async with running_broker(folder / "two", {**(config or {}), "bus": {"url": first.url}}, policies) as second:
            yield first, second


async def everything(first: Lab, second: Lab, txn: str) -> list[dict[str, Any]]:
    """The records of a txn as the first replica's index has them when it has reached what either has written."""
    await first.broker.index.wait_for(max(first.broker.ledger.high, second.broker.ledger.high))
    return await first.records(txn)


async def cast(arena: Arena) -> tuple[RawAgent, RawAgent]:
    alice, files = await arena.agent("alice"), await arena.agent("files", "mcp")

    async def answer(taken: Taken) -> None:
        await taken.done("x", cost=Budget(100_000, 0, 0))

    files.handlers["read"] = answer
    await files.serve(tool("read"))
    return alice, files


async def known(first: Lab, second: Lab) -> None:
    """The second replica has heard of Alice: a write returns once the replica that wrote has seen it."""
    alice = first.broker.registry.principal("alice")
    assert alice is not None
    await second.broker.registry.add(alice)


async def race(alice: RawAgent, root: Opened, count: int, **fields: Any) -> tuple[int, set[str]]:
    """``count`` calls at once: how many worked, and the codes of the others."""
    ends = await asyncio.gather(*(alice.call(READ, root.txn, root.grant, **fields) for _ in range(count)))
    codes = {error_of(frames).code.value for frames in ends if isinstance(frames[-1], Error)}
    return sum(isinstance(frames[-1], Result) for frames in ends), codes


async def test_64_calls_race_for_money_for_10(lab: Lab) -> None:
    async with arena_on(lab) as arena:
        alice, files = await cast(arena)
        root = await lab.grant("alice", "mcp/**", budget="usd=1,calls=1000")
        worked, codes = await race(alice, root, 64, want=ONE)
        records = await lab.records(root.txn)
        fold = conserved(records)
        assert worked == sum(r["kind"] == "hop.opened" for r in records) == len(files.work(root.txn)) == 10
        assert codes == {"BUDGET_EXCEEDED"}
        assert (fold.totals.spent.usd_micros, fold.totals.held, fold.totals.overrun.usd_micros) == (
            1_000_000, Budget(0, 0, 0), 0,
        )  # fmt: skip
        refused = await lab.refusals(root.txn)
        assert sum(record["count"] for record in refused) <= 54


async def test_64_calls_race_for_the_last_call(lab: Lab) -> None:
    async with arena_on(lab) as arena:
        alice, files = await cast(arena)
        root = await lab.grant("alice", "mcp/**", budget="usd=100,calls=1")
        worked, codes = await race(alice, root, 64)
        assert (worked, codes, len(files.work(root.txn))) == (1, {"BUDGET_EXCEEDED"}, 1)
        conserved(await lab.records(root.txn))


async def test_branches_of_one_tree_race_for_what_their_root_has(lab: Lab) -> None:
    """Children of different callers, each within its own hold, all within the root; everybody overspends at once."""
    async with arena_on(lab) as arena:
        alice, files = await cast(arena)
        names = [f"worker{n}" for n in range(4)]
        root = await lab.grant("alice", "mcp/**", "agent/**", budget="usd=1,calls=20")
        done: list[tuple[int, set[str]]] = []

        async def work(taken: Taken) -> None:
            mine = Opened(root.txn, taken.grant, 0)
            done.append(await race(taken.callee, mine, 8, want=ONE))
            await taken.done(cost=Budget(50_000, 0, 0))

        for name in names:
            worker = await arena.agent(name)
            worker.handlers["work"] = work
            await worker.serve(skill("work"))
        want = {"budget": {"usd_micros": 300_000, "tokens": 0, "calls": 4}}
        calls = [alice.call(f"agent/{name}/work", root.txn, root.grant, want=want) for name in names]
        ends = await asyncio.gather(*calls)
        fold = conserved(await lab.records(root.txn))
        assert sum(isinstance(frames[-1], Result) for frames in ends) == 3
        assert [worked for worked, _ in done] == [3, 3, 3] and len(files.work(root.txn)) == 9
        assert fold.totals.held == Budget(0, 0, 0)
        assert fold.totals.spent.within(fold.totals.limit)


async def test_two_replicas_race_for_money_for_10(tmp_path: Path) -> None:
    """Calls are shared out by the queue group; only the compare-and-set of the ledger stands between the replicas."""
    async with two_replicas(tmp_path) as (first, second), arena_on(first) as arena:
        alice, files = await cast(arena)
        await known(first, second)
        root = await first.grant("alice", "mcp/**", budget="usd=1,calls=1000")
        worked, codes = await race(alice, root, 64, want=ONE)
        records = await everything(first, second, root.txn)
        fold = conserved(records)
        opened = [record for record in records if record["kind"] == "hop.opened"]
        assert worked == len(opened) == len(files.work(root.txn)) == 10
        assert codes <= {"BUDGET_EXCEEDED"}
        assert fold.totals.spent.usd_micros == 1_000_000
        assert await everything(second, first, root.txn) == records


async def test_both_replicas_take_part_and_agree(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (first, second), arena_on(first) as arena:
        alice, files = await cast(arena)
        await known(first, second)
        root = await second.grant("alice", "mcp/**", budget="usd=100,calls=1000")
        worked, codes = await race(alice, root, 48)
        assert (worked, codes, len(files.work(root.txn))) == (48, set(), 48)
        records = await everything(first, second, root.txn)
        conserved(records)
        assert {record["by"] for record in records[1:]} == {first.broker.replica, second.broker.replica}


async def test_one_key_at_two_replicas_is_one_call(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (first, second), arena_on(first) as arena:
        alice, files = await cast(arena)
        await known(first, second)
        root = await first.grant("alice", "mcp/**")
        worked, codes = await race(alice, root, 32, key="job-81")
        assert (worked, codes, len(files.work(root.txn))) == (1, {"DUPLICATE"}, 1)


async def test_a_revocation_at_one_replica_binds_the_next_open_at_the_other(tmp_path: Path) -> None:
    async with two_replicas(tmp_path) as (first, second), arena_on(first) as arena:
        alice, files = await cast(arena)
        await known(first, second)
        root = await first.grant("alice", "mcp/**")
        assert (await race(alice, root, 16))[0] == 16
        await revoke("default", parse(root.grant).claims.jti, "ops", "", second.broker.ports)
        assert await race(alice, root, 16) == (0, {"GRANT_REVOKED"})
        kinds = [record["kind"] for record in await everything(first, second, root.txn)]
        assert kinds[-1] == "grant.revoked" and len(files.work(root.txn)) == 16


@pytest.mark.parametrize("ends", ["close", "revoke"])
async def test_the_end_at_one_replica_races_opens_at_both(tmp_path: Path, ends: str) -> None:
    async with two_replicas(tmp_path) as (first, second), arena_on(first) as arena:
        alice, files = await cast(arena)
        await known(first, second)
        root = await first.grant("alice", "mcp/**")
        racing = asyncio.ensure_future(race(alice, root, 32))
        await files.took(root.txn)
        if ends == "revoke":
            await revoke("default", parse(root.grant).claims.jti, "ops", "", second.broker.ports)
        else:
            await alice.result("remit/txn/close", root.txn, root.grant)
        await racing
        kinds = [record["kind"] for record in await everything(first, second, root.txn)]
        mark = kinds.index("grant.revoked" if ends == "revoke" else "txn.closed")
        assert "hop.opened" not in kinds[mark:]
        fold = conserved(await everything(first, second, root.txn))
        assert fold.totals.held == Budget(0, 0, 0)
        # Nothing worked whose opening is not in the ledger.
        opened = {
            record["hop"] for record in await everything(first, second, root.txn) if record["kind"] == "hop.opened"
        }
        assert {taken.dispatch.hop for taken in files.work(root.txn)} <= opened
