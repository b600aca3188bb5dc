"""Cutting the connections of who was revoked: the mark comes first, then the cut, then no reconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, Final

from remit_broker.adapters.tasks import ended
from remit_schemas.errors import Refusal

PASSES: Final = (0.0, 0.5, 1.0, 1.0, 1.5, 2.0)
"""Seconds before each look. A connection that was let in a moment before the mark shows up within the server's own time for
proving oneself (2 s), so one look is not enough."""


Evict = Callable[..., Awaitable[None]]
"""Ends the connections of principals of one tenant."""


class Cutter:
    """Has the connections of principals ended, for as long as one may still be coming in."""

    def __init__(self, fault: Callable[[str, BaseException], None]) -> None:
        self._fault = fault
        self._running: set[asyncio.Task[None]] = set()

    def cut(self, evict: Evict, who: Callable[[], Collection[str]]) -> None:
        """Begin to cut, by ``evict``, the connections of those that ``who`` names, again and again for a few seconds, while it
        names any.
        """
        self.begin(self._cut(evict, who))

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` beside everything else; :meth:`stop` ends it."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def stop(self) -> None:
        """End what has begun."""
        await ended(*self._running)

    async def _cut(self, evict: Evict, who: Callable[[], Collection[str]]) -> None:
        for seconds in PASSES:
            await asyncio.sleep(seconds)
            if not (names := who()):
                return
            try:
                # What is reinstated meanwhile comes back, and stays.
                await evict(*names, still=lambda: bool(who()))
            except Refusal as error:
                self._fault("kick", error)
