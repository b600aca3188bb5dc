"""The ledger on a real NATS server with durable sync: races, crashes, losses."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.jetstream import ApiError, JetStream
from remit_broker.adapters.jetstream_ledger import STREAM, JetStreamLedger
from remit_broker.core.fold import Fold
from remit_broker.ports import LostRace
from remit_schemas.budget import ONE_CALL, ZERO, Budget
from remit_schemas.errors import Code, Refusal
from tests.support.local_nats import LocalNats, local_nats
from tests.support.story import TXN, closing, ending, hop_id, opened, opening

KEY = ("default", TXN)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[LocalNats]:
    async with local_nats(tmp_path) as server:
        yield server


async def replica(server: LocalNats, **options: Any) -> JetStreamLedger:
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


async def test_what_one_replica_appends_another_reads(server: LocalNats) -> None:
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


async def test_replicas_that_race_never_spend_more_than_the_root(server: LocalNats) -> None:
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


async def test_what_was_acknowledged_survives_a_killed_server(server: LocalNats) -> None:
    ledger = await replica(server)
    await ledger.create(opened(), "g")
    acknowledged = [hop_id(number) for number in range(20) if isinstance(await opens(ledger, hop_id(number)), Fold)]
    await server.kill()
    await server.start()
    fold = await reading(ledger)
    assert all(fold.is_open(hop) for hop in acknowledged) and ledger.halted is None
    assert isinstance(await opens(ledger, "e" * 16), Fold)


async def reading(ledger: JetStreamLedger) -> Fold:
    """The fold, as soon as the ledger answers again."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await ledger.newest(*KEY)
            except Refusal as no:
                assert no.body.code is Code.LEDGER_UNAVAILABLE
                await asyncio.sleep(0.05)


async def test_appends_during_a_crash_are_known_or_refused(server: LocalNats) -> None:
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


async def test_a_frozen_server_is_refused_in_time_and_known_again_afterwards(server: LocalNats) -> None:
    ledger = await replica(server, patience=0.5, attempt=0.2)
    await ledger.create(opened(), "g")
    server.freeze()
    began = time.monotonic()
    with pytest.raises(Refusal) as no:
        await opens(ledger, hop_id(0))
    assert no.value.body.code is Code.LEDGER_UNAVAILABLE and time.monotonic() - began < 3
    server.thaw()
    fold = await reading(ledger)
    # The refused append may have been stored; then it is there, whole, and the next stands on it.
    assert fold.seq in (0, 1) and fold.is_open(hop_id(0)) == (fold.seq == 1)
    assert isinstance(await opens(ledger, hop_id(7)), Fold)


async def test_a_server_that_lost_records_halts_the_ledger(server: LocalNats) -> None:
    """The store of some records ago comes back: a restored backup, or a torn end of a file."""
    ledger = await replica(server)
    await ledger.create(opened(), "g")
    await server.kill()
    shutil.copytree(server.folder / "store", server.folder / "old")
    await server.start()
    await reading(ledger)
    assert isinstance(await opens(ledger, hop_id(0)), Fold)
    await server.kill()
    shutil.rmtree(server.folder / "store")
    (server.folder / "old").rename(server.folder / "store")
    await server.start()
    assert "2" in await halts(ledger)
    with pytest.raises(Refusal) as no:
        await ledger.create(opened("b" * 32), "g")
    assert no.value.body.rule == "ledger.halted"


async def test_a_server_that_lost_records_and_was_written_on_halts_the_ledger(server: LocalNats) -> None:
    """As above, and another replica, which knows nothing, has appended in the place of what was lost."""
    ledger = await replica(server)
    await ledger.create(opened(), "g")
    await server.kill()
    shutil.copytree(server.folder / "store", server.folder / "old")
    await server.start()
    await reading(ledger)
    assert isinstance(await opens(ledger, hop_id(0)), Fold)
    await server.kill()
    shutil.rmtree(server.folder / "store")
    (server.folder / "old").rename(server.folder / "store")
    await server.start()
    other = await replica(server)
    assert isinstance(await opens(other, hop_id(1)), Fold)
    assert await halts(ledger)


