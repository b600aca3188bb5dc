"""Accounts and revocations on their buckets: on a real NATS server, and on the simulated one."""

from __future__ import annotations

import asyncio
from typing import Any

from remit_broker.adapters.jetstream import JetStream
from remit_broker.adapters.kv_accounts import KvAccounts
from remit_broker.adapters.revocations import KvRevocations
from remit_broker.core.accounts import Reservation
from remit_broker.core.caps import Whose, parse_caps
from remit_broker.core.revocations import Entry
from remit_schemas.budget import ONE_CALL, ZERO
from remit_schemas.errors import Code, Refusal
from tests.contract.stores import Store, contract

CAPS = parse_caps({"user": {"ann": {"day": "calls=20"}}})
ANN = Whose("default", "ann", "worker", "")


def _no_fault(where: str, error: BaseException) -> None:
    """A server that is away is a fault to be reported, and nothing else."""


async def accounts(store: Store, replica: str) -> KvAccounts:
    return await KvAccounts(JetStream(await store.connect()), CAPS, store.clock, replica).start(1, _no_fault)


async def reserved(replica: KvAccounts, times: int) -> list[Reservation]:
    """As many reservations as there is room for, of so many."""
    found = []
    for _ in range(times):
        try:
            found.append(await replica.reserve(ANN, ONE_CALL))
        except Refusal as no:
            assert no.body.code is Code.BUDGET_EXCEEDED
    return found


@contract
async def test_replicas_that_race_for_a_cap_reserve_exactly_what_there_is(store: Store) -> None:
    replicas = [await accounts(store, f"r{number}") for number in range(4)]
    won = await asyncio.gather(*(reserved(replica, 12) for replica in replicas))
    assert 17 <= sum(map(len, won)) <= 20  # near the end a lease of another may hold the last ones
    for replica in replicas:
        await replica.stop()


@contract
async def test_what_a_replica_did_not_spend_another_can_have(store: Store) -> None:
    one, two = await accounts(store, "r0"), await accounts(store, "r1")
    held = await reserved(one, 20)
    assert len(held) == 20 and not await reserved(two, 1)
    for reservation in held[5:]:
        one.settle(reservation, ZERO)
    for reservation in held[:5]:
        one.settle(reservation, ONE_CALL)
    await one.stop()
    assert len(await reserved(two, 20)) == 15
    await two.stop()


@contract
async def test_a_lease_that_nobody_gives_back_counts_as_spent(store: Store) -> None:
    dead, two = await accounts(store, "r0"), await accounts(store, "r1")
    taken = len(await reserved(dead, 10))
    assert taken == 10
    if dead._task is not None:
        dead._task.cancel()
    assert len(await reserved(two, 20)) <= 10
    await two.stop()


async def revocations(store: Store, replica: str) -> KvRevocations:
    found = KvRevocations(store.clock, _no_fault, replica)
    await found.start((await store.connect()).jetstream(), 1)
    return found


def revoked(name: str) -> Entry:
    return Entry(kind="agent", name=name, who="op", at="2027-01-15T08:00:00.000Z")


async def until(condition: Any, seconds: float) -> bool:
    due = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > due:
            return False
        await asyncio.sleep(0.02)
    return True


@contract
async def test_what_one_replica_revokes_the_others_know_within_two_seconds(store: Store) -> None:
    one, two = await revocations(store, "r0"), await revocations(store, "r1")
    await one.put(revoked("leaf"))
    assert one.of("default").check(("leaf",), "") is not None
    assert await until(lambda: two.of("default").check(("leaf",), "") is not None, 2.0) and two.fresh
    late = await revocations(store, "r2")
    assert late.of("default").check(("leaf",), "") is not None
    for replica in (one, two, late):
        await replica.stop()


@contract
async def test_silence_is_noticed_and_ends(store: Store) -> None:
    one = await revocations(store, "r0")
    await one.put(revoked("leaf"))
    await store.kill()
    assert await until(lambda: not one.fresh, 3.0)
    await store.start()
    assert await until(lambda: one.fresh, 15.0) and one.of("default").check(("leaf",), "") is not None
    await one.stop()
