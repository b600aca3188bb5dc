"""Refusals in their own stream: every call counts, a flood is a few records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remit_broker.adapters.jetstream import JetStream
from remit_broker.adapters.refusal_stream import MANY, STREAM, RefusalStream
from remit_schemas.records import hash_of
from tests.support.fake_jetstream import FakeJetStream, never_sent
from tests.support.local_nats import LocalNats, local_nats
from tests.support.story import TXN, refused


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[LocalNats]:
    async with local_nats(tmp_path) as server:
        yield server


async def stored(server: LocalNats) -> list[dict[str, Any]]:
    js = JetStream(await server.connect())
    last = (await js.state(STREAM))["last_seq"]
    messages = [await js.at(STREAM, seq) for seq in range(1, last + 1)]
    return [msgspec.json.decode(message.data)["record"] for message in messages if message]


async def test_a_flood_of_refusals_is_a_few_records(server: LocalNats) -> None:
    refusals = await RefusalStream.start(await server.connect(), window=60.0)
    await asyncio.gather(*(refusals.write(refused(f"{number + 1:016x}")) for number in range(500)))
    records = await stored(server)
    assert [record["count"] for record in records] == [1], "the first is written at once"
    await refusals.stop()
    records = await stored(server)
    assert [record["count"] for record in records] == [1, 499]
    assert all(record["hash"] == hash_of(record) for record in records)


async def test_the_count_is_written_when_the_window_ends(server: LocalNats) -> None:
    refusals = await RefusalStream.start(await server.connect(), window=0.05)
    for number in range(3):
        await refusals.write(refused(f"{number + 1:016x}"))
    async with asyncio.timeout(5):
        while refusals.high < 2:
            await asyncio.sleep(0.02)
    assert [record["count"] for record in await stored(server)] == [1, 2]
    await refusals.write(refused("9" * 16))
    assert [record["count"] for record in await stored(server)] == [1, 2, 1]
    await refusals.stop()


async def test_refusals_that_differ_are_kept_apart(server: LocalNats) -> None:
    refusals = await RefusalStream.start(await server.connect(), window=60.0)
    for changes in (
        {},
        {"txn": TXN},
        {"rule": "other"},
        {"caller": "critic"},
        {"tenant": "acme"},
        {"resource": "mcp/a/b"},
    ):
        await refusals.write(refused(**changes))
    assert len(await stored(server)) == 6
    await refusals.stop()
    assert len(await stored(server)) == 6


async def test_a_caller_that_varies_its_calls_cannot_push_out_the_others(server: LocalNats) -> None:
    refusals = await RefusalStream.start(await server.connect(), window=60.0, kinds=8)
    for number in range(200):
        await refusals.write(refused(resource=f"mcp/files/tool{number}"))
    await refusals.write(refused(caller="critic"))
    await refusals.stop()
    records = await stored(server)
    assert sum(record["count"] for record in records) == 201
    assert len(records) <= 8 + 2 + 1
    assert {record["resource"] for record in records if record["count"] > 1} == {MANY}


async def test_a_stream_that_cannot_be_reached_loses_the_record_and_says_so(server: LocalNats) -> None:
    refusals = await RefusalStream.start(await server.connect())
    await server.kill()
    await refusals.write(refused())
    await refusals.stop()
    assert refusals.lost == 1
    assert refusals.failing


async def test_a_refusal_that_was_lost_is_no_trouble_any_more_once_another_was_recorded(server: LocalNats) -> None:
    refusals = await RefusalStream.start(await server.connect(), window=0.01)
    refusals._js, there = FakeJetStream(), refusals._js
    refusals._js.troubles = [never_sent]
    await refusals.write(refused())
    assert (refusals.lost, refusals.failing) == (1, True)
    refusals._js = there
    await refusals.write(refused("e" * 16, resource="mcp/files/other"))
    await refusals.stop()
    assert (refusals.lost, refusals.failing) == (1, False)