async def test_records_cannot_be_deleted_or_purged(server: LocalNats) -> None:
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


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_age", 60 * 10**9), ("discard", "old"), ("deny_delete", False), ("deny_purge", False),
        ("allow_direct", True), ("max_msgs", 10), ("max_msgs_per_subject", 1), ("storage", "memory"),
        ("allow_rollup_hdrs", True),
        ("retention", "workqueue"), ("republish", {"src": "ledger.>", "dest": "out.>"}), ("max_msg_size", 100),
    ],
)  # fmt: skip
async def test_a_stream_that_could_lose_records_is_refused_by_the_name_of_the_setting(
    server: LocalNats, setting: str, value: Any
) -> None:
    config: dict[str, Any] = {
        "name": STREAM, "subjects": ["ledger.>"], "storage": "file", "discard": "new", "retention": "limits",
        "num_replicas": 1, "deny_delete": True, "deny_purge": True, "max_consumers": -1,
    }  # fmt: skip
    if setting == "allow_rollup_hdrs":
        config["deny_purge"] = False
    js = JetStream(await server.connect())
    await js.api(f"STREAM.CREATE.{STREAM}", config | {setting: value})
    with pytest.raises(ConfigError, match=setting if setting != "allow_rollup_hdrs" else "deny_purge|allow_rollup"):
        await replica(server)


async def test_a_full_ledger_refuses_to_open_and_still_closes(tmp_path: Path) -> None:
    async with local_nats(tmp_path) as server:
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


async def test_a_full_stream_refuses(tmp_path: Path) -> None:
    async with local_nats(tmp_path) as server:
        ledger = await replica(server, max_bytes=20_000, soft_mark=10.0)
        await ledger.create(opened(), "g")
        with pytest.raises(Refusal) as no:
            for number in range(60):
                await opens(ledger, hop_id(number))
        assert no.value.body.code is Code.LEDGER_UNAVAILABLE and "10077" in no.value.cause
        assert (await ledger.newest(*KEY)).seq > 3 and ledger.halted is None


async def test_a_long_txn_is_read_cold_in_moderate_time(server: LocalNats) -> None:
    ledger = await replica(server)
    await ledger.create(opened(budget=Budget(0, 0, 3000)), "g" * 1200)
    fold: Fold | LostRace = await ledger.fold(*KEY)
    async with ledger.turn(*KEY) as turn:
        for number in range(1999):
            fold = await turn.append(opening(turn.fold, hop_id(number), budget=ONE_CALL), None)
    other = await replica(server)
    began = time.perf_counter()
    assert await other.fold(*KEY) == fold
    # 2,000 records take about 0.25 s on an idle machine; this is a bound for a busy one.
    assert time.perf_counter() - began < 3


@pytest.mark.parametrize("name", [("*", TXN), ("default", "*"), ("default", ">"), ("default", "b" * 32)])
async def test_a_name_that_is_no_txn_finds_nobody_elses(server: LocalNats, name: tuple[str, str]) -> None:
    ledger = await replica(server)
    await ledger.create(opened(), "g")
    with pytest.raises(Refusal) as no:
        await ledger.fold(*name)
    assert no.value.body.rule == "ledger.unknown-txn"


async def test_replicas_starting_together_make_one_stream(server: LocalNats) -> None:
    ledgers = await asyncio.gather(*(replica(server) for _ in range(5)))
    await ledgers[0].create(opened(), "g")
    assert (await ledgers[4].fold(*KEY)).seq == 0


async def test_appends_that_wait_for_the_disk_share_the_wait_and_nothing_else(server: LocalNats) -> None:
    """A hundred txns at once on the real server, one of them raced: whatever was answered is what the stream says."""
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
