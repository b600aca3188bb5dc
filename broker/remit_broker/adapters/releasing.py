"""A large result on its way to its caller: in parts, at the pace at which the caller says that it takes them."""

from __future__ import annotations

import asyncio
from typing import Final

from msgspec.structs import replace
from nats.aio.client import Client

from remit_schemas.control import Control
from remit_schemas.envelope import Result, encode
from remit_schemas.parts import AHEAD, split

PATIENCE: Final = 10.0
"""Seconds that a caller may take to say that it has taken some parts; then it has gone, and the rest is not sent."""


class Releasing:
    """The release of one result. :meth:`hear` is told what its caller says.

    INVARIANT: no more is under way to a caller than it can take: the server closes the connection of one whose messages pile up
    (test_a_slow_caller_gets_a_large_result_whole).
    """

    def __init__(self) -> None:
        self._taken = 0
        self._grew = asyncio.Event()

    def hear(self, said: Control) -> None:
        """The caller has taken so many parts."""
        if said.parts is not None and said.parts > self._taken:
            self._taken = said.parts
            self._grew.set()

    async def send(self, nc: Client, reply: str, result: Result) -> None:
        """Send the parts and then the end; gives up where the caller takes no more of them, or the bus is away."""
        sent = 0
        for part in split(result.value):
            try:
                async with asyncio.timeout(PATIENCE):
                    while sent - self._taken >= AHEAD:
                        self._grew.clear()
                        await self._grew.wait()
            except TimeoutError:
                return
            if not nc.is_connected:
                return
            await nc.publish(reply, encode(part))
            sent += 1
        if nc.is_connected:
            await nc.publish(reply, encode(replace(result, value=None, parts=sent)))
