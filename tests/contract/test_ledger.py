"""The contract of the ledger with its store: on a real NATS server with durable sync, and on the simulated one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from remit_broker.adapters.jetstream import ApiError, JetStream
from remit_broker.adapters.jetstream_ledger import JetStreamLedger
from remit_broker.adapters.ledger_memory import STREAM
from remit_broker.core.fold import Fold
from remit_broker.ledger_port import LostRace
from remit_schemas.budget import ONE_CALL, ZERO, Budget
from remit_schemas.errors import Code, Refusal
from tests.contract.stores import Store, contract
from tests.support.story import TXN, closing, ending, hop_id, opened, opening

KEY = ("default", TXN)


async def replica(server: Store, **options: Any) -> JetStreamLedger:
    return await JetStreamLedger.start(await server.connect(), **options)


async def opens(ledger: JetStreamLedger, hop: str, budget: Budget = ONE_CALL) -> Fold | LostRace:
    async with ledger.turn(*KEY) as turn:
        return await turn.append(opening(turn.fold, hop, budget=budget), "a-grant")


async def halts(ledger: JetStreamLedger) -> str:
    async with asyncio.timeout(20):
        while ledger.halted is None:
            try:
                await ledger.newest(*KEY)
            except Refusal:
                await asyncio.sleep(0.05)
    return ledger.halted


async def reading(ledger: JetStreamLedger) -> Fold:
    """The fold, as soon as the ledger answers again."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await ledger.newest(*KEY)
            except Refusal as no:
                assert no.body.code is Code.LEDGER_UNAVAILABLE
                await asyncio.sleep(0.05)


@contract
async def test_what_one_replica_appends_another_reads(server: Store) -> None:
    one, two = await replica(server), await replica(server)
    await one.create(opened(), "root-grant")
    opened_ = await opens(one, hop_id(0))
    assert await two.fold(*KEY) == opened_
    async with two.turn(*KEY) as turn:
        closed = await turn.append(closing(turn.fold, hop_id(0)), None)
        assert isinstance(closed, Fold)
        ended = await turn.append(ending(closed), None)
    assert isinstance(ended, Fold) and ended.state == "closed"
    assert await one.newest(*KEY) == ended
    assert one.high == two.high == 4


@contract
async def test_replicas_that_race_never_spend_more_than_the_root(server: Store) -> None:
    """Four replicas, each trying to open more than there is; what wins is exactly what there is."""
    replicas = [await replica(server) for _ in range(4)]
    await replicas[0].create(opened(budget=Budget(0, 0, 40)), "g")
    won: list[str] = []

    async def spend(ledger: JetStreamLedger, first: int) -> None:
        for number in range(first, first + 20):
            async with ledger.turn(*KEY) as turn:
                while ONE_CALL.within(turn.fold.left(turn.fold.root)):
                    appended = await turn.append(opening(turn.fold, hop_id(number), budget=ONE_CALL), None)
                    if isinstance(appended, Fold):
                        won.append(hop_id(number))
                        break

    await asyncio.gather(*(spend(ledger, 100 * index) for index, ledger in enumerate(replicas)))
    folds = [await ledger.newest(*KEY) for ledger in replicas]
    assert len(won) == 40 and set(won) == set(folds[0].nodes) - {folds[0].root}
    assert all(fold == folds[0] for fold in folds) and folds[0].left(folds[0].root) == ZERO


@contract
async def test_what_was_acknowledged_survives_a_killed_server(server: Store) -> None:
    ledger = await replica(server)
    await ledger.create(opened(), "g")
    acknowledged = [hop_id(number) for number in range(20) if isinstance(await opens(ledger, hop_id(number)), Fold)]
    await server.kill()
    await server.start()
    fold = await reading(ledger)
    assert all(fold.is_open(hop) for hop in acknowledged) and ledger.halted is None
    assert isinstance(await opens(ledger, "e" * 16), Fold)


@contract
async def test_appends_during_a_crash_are_known_or_refused(server: Store) -> None:
    """Whatever an append answered while the server was killed and started again, the stream agrees with it."""
    ledger = await replica(server, patience=10.0)
    await ledger.create(opened(budget=Budget(0, 0, 1000)), "g")
    said: dict[str, bool | None] = {}

    under_way = asyncio.Event()

    async def keep_opening() -> None:
        for number in range(400):
            if number == 100:
                under_way.set()
            try:
                said[hop_id(number)] = isinstance(await opens(ledger, hop_id(number)), Fold)
            except Refusal:
                said[hop_id(number)] = None

    task = asyncio.create_task(keep_opening())
    await under_way.wait()
    await server.kill()
    await server.start()
    await task
    fold = await reading(ledger)
    assert all(fold.is_open(hop) for hop, answer in said.items() if answer)
    assert not any(fold.is_open(hop) for hop, answer in said.items() if answer is False)
    assert ledger.halted is None and sum(1 for answer in said.values() if answer) > 300


@contract
async def test_a_frozen_server_is_refused_in_time_and_known_again_afterwards(server: Store) -> None:
    ledger = await replica(server, patience=0.5, attempt=0.2)
    await ledger.create(opened(), "g")
    server.freeze()
    began = asyncio.get_running_loop().time()
    with pytest.raises(Refusal) as no:
        await opens(ledger, hop_id(0))
    assert no.value.body.code is Code.LEDGER_UNAVAILABLE and asyncio.get_running_loop().time() - began < 3
    server.thaw()
    fold = await reading(ledger)
    # The refused append may have been stored; then it is there, whole, and the next stands on it.
    assert fold.seq in (0, 1) and fold.is_open(hop_id(0)) == (fold.seq == 1)
    assert isinstance(await opens(ledger, hop_id(7)), Fold)


