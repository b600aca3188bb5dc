"""The ledger on a real NATS server with durable sync: races, crashes, losses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.jetstream import JetStream
from remit_broker.adapters.jetstream_ledger import STREAM, JetStreamLedger
from remit_broker.core.fold import Fold
from remit_broker.ledger_port import LostRace
from remit_schemas.budget import ONE_CALL, Budget
from tests.support.local_nats import LocalNats, local_nats
from tests.support.story import TXN, hop_id, opened, opening

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
