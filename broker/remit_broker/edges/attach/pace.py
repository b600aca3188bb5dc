"""How far the parts of a result may be ahead of whoever takes them."""

from __future__ import annotations

import asyncio

from remit_schemas.parts import AHEAD


class Pace:
    """How many parts of a result are ahead of what the broker has taken."""

    def __init__(self) -> None:
        self._sent = self._taken = 0
        self._grew = asyncio.Event()

    def taken(self, count: int) -> None:
        """The broker has taken so many."""
        self._taken = max(self._taken, count)
        self._grew.set()

    async def ready(self) -> None:
        """Wait until one more may be sent, which then counts as sent."""
        while self._sent - self._taken >= AHEAD:
            self._grew.clear()
            await self._grew.wait()
        self._sent += 1
