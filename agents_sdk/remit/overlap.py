"""Two connections of one inbox, for a moment: every message is handed on once, and none is lost.

The permissions of a connection run out. To end it first and connect then would lose what arrives in between, so the new one is made
first. While both listen, what the new one hears is held back; when the old one is known to hear nothing more, what it has not
handed on already follows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import nats.errors
from nats.aio.msg import Msg

Hand = Callable[[Msg], Awaitable[None]]
End = Callable[[], Awaitable[None]]

RENEW: Final = 0.6
"""Part of the life of a connection's permissions after which another one is made."""
_BOTH: Final = 0.5
"""Seconds for which both listen: in a cluster, other servers learn of a new listener a little later."""
_SOON: Final = 1.0
"""At most so many seconds until it is tried again: two fifths of the life are left for that."""


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


class Renewing:
    """Has a connection made anew before its permissions run out, for ever: :meth:`run`. ``hand`` takes each message once."""

    def __init__(self, hand: Hand) -> None:
        self._hand = hand
        self._overlap: Overlap | None = None

    def hearing(self) -> Hand:
        """What a connection that is made at this moment gives its messages to, for as long as it lives."""
        mine = self._overlap

        async def hear(message: Msg) -> None:
            now = self._overlap
            if now is None:
                await self._hand(message)
            elif now is mine:
                await now.hear_new(message)
            else:
                # INVARIANT: it was the new one once and is the old one now
                # (test_a_connection_renewed_twice_hears_once_and_a_failed_renewal_is_tried_again_soon).
                await now.hear_old(message)

        return hear

    async def run(
        self, lives: float, current: Callable[[], End | None], renewed: Callable[[], Awaitable[bool]]
    ) -> None:
        """For permissions that live ``lives`` seconds. ``current`` says how to end the connection that there is (None where one
        is being made anyhow); ``renewed`` makes another one and says whether that went well.
        """
        pause = lives * RENEW
        while True:
            await asyncio.sleep(pause)
            end = current()
            # The old one goes on for as long as it may, and is made anew when it ends.
            went_well = end is None or await self._once(end, renewed)
            pause = lives * RENEW if went_well else min(lives * RENEW, _SOON)

    async def _once(self, end: End, renewed: Callable[[], Awaitable[bool]]) -> bool:
        self._overlap = overlap = Overlap(self._hand)
        try:
            if not await renewed():
                return False
            await asyncio.sleep(_BOTH)
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                await end()
            return True
        finally:
            await overlap.end()
            self._overlap = None
