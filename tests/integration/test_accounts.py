"""Caps over a running broker: what is refused, what is counted, and what replicas do to each other."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from remit_broker.core.accounts import Key, bounds
from remit_broker.core.caps import Whose
from remit_broker.testing import Lab, running_broker
from remit_schemas.budget import ONE_CALL, ZERO, Budget
from remit_schemas.envelope import Error, Result
from remit_schemas.errors import Code, Refusal, refusal
from tests.support.process import ProcessLab, process_lab
from tests.support.raw import Arena, RawAgent, Taken, arena_on, error_of, skill, tool

READ = "mcp/files/read"
WRITE = "mcp/files/write"
SECONDS = 10.0


def money(micros: int, calls: int = 1) -> dict[str, Any]:
    return {"budget": {"usd_micros": micros, "tokens": 0, "calls": calls}}


async def cast(arena: Arena, cost: Budget | None = None) -> tuple[RawAgent, RawAgent]:
    alice, files = await arena.agent("alice"), await arena.agent("files", "mcp")

    async def answer(taken: Taken) -> None:
        await taken.done("x", cost=cost)

    files.handlers["read"] = files.handlers["write"] = answer
    await files.serve(tool("read"), tool("write"))
    return alice, files


async def rows(lab: Lab) -> dict[tuple[str, str, str], dict[str, Any]]:
    found = await lab.broker.accounts.report("default")
    return {(row["kind"], row["name"], row["window"]): row for row in found}


@asynccontextmanager
async def capped(folder: Path, caps: dict[str, Any], **config: Any) -> AsyncIterator[tuple[Lab, Arena]]:
    async with running_broker(folder, {"caps": caps, **config}) as lab, arena_on(lab) as arena:
        yield lab, arena


async def until(wanted: Callable[[], Awaitable[bool]]) -> None:
    """Ask again until the answer is yes; others work meanwhile."""
    async with asyncio.timeout(SECONDS):
        while not await wanted():
            await asyncio.sleep(0.1)


@asynccontextmanager
async def two_capped(folder: Path, caps: dict[str, Any]) -> AsyncIterator[tuple[Lab, Lab, Arena]]:
    async with capped(folder / "one", caps) as (first, arena):
        keys = folder / "two" / "data" / "keys"
        keys.parent.mkdir(parents=True, mode=0o700)
        shutil.copytree(folder / "one" / "data" / "keys", keys)
        async with running_broker(folder / "two", {"bus": {"url": first.url}, "caps": caps}) as second:
            yield first, second, arena


async def race(alice: RawAgent, root: Any, count: int, **fields: Any) -> tuple[int, set[str]]:
    ends = await asyncio.gather(*(alice.call(READ, root.txn, root.grant, **fields) for _ in range(count)))
    rules = {error_of(frames).rule for frames in ends if isinstance(frames[-1], Error)}
    return sum(isinstance(frames[-1], Result) for frames in ends), rules


async def test_a_used_up_cap_refuses_the_next_call_and_nothing_opens(tmp_path: Path) -> None:
    async with capped(tmp_path, {"user": {"default": {"day": "calls=3"}}}) as (lab, arena):
        alice, files = await cast(arena)
        for _ in range(3):
            root = await lab.grant("alice", "mcp/**")
            await alice.result(READ, root.txn, root.grant)
        root = await lab.grant("alice", "mcp/**")
        body = await alice.error(READ, root.txn, root.grant)
        await arena.refused_before_opening(body, "BUDGET_EXCEEDED", "caps.user.day", root.txn)
        assert "user ann" in body.message and "3 calls" in body.message and "left are 0 calls" in body.message
        assert body.retry_after is not None and 0 < body.retry_after <= 86400
        assert files.work(root.txn) == []
        # Another user has a day of their own.
        other = await lab.grant("alice", "mcp/**", user="bob")
        await alice.result(READ, other.txn, other.grant)


async def test_money_of_a_priced_tool_never_exceeds_a_cap(tmp_path: Path) -> None:
    prices = {"mcp/files/*": "usd=0.3,calls=1"}
    async with capped(tmp_path, {"user": {"default": {"day": "usd=1"}}}, prices=prices) as (lab, arena):
        alice, files = await cast(arena)
        root = await lab.grant("alice", "mcp/**", budget="usd=100,calls=1000")
        worked, rules = await race(alice, root, 32)
        assert (worked, rules, len(files.work(root.txn))) == (3, {"caps.user.day"}, 3)
        row = (await rows(lab))["user", "ann", "day"]
        assert row["spent"] == {"usd_micros": 900_000}
        assert row["spent"]["usd_micros"] + row["leased"]["usd_micros"] + row["left"]["usd_micros"] == 1_000_000


async def test_what_is_held_and_not_spent_comes_back(tmp_path: Path) -> None:
    async with capped(tmp_path, {"user": {"default": {"day": "usd=1"}}}) as (lab, arena):
        alice, _ = await cast(arena, Budget(100_000, 0, 0))
        root = await lab.grant("alice", "mcp/**", budget="usd=100,calls=1000")
        for _ in range(4):
            await alice.result(READ, root.txn, root.grant, want=money(700_000))
        assert (await alice.error(READ, root.txn, root.grant, want=money(700_000))).rule == "caps.user.day"
        assert (await rows(lab))["user", "ann", "day"]["spent"] == {"usd_micros": 400_000}


async def test_a_tree_is_counted_once_whatever_its_depth(tmp_path: Path) -> None:
    caps = {"tenant": {"default": {"day": "usd=10,calls=100"}}, "agent": {"default": {"day": "usd=10,calls=100"}}}
    async with capped(tmp_path, caps) as (lab, arena):
        alice, _ = await cast(arena, Budget(1000, 0, 0))
        worker = await arena.agent("worker")

        async def work(taken: Taken) -> None:
            await taken.callee.result(READ, root.txn, taken.grant, want=money(1000))
            await taken.done(cost=Budget(50_000, 0, 0))

        worker.handlers["work"] = work
        await worker.serve(skill("work"))
        # The hold of the agent's hop is more than any cap: its descendants reserve for themselves.
        root = await lab.grant("alice", "mcp/**", "agent/**", budget="usd=100,calls=300")
        await alice.result("agent/worker/work", root.txn, root.grant, want=money(50_000_000, 200))
        found = await rows(lab)
        assert found["tenant", "default", "day"]["spent"] == {"usd_micros": 51_000, "calls": 2}
        assert found["agent", "worker", "day"]["spent"] == {"usd_micros": 51_000, "calls": 2}
        assert ("agent", "alice", "day") not in found
        assert all(row["held"] == {"usd_micros": 0, "calls": 0} for row in found.values())


async def test_a_reported_overrun_is_recorded_and_blocks_what_follows(tmp_path: Path) -> None:
    async with capped(tmp_path, {"agent": {"worker": {"day": "usd=0.5"}}}) as (lab, arena):
        alice, worker = await arena.agent("alice"), await arena.agent("worker")
        worker.handlers["work"] = lambda taken: taken.done(cost=Budget(700_000, 0, 0))
        await worker.serve(skill("work"))
        root = await lab.grant("alice", "agent/**", budget="usd=100,calls=100")
        await alice.result("agent/worker/work", root.txn, root.grant)
        body = await alice.error("agent/worker/work", root.txn, root.grant)
        assert (body.code, body.rule) == ("BUDGET_EXCEEDED", "caps.agent.day")
        row = (await rows(lab))["agent", "worker", "day"]
        assert (row["spent"], row["left"]) == ({"usd_micros": 700_000}, {"usd_micros": 0})


async def test_a_pattern_is_one_account_of_all_tools_it_matches(tmp_path: Path) -> None:
    async with capped(tmp_path, {"tool": {"mcp/files/*": {"hour": "calls=4"}, READ: {"hour": "calls=3"}}}) as (
        lab,
        arena,
    ):
        alice, _ = await cast(arena)
        root = await lab.grant("alice", "mcp/**")
        for _ in range(3):
            await alice.result(READ, root.txn, root.grant)
        assert (await alice.error(READ, root.txn, root.grant)).rule == "caps.tool.hour"
        await alice.result(WRITE, root.txn, root.grant)
        body = await alice.error(WRITE, root.txn, root.grant)
        # Others' use of what is shared is not told.
        assert "mcp/files/*" in body.message and "left" not in body.message


async def test_two_replicas_race_for_a_users_cap(tmp_path: Path) -> None:
    async with two_capped(tmp_path, {"user": {"default": {"day": "calls=40"}}}) as (first, second, arena):
        alice, files = await cast(arena)
        known = first.broker.registry.principal("alice")
        assert known is not None
        await second.broker.registry.add(known)
        users = iter(("ann", "bob", "carl", "dora", "eve"))
        while True:
            user = next(users, "")
            assert user, "one replica did it all: nothing was raced"
            roots = [await first.grant("alice", "mcp/**", user=user) for _ in range(4)]
            ends = await asyncio.gather(*(race(alice, root, 25) for root in roots))
            worked = sum(count for count, _ in ends)
            assert {rule for _, rules in ends for rule in rules} == {"caps.user.day"}
            assert worked == sum(len(files.work(root.txn)) for root in roots) <= 40
            await first.broker.index.wait_for(max(first.broker.ledger.high, second.broker.ledger.high))
            took = {r["by"] for root in roots for r in await first.records(root.txn) if r["kind"] == "hop.opened"}
            # One replica may be so much faster that nothing is raced: then another user's calls are.
            if took == {first.broker.replica, second.broker.replica}:
                break

        # What one replica leased and did not use comes back, and then the rest can be spent, and no more.
        async def returned() -> bool:
            return bool((await rows(first))["user", user, "day"]["left"]["calls"] == 40 - worked)

        await until(returned)
        async with asyncio.timeout(SECONDS):
            while worked < 40:
                worked += (await race(alice, roots[0], 1))[0]
        assert (await race(alice, roots[1], 8))[0] == 0


async def test_an_unused_slice_goes_back_when_a_replica_stops(tmp_path: Path) -> None:
    caps = {"user": {"default": {"day": "calls=1000"}}}
    async with capped(tmp_path / "one", caps) as (first, _):
        keys = tmp_path / "two" / "data" / "keys"
        keys.parent.mkdir(parents=True, mode=0o700)
        shutil.copytree(tmp_path / "one" / "data" / "keys", keys)
        async with running_broker(tmp_path / "two", {"bus": {"url": first.url}, "caps": caps}) as second:
            for _ in range(5):
                held = await second.broker.accounts.reserve(Whose("default", "ann", "a", ""), ONE_CALL)
                second.broker.accounts.settle(held, ONE_CALL)
            assert (await rows(first))["user", "ann", "day"]["leased"]["calls"] > 0
        row = (await rows(first))["user", "ann", "day"]
        assert (row["spent"], row["leased"], row["left"]) == ({"calls": 5}, {"calls": 0}, {"calls": 995})


async def test_what_is_being_given_back_is_not_used_meanwhile(tmp_path: Path) -> None:
    async with running_broker(tmp_path, {"caps": {"user": {"default": {"day": "calls=1000"}}}}) as lab:
        accounts, whose = lab.broker.accounts, Whose("default", "ann", "a", "")
        for _ in range(4):
            accounts.settle(await accounts.reserve(whose, ONE_CALL), ONE_CALL)
        (local,) = accounts._locals.values()
        assert local.part.free.calls > 0
        writing, going_on = asyncio.Event(), asyncio.Event()
        write = accounts._write

        async def slow(*args: Any) -> int:
            writing.set()
            await going_on.wait()
            return await write(*args)

        accounts._write = slow  # type: ignore[method-assign,assignment]
        returning = asyncio.ensure_future(accounts._return(local))
        await writing.wait()
        meanwhile = local.part.free
        reserving = asyncio.ensure_future(accounts.reserve(whose, ONE_CALL))
        going_on.set()
        await asyncio.gather(returning, reserving)
        assert meanwhile == ZERO
        row = (await rows(lab))["user", "ann", "day"]
        assert (row["spent"]["calls"], row["held"]["calls"]) == (4, 1)


async def test_the_next_window_begins_with_nothing_used(tmp_path: Path) -> None:
    async with running_broker(tmp_path, {"caps": {"user": {"default": {"day": "calls=2"}}}}) as lab:
        accounts, whose = lab.broker.accounts, Whose("default", "ann", "a", "")
        real = lab.broker.ports.clock
        ahead = 0.0

        class Clock:
            def now(self) -> float:
                return real.now() + ahead

            def monotonic(self) -> float:
                return real.monotonic()

        accounts._clock, accounts.skew = Clock(), float("inf")
        old = [await accounts.reserve(whose, ONE_CALL) for _ in range(2)]
        with pytest.raises(Refusal) as full:
            await accounts.reserve(whose, ONE_CALL)
        ahead = (full.value.body.retry_after or 0.0) + 1.0
        new = await accounts.reserve(whose, ONE_CALL)
        accounts.settle(old[0], ONE_CALL)
        row = (await rows(lab))["user", "ann", "day"]
        assert (row["spent"], row["held"]) == ({"calls": 0}, {"calls": 1}), "what was held before counts before"
        accounts.settle(new, ONE_CALL)
        # A replica whose clock is behind does not turn the account back.
        ahead = 0.0
        accounts._locals.clear()
        accounts._replica = "behind"
        later, _ = await accounts._read(Key("default", "user", "ann", "day"))
        assert later is not None and bounds("day", accounts._clock.now())[0] < later.window
        accounts.settle(await accounts.reserve(whose, ONE_CALL), ONE_CALL)
        with pytest.raises(Refusal):
            await accounts.reserve(whose, ONE_CALL)


async def test_without_the_bus_a_capped_call_is_refused(tmp_path: Path) -> None:
    async with running_broker(tmp_path, {"caps": {"user": {"default": {"day": "calls=1000"}}}}) as lab:
        accounts, whose = lab.broker.accounts, Whose("default", "ann", "a", "")
        accounts.settle(await accounts.reserve(whose, ONE_CALL), ONE_CALL)
        await lab.broker.nats.core.close()
        with pytest.raises(Refusal) as away:
            for _ in range(1000):
                await accounts.reserve(whose, ONE_CALL)
        assert (away.value.body.code, away.value.body.rule) == ("LEDGER_UNAVAILABLE", "caps.unavailable")
        assert away.value.body.retryable


async def test_a_bucket_that_is_not_understood_refuses(tmp_path: Path) -> None:
    async with running_broker(tmp_path, {"caps": {"user": {"default": {"day": "calls=1000"}}}}) as lab:
        await lab.broker.nats.core.jetstream().publish("$KV.accounts.default.user.ann.day", b'{"account":{"used":-1}}')
        with pytest.raises(Refusal) as bad:
            await lab.broker.accounts.reserve(Whose("default", "ann", "a", ""), ONE_CALL)
        assert bad.value.body.rule == "caps.unavailable"


async def test_a_call_that_is_not_opened_gives_back_what_it_reserved(tmp_path: Path) -> None:
    async with capped(tmp_path, {"user": {"default": {"day": "calls=10"}}}) as (lab, arena):
        alice, _ = await cast(arena)
        root = await lab.grant("alice", "mcp/**")
        append, lab.broker.ledger.append = lab.broker.ledger.append, None  # type: ignore[method-assign,assignment]
        assert (await alice.error(READ, root.txn, root.grant)).code == "INTERNAL"
        lab.broker.ledger.append = append  # type: ignore[method-assign]
        row = (await rows(lab))["user", "ann", "day"]
        assert (row["spent"], row["held"]) == ({"calls": 0}, {"calls": 0})


async def test_without_caps_there_is_no_bucket_and_no_account(lab: Lab) -> None:
    assert await lab.broker.accounts.report("default") == []
    assert (await lab.broker.accounts.reserve(Whose("default", "ann", "a", ""), ONE_CALL)).holds == ()


async def test_a_target_that_is_called_too_often_waits_and_others_do_not(tmp_path: Path) -> None:
    async with capped(tmp_path, {}, limits={"target_calls_per_second": 2.0}) as (lab, arena):
        alice, _ = await cast(arena)
        other = await arena.agent("other", "mcp")
        other.handlers["read"] = lambda taken: taken.done()
        await other.serve(tool("read"))
        root = await lab.grant("alice", "mcp/**")
        worked, rules = await race(alice, root, 12)
        assert 2 <= worked < 12 and rules == {"open.target-rate"}
        await alice.result("mcp/other/read", root.txn, root.grant)


def row_of(told: dict[str, Any]) -> dict[str, Any]:
    (row,) = told["budgets"]
    assert isinstance(row, dict)
    return row


@pytest.mark.slow
async def test_a_lease_of_a_killed_broker_counts_as_spent(tmp_path: Path) -> None:
    async with process_lab(tmp_path) as lab:
        text = lab.config.read_text(encoding="utf-8")
        lab.config.write_text(text + '\n[caps.user.default]\nday = "calls=100"\n', encoding="utf-8")
        await lab.start()
        await lab.agent("alice")
        await lab.agent("files", kind="mcp")
        alice, files = await attached(lab)
        txn, grant = await lab.grant("alice", "mcp/**", calls=100)
        for _ in range(12):
            await alice.result(READ, txn, grant)
        before = row_of(await lab.api("GET", "/api/budgets"))
        assert before["spent"] == {"calls": 12} and before["leased"]["calls"] > 0, "a lease is out"
        assert lab.process is not None
        lab.process.kill()
        await lab.died()
        for raw in (alice, files):
            await raw.close()
        await lab.start()
        after = row_of(await lab.api("GET", "/api/budgets"))
        assert after["left"] == before["left"], "nobody knows how much of the lease was spent"
        alice, files = await attached(lab)
        txn, grant = await lab.grant("alice", "mcp/**", calls=200)
        for _ in range(after["left"]["calls"]):
            await alice.result(READ, txn, grant)
        assert (await alice.error(READ, txn, grant)).rule == "caps.user.day"
        for raw in (alice, files):
            await raw.close()


async def attached(lab: ProcessLab) -> tuple[RawAgent, RawAgent]:
    """The two principals of a broker in a process of its own, connected and serving."""
    alice = await RawAgent(lab, "alice", "agent").connect()  # type: ignore[arg-type]
    files = await RawAgent(lab, "files", "mcp").connect()  # type: ignore[arg-type]
    files.handlers["read"] = lambda taken: taken.done("x")
    await files.serve(tool("read"))
    return alice, files


@pytest.mark.parametrize(("stored", "counted"), [(True, 2), (False, 0)])
async def test_a_call_whose_record_may_be_stored_counts_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool, counted: int
) -> None:
    """The append has no answer and the broker gives up: nothing is dispatched, but the scan will charge what was stored."""
    async with capped(tmp_path, {"user": {"default": {"day": "calls=9"}}}) as (lab, arena):
        alice, files = await cast(arena)
        root = await lab.grant("alice", "mcp/**")
        ledger = lab.broker.ports.ledger

        def gives_up(*_: object) -> None:
            raise refusal(Code.LEDGER_UNAVAILABLE, "no answer came", rule="test")

        monkeypatch.setattr(ledger, "_remembered" if stored else "_require_working", gives_up)
        body = await alice.error(READ, root.txn, root.grant, want=money(0, 2))
        monkeypatch.undo()
        assert body.code == "LEDGER_UNAVAILABLE"
        kinds = await arena.kinds(root.txn)
        assert kinds == (["txn.opened", "hop.opened"] if stored else ["txn.opened"])
        assert files.work(root.txn) == []
        row = (await rows(lab))["user", "ann", "day"]
        assert row["spent"]["calls"] + row["leased"]["calls"] >= counted
        assert row["spent"]["calls"] == counted
