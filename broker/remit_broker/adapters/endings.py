"""What ended, said to every replica in the broker's own account: whoever runs it asks its callee to stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from remit_broker.ports import at_once
from remit_schemas.names import DEFAULT_TENANT

SUBJECT: Final = "remit.ended"
KEPT: Final = 4096
"""Endings that are remembered: a hop may end elsewhere before this replica has begun to run it."""

At = tuple[str, str]


class Endings:
    """One replica's ear and voice. The ledger decides what has ended; this only makes it quick."""

    def __init__(self, core: Client, heard: Callable[[At], None], tenant: str = DEFAULT_TENANT) -> None:
        """``core`` is a connection in the CORE account; ``heard`` is told the txn and the hop, and must not wait.

        Heard are the endings of one tenant alone.
        """
        self._core, self._heard, self._tenant = core, heard, tenant
        self._lately: OrderedDict[At, None] = OrderedDict()
        self._waiting: dict[At, list[asyncio.Future[None]]] = {}

    async def start(self) -> None:
        """Listen."""
        await self._core.subscribe(f"{SUBJECT}.{self._tenant}.*.*", cb=self._on_ended, pending_msgs_limit=-1)

    def __contains__(self, at: object) -> bool:
        """Whether it was said lately that this hop has ended."""
        return at in self._lately

    async def say(self, tenant: str, txn: str, hop: str) -> None:
        """Say that a hop has ended that another replica may run. Best effort, never raises."""
        if self._core.is_connected:
            with contextlib.suppress(NatsError, OSError):
                await self._core.publish(f"{SUBJECT}.{tenant}.{txn}.{hop}", b"")

    async def until(self, at: At, seconds: float) -> None:
        """Wait until it is said that a hop has ended, at most ``seconds``."""
        if at in self._lately:
            return
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(at, [])
        waiting.append(told)
        try:
            await asyncio.wait({told}, timeout=seconds)
        finally:
            waiting.remove(told)
            if not waiting and self._waiting.get(at) is waiting:
                del self._waiting[at]

    @at_once
    async def _on_ended(self, message: Msg) -> None:
        *_, txn, hop = message.subject.split(".")
        self._lately[txn, hop] = None
        if len(self._lately) > KEPT:
            self._lately.popitem(last=False)
        for told in self._waiting.pop((txn, hop), ()):
            if not told.done():
                told.set_result(None)
        self._heard((txn, hop))
