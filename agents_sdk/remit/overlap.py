"""Two connections of one inbox, for a moment: every message is handed on once, and none is lost.

The permissions of a connection run out. To end it first and connect then would lose what arrives in between, so the new one is made
first. While both listen, what the new one hears is held back; when the old one is known to hear nothing more, what it has not
handed on already follows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

from nats.aio.msg import Msg

Hand = Callable[[Msg], Awaitable[None]]


class Overlap:
    """From before the new connection listens until the old one has stopped to. ``hand`` takes a message."""

    def __init__(self, hand: Hand) -> None:
        self._hand = hand
        self._handed: Counter[tuple[str, bytes]] = Counter()
        self._held: list[Msg] = []
        self._over = False

    async def hear_old(self, message: Msg) -> None:
        """What the old connection hears."""
        if not self._over:
            self._handed[message.subject, message.data] += 1
        await self._hand(message)

    async def hear_new(self, message: Msg) -> None:
        """What the new connection hears."""
        if self._over:
            await self._hand(message)
        else:
            self._held.append(message)

    async def end(self) -> None:
        """The old connection hears nothing any more."""
        while self._held:
            message = self._held.pop(0)
            if self._handed[message.subject, message.data] > 0:
                self._handed[message.subject, message.data] -= 1
            else:
                await self._hand(message)
        self._over = True
        self._handed.clear()