@contract
async def test_a_server_that_lost_records_halts_the_ledger(server: Store) -> None:
    """The store of some records ago comes back: a restored backup, or a torn end of a file."""
    ledger = await replica(server)
    await ledger.create(opened(), "g")
    await server.copy()
    await reading(ledger)
    assert isinstance(await opens(ledger, hop_id(0)), Fold)
    await server.go_back()
    assert "2" in await halts(ledger)
    with pytest.raises(Refusal) as no:
        await ledger.create(opened("b" * 32), "g")
    assert no.value.body.rule == "ledger.halted"


@contract
async def test_a_server_that_lost_records_and_was_written_on_halts_the_ledger(server: Store) -> None:
    """As above, and another replica, which knows nothing, has appended in the place of what was lost."""
    ledger = await replica(server)
    await ledger.create(opened(), "g")
    await server.copy()
    await reading(ledger)
    assert isinstance(await opens(ledger, hop_id(0)), Fold)
    await server.go_back()
    other = await replica(server)
    assert isinstance(await opens(other, hop_id(1)), Fold)
    assert await halts(ledger)


@contract
async def test_records_cannot_be_deleted_or_purged(server: Store) -> None:
    ledger = await replica(server)
    await ledger.create(opened(), "g")
    js = JetStream(await server.connect())
    for subject, body in (
        (f"STREAM.MSG.DELETE.{STREAM}", {"seq": 1}),
        (f"STREAM.PURGE.{STREAM}", {}),
        (f"STREAM.UPDATE.{STREAM}", {"name": STREAM, "subjects": ["ledger.>"], "deny_delete": False}),
    ):
        with pytest.raises(ApiError):
            await js.api(subject, body)
    assert (await ledger.newest(*KEY)).seq == 0


@contract
async def test_a_full_ledger_refuses_to_open_and_still_closes(server: Store) -> None:
    ledger = await replica(server, max_bytes=60_000, soft_mark=0.8)
    await ledger.create(opened(budget=Budget(0, 0, 1000)), "g")
    opened_: list[str] = []
    with pytest.raises(Refusal) as no:
        for number in range(100):
            await opens(ledger, hop_id(number))
            opened_.append(hop_id(number))
    assert no.value.body.rule == "ledger.soft-mark" and len(opened_) > 10
    for hop in opened_[:5]:
        async with ledger.turn(*KEY) as turn:
            assert isinstance(await turn.append(closing(turn.fold, hop), None), Fold)


@contract
async def test_a_full_stream_refuses(server: Store) -> None:
    ledger = await replica(server, max_bytes=20_000, soft_mark=10.0)
    await ledger.create(opened(), "g")
    with pytest.raises(Refusal) as no:
        for number in range(60):
            await opens(ledger, hop_id(number))
    assert no.value.body.code is Code.LEDGER_UNAVAILABLE and "10077" in no.value.cause
    assert (await ledger.newest(*KEY)).seq > 3 and ledger.halted is None


@contract
async def test_a_name_that_is_no_txn_finds_nobody_elses(server: Store) -> None:
    ledger = await replica(server)
    await ledger.create(opened(), "g")
    for name in [("*", TXN), ("default", "*"), ("default", ">"), ("default", "b" * 32)]:
        with pytest.raises(Refusal) as no:
            await ledger.fold(*name)
        assert no.value.body.rule == "ledger.unknown-txn"


@contract
async def test_replicas_starting_together_make_one_stream(server: Store) -> None:
    ledgers = await asyncio.gather(*(replica(server) for _ in range(5)))
    await ledgers[0].create(opened(), "g")
    assert (await ledgers[4].fold(*KEY)).seq == 0


@contract
async def test_appends_that_wait_for_the_disk_share_the_wait_and_nothing_else(server: Store) -> None:
    """A hundred txns at once, one of them raced: whatever was answered is what the stream says."""
    ledger, rival = await replica(server, grouped=True), await replica(server)
    txns = [f"{number + 1:032x}" for number in range(100)]
    await asyncio.gather(*(ledger.create(opened(txn), "root-grant") for txn in txns))
    async with rival.turn("default", txns[50]) as turn:
        assert isinstance(await turn.append(opening(turn.fold, hop_id(9)), None), Fold)

    async def open_and_close(txn: str) -> Fold | LostRace:
        async with ledger.turn("default", txn) as turn:
            first = await turn.append(opening(turn.fold, hop_id(0)), "grant")
            return first if isinstance(first, LostRace) else await turn.append(closing(first, hop_id(0)), None)

    outcomes = await asyncio.gather(*(open_and_close(txn) for txn in txns))
    assert ledger._groups is not None and ledger._groups.batches > 0
    assert [txn for txn, outcome in zip(txns, outcomes, strict=True) if isinstance(outcome, LostRace)] == [txns[50]]
    fresh = await replica(server)
    for txn, outcome in zip(txns, outcomes, strict=True):
        assert await fresh.fold("default", txn) == (outcome.fold if isinstance(outcome, LostRace) else outcome)
