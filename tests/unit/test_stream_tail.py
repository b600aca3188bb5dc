"""Ending a reader of a stream while it reads."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from nats.aio.client import Client

from remit_broker.adapters.stream_tail import StreamTail


async def test_a_projection_that_is_stopped_while_something_arrives_stops() -> None:
    """What arrives in the moment of a cancellation must not take its place: the loop around it would go on for ever."""
    tail = StreamTail(cast(Client, None), "LEDGER", "ledger.>", whole=True)
    reading = asyncio.create_task(tail._next(linger=False))
    await asyncio.sleep(0)
    tail._arrived.put_nowait(cast(Any, "a message"))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
