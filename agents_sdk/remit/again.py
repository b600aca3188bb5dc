"""The end of a call that was made before, asked of the broker as often as it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from remit.errors import Refused
from remit.link import Frames, Link
from remit_schemas import subjects
from remit_schemas.envelope import Error, Frame, Request
from remit_schemas.errors import Code

WAIT: Final = 50.0
"""Seconds that one question waits for a call that still runs; then it is asked again."""

_PAUSE: Final = 0.5
"""Seconds until a broker that is away is asked again."""

_RUNNING: Final = "result.running"


class Again:
    """The frames of ``result.get``. Implements :class:`~remit.link.Frames`."""

    def __init__(
        self, link: Link, txn: str, grant: Callable[[], str], which: dict[str, Any], until: float
    ) -> None:  # fmt: skip
        """``which`` call is meant, as the service wants it; ``until`` is the Unix second at which asking ends."""
        self._link, self._txn, self._grant, self._which, self._until = link, txn, grant, which, until
        self._frames: Frames | None = None

    async def next(self) -> Frame:
        """See :class:`~remit.link.Frames`."""
        while True:
            try:
                frame = await self._answer()
            except Refused as no:
                self.close()
                if not (no.retryable or no.code is Code.DEADLINE_EXCEEDED) or self._over(_PAUSE):
                    raise
                await asyncio.sleep(no.retry_after or _PAUSE)
                continue
            if not isinstance(frame, Error) or not self._asks_again(frame):
                return frame
            self.close()
            if frame.error.rule != _RUNNING:
                await asyncio.sleep(frame.error.retry_after or _PAUSE)

    def close(self) -> None:
        """Listen no longer."""
        if self._frames is not None:
            self._frames.close()
            self._frames = None

    async def _answer(self) -> Frame:
        if self._frames is None:
            deadline = min(time.time() + WAIT, self._until)
            request = Request(grant=self._grant(), args=self._which, deadline=int(deadline * 1000), parts=True)
            at = subjects.request(self._link.name, self._txn, "remit", "result", "get")
            self._frames = await self._link.ask(at, request)
        return await self._frames.next()

    def _asks_again(self, frame: Error) -> bool:
        """The call still runs, or the broker could not look; asking changes nothing."""
        return (frame.error.rule == _RUNNING or frame.error.retryable) and not self._over(_PAUSE)

    def _over(self, pause: float) -> bool:
        return time.time() + pause >= self._until
