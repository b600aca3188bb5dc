"""A key-value bucket watched so that each change is heard in the turn of the event loop in which it is read.

The watch of nats-py hands a message through three tasks, each of which waits for a turn of its own. Where a heartbeat says how far
behind a replica is, a busy replica has no time for that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg

from remit_broker.adapters.jetstream import API, JetStream, consumer, delivered
from remit_broker.ports import at_once

_LOOK: Final = 0.25
"""Seconds between two looks at whether the watch is still alive."""
_GONE: Final = frozenset({"DEL", "PURGE"})

Take = Callable[[str, bytes | None, int], None]
"""Told of a key, its value (None: it was deleted) and the revision; it must not wait."""


async def watch(nc: Client, bucket: str, take: Take, silence: float) -> None:
    """Tell ``take`` what stands in ``bucket``, then of every change, in order.

    Returns when the watch is dead: nothing has come for ``silence`` seconds, a message is missing, or the connection was made
    again. Raises ``Unreachable`` or ``ApiError`` where there is none.
    """
    js, loop = JetStream(nc), asyncio.get_running_loop()
    connection, heard, count, lost = js.reconnects, loop.time(), 0, asyncio.Event()
    stream, prefix = f"KV_{bucket}", f"$KV.{bucket}."

    @at_once
    async def receive(message: Msg) -> None:
        nonlocal heard, count
        place = delivered(message.reply)
        if place is None or lost.is_set():
            return
        heard, count = loop.time(), count + 1
        # INVARIANT: whoever hears a change has heard all before it (test_a_watch_that_missed_a_message_is_made_again).
        if place[1] != count:
            lost.set()
            return
        headers = message.headers or {}
        gone = headers.get("KV-Operation") in _GONE or "Nats-Marker-Reason" in headers
        take(message.subject.removeprefix(prefix), None if gone else message.data, place[0])

    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox, cb=receive, pending_msgs_limit=-1)
    name = inbox.rsplit(".", 1)[-1]
    try:
        request = consumer(stream, name, f"{prefix}>", 0, inbox)
        request["config"]["deliver_policy"] = "last_per_subject"
        del request["config"]["opt_start_seq"]
        await js.api(f"CONSUMER.CREATE.{stream}.{name}.{prefix}>", request)
        while js.reconnects == connection and loop.time() - heard < silence:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await lost.wait()
                return
    finally:
        # What fails here must not take the place of a cancellation: the broker would never stop.
        with contextlib.suppress(Exception):
            await subscription.unsubscribe()
            if nc.is_connected:
                await nc.publish(f"{API}.CONSUMER.DELETE.{stream}.{name}")
