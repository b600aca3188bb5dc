"""Calls that begin in the broker's own process, for callers that another edge knows: one pipeline, no bus between."""

from __future__ import annotations

import asyncio
import secrets
import string
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from remit_broker.bus_port import Inside
from remit_broker.hop.hop import Ask
from remit_broker.ports import Clock
from remit_schemas.envelope import FINAL, Accepted, Error, Frame, InputRequired, Request, Result, encode
from remit_schemas.names import Resource
from remit_schemas.subjects import inbox_prefix

BACKLOG: Final = 1024
"""Frames of one call that wait for a slow reader; of more, the oldest go, and never the end."""
_LETTERS: Final = string.ascii_letters + string.digits


class Running:
    """One call: its frames as they come, and the wish to end it."""

    def __init__(self, bus: Inside, caller: str, txn: str, reply: str) -> None:
        self.hop = ""
        self.ended: Result | Error | InputRequired | None = None
        self._bus, self._caller, self._txn, self._reply = bus, caller, txn, reply
        self._frames: deque[Frame] = deque()
        self._grew = asyncio.Event()
        self._unwanted = False

    def hear(self, frame: Frame) -> None:
        """Take a frame; the last one ends the listening."""
        if isinstance(frame, Accepted):
            self.hop = frame.hop
            if self._unwanted:
                self._bus.cancel_inside(self._caller, self._txn, self.hop)
        elif isinstance(frame, FINAL):
            self.ended = frame
            self._bus.deaf_inside(self._reply)
        elif len(self._frames) >= BACKLOG:
            self._frames.popleft()
        if not isinstance(frame, Accepted):
            self._frames.append(frame)
            self._grew.set()

    def cancel(self) -> None:
        """It is not wanted any more; it still ends with a frame, and with a record."""
        self._unwanted = True
        if self.hop and self.ended is None:
            self._bus.cancel_inside(self._caller, self._txn, self.hop)

    def give_up(self) -> None:
        """What was parked is not to go on: it ends, charged with what it used."""
        if self.hop and isinstance(self.ended, InputRequired):
            self._bus.cancel_inside(self._caller, self._txn, self.hop)

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """Every frame up to the final one, which is the last."""
        while True:
            while not self._frames:
                self._grew.clear()
                await self._grew.wait()
            frame = self._frames.popleft()
            yield frame
            if isinstance(frame, FINAL):
                return


class Calls:
    """One tenant's pipeline, for edges in this process."""

    def __init__(self, tenant: str, clock: Clock, bus: Inside, take: Callable[[Ask], None]) -> None:
        """``take`` is that of the tenant's bus edge: it has the room for calls in hand."""
        self._tenant, self._clock, self._bus, self._take = tenant, clock, bus, take
        # Drawn once: nobody on the bus can have this inbox, and nothing is ever published to it.
        self._connection = "".join(secrets.choice(_LETTERS) for _ in range(22))
        self._count = 0

    def begin(self, caller: str, txn: str, resource: Resource, request: Request) -> Running:
        """Begin a call of ``caller``, whom the edge knows by whatever proved it; the grant in ``request`` must be that one's.

        Refuses RATE_LIMITED.
        """
        self._count += 1
        reply = f"{inbox_prefix(caller, self._connection)}.{self._count}"
        running = Running(self._bus, caller, txn, reply)
        self._bus.hear_inside(reply, running.hear)
        ask = Ask(
            tenant=self._tenant, caller=caller, txn=txn, resource=resource, reply=reply, data=encode(request),
            at=self._clock.now(), mono=self._clock.monotonic(),
        )  # fmt: skip
        try:
            self._take(ask)
        except BaseException:
            self._bus.deaf_inside(reply)
            raise
        return running
