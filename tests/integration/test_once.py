"""What may be used once: a bucket of the broker's own account, over the broker's own NATS client."""

from __future__ import annotations

import asyncio

import pytest
from nats.js.errors import KeyWrongLastSequenceError

from remit_broker.adapters.once import KvOnce
from remit_broker.testing import Lab

pytestmark = pytest.mark.timeout(60)


async def test_what_is_to_be_created_once_is_created_once(lab: Lab) -> None:
    """Also where several replicas try in the same moment; and a compare-and-set of the library's compares."""
    js = lab.broker.nats.core.jetstream()
    stores = [KvOnce() for _ in range(4)]
    for store in stores:
        await store.start(js, 1)
    taken = await asyncio.gather(*(store.take("a") for store in stores for _ in range(8)))
    assert taken.count(True) == 1
    assert await stores[0].take("b") and not await stores[1].take("b")
    kv = await js.create_key_value(bucket="any")
    first = await kv.create("key", b"1")
    await kv.update("key", b"2", first)
    with pytest.raises(KeyWrongLastSequenceError):
        await kv.update("key", b"3", first)
    with pytest.raises(KeyWrongLastSequenceError):
        await kv.create("key", b"4")
    assert (await kv.get("key")).value == b"2"
