"""A bucket that is watched: what is in it, then every change in order, or the watch is made again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from remit_broker.adapters.bucket_watch import watch
from tests.support.local_nats import local_nats

Heard = list[tuple[str, bytes | None]]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_watch_that_missed_a_message_is_made_again(tmp_path: Path) -> None:
    async with local_nats(tmp_path) as server:
        nc = await server.connect()
        bucket = await nc.jetstream().create_key_value(bucket="b")
        await bucket.put("one", b"1")
        heard: Heard = []
        watching = asyncio.create_task(watch(nc, "b", lambda key, value, _: heard.append((key, value)), 60.0))
        await until(lambda: len(heard) == 1)
        await bucket.put("two", b"2")
        await bucket.delete("one")
        await until(lambda: len(heard) == 3)
        assert heard == [("one", b"1"), ("two", b"2"), ("one", None)]
        callback = next(
            one._cb
            for one in nc._subs.values()
            if getattr(one._cb, "at_once", False) and not one._jsi and "receive" in repr(one._cb)
        )
        assert callback is not None
        # The fifth, and the fourth never came.
        await callback(Msg(nc, "$KV.b.three", "$JS.ACK.KV_b.c.1.9.5.0.0", b"3", None))
        await asyncio.wait_for(watching, 10)
        assert len(heard) == 3


@pytest.mark.parametrize("silence", [0.5])
async def test_a_watch_that_hears_nothing_is_made_again(tmp_path: Path, silence: float) -> None:
    async with local_nats(tmp_path) as server:
        nc = await server.connect()
        await nc.jetstream().create_key_value(bucket="b")
        before = asyncio.get_running_loop().time()
        await asyncio.wait_for(watch(nc, "b", lambda *_: None, silence), 10)
        assert asyncio.get_running_loop().time() - before >= silence
