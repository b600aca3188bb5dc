"""Cutting live connections through the NATS server's system account. The mark comes first, then the cut, then no reconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout

from remit_broker.core.bus_permissions import BUS_ACCOUNT

PAGE: Final = 512
"""Connections asked for at once: an answer stays well below the server's largest message."""
ANSWERS_WITHIN: Final = 0.3
"""Seconds between two servers' answers to one question."""
PASSES: Final = (0.0, 0.5, 1.0, 1.0, 1.5, 2.0)
"""Seconds before each look. A connection that was let in a moment before the mark shows up within the server's own time for
proving oneself (2 s), so one look is not enough."""


class Cutter:
    """Cuts all connections of a principal, on every server of a cluster."""

    def __init__(self, sys: Client, fault: Callable[[str, BaseException], None]) -> None:
        self._sys, self._fault = sys, fault
        self._running: set[asyncio.Task[None]] = set()

    def cut(self, name: str, still: Callable[[], bool]) -> None:
        """Begin to cut the connections of ``name``, again and again for a few seconds while ``still`` says so."""
        self._spawn(self._cut(name, still))

    async def stop(self) -> None:
        """End what has begun."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _cut(self, name: str, still: Callable[[], bool]) -> None:
        for seconds in PASSES:
            await asyncio.sleep(seconds)
            if not still():
                return
            try:
                for server, cid in await self._connections(name):
                    body = msgspec.json.encode({"cid": cid})
                    await self._sys.request(f"$SYS.REQ.SERVER.{server}.KICK", body, timeout=2)
            except (NatsError, msgspec.DecodeError, KeyError, TypeError, OSError) as error:
                self._fault("kick", error)

    async def _connections(self, name: str) -> list[tuple[str, int]]:
        """``(server, connection)`` of every live connection that the callout let in as ``name``."""
        found: list[tuple[str, int]] = []
        offset, more = 0, True
        while more:
            asked = {"auth": True, "acc": BUS_ACCOUNT, "user": name, "limit": PAGE, "offset": offset}
            more, offset = False, offset + PAGE
            for answer in await self._every_server(msgspec.json.encode(asked)):
                listed = answer["data"].get("connections") or []
                found += [(answer["server"]["id"], one["cid"]) for one in listed if one["authorized_user"] == name]
                more = more or len(listed) >= PAGE
        return found

    async def _every_server(self, asked: bytes) -> list[dict[str, Any]]:
        """The answers of all servers: nobody says how many there are, so a pause is the end."""
        inbox = self._sys.new_inbox()
        subscription = await self._sys.subscribe(inbox)
        found: list[dict[str, Any]] = []
        try:
            await self._sys.publish("$SYS.REQ.SERVER.PING.CONNZ", asked, reply=inbox)
            while True:
                message = await subscription.next_msg(ANSWERS_WITHIN if found else 2.0)
                found.append(msgspec.json.decode(message.data))
        except NatsTimeout:
            if not found:
                raise
            return found
        finally:
            await subscription.unsubscribe()
