"""How far a hop is ahead of whoever reads what it sends: its caller's window for output, the broker's pace for a large result."""

from __future__ import annotations

import asyncio

from remit_schemas.control import Control
from remit_schemas.parts import AHEAD


class Flow:
    """One hop's. ``window`` is how many frames of output may be ahead of their reader; None: as many as there are."""

    def __init__(self, window: int | None) -> None:
        self._window = window
        self._said = self._read = self._sent = self._taken = 0
        self._over = False
        self._grew = asyncio.Event()

    def hear(self, said: Control) -> None:
        """What the broker passes on or says itself."""
        self._over = self._over or said.cancel
        if said.read is not None:
            # A reader cannot have read what was not sent: whoever claims to only opens the window once.
            self._read = max(self._read, min(said.read, self._said))
        if said.parts is not None:
            self._taken = max(self._taken, said.parts)
        self._grew.set()

    async def output(self) -> None:
        """Wait until one more frame of output may be sent, which then counts as sent."""
        if self._window is None:
            return
        # INVARIANT: a reader that stops reading stops the writer (test_a_reader_that_stops_reading_stops_the_writer).
        while self._said - self._read >= self._window:
            await self._wait()
        self._said += 1

    async def part(self) -> bool:
        """Wait until one more part of the result may be sent, which then counts as sent. False where nobody wants it any more."""
        while self._sent - self._taken >= AHEAD and not self._over:
            await self._wait()
        self._sent += 1
        return not self._over

    async def _wait(self) -> None:
        self._grew.clear()
        await self._grew.wait()
