"""How much more the ledger can take: by its own cap, and by the disk where that is one of this machine.

Before either is used up nothing new is opened, so that what is open can still be closed. It is looked at again and again, so
that work goes on by itself once there is room.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from remit_broker.adapters.jetstream import JetStream
from remit_broker.adapters.ledger_memory import STREAM, unavailable

RESERVE: Final = 64 * 1024**2
"""Bytes of the disk that are kept for closing what is open, or a tenth of a disk that is smaller than ten times this."""
_OVERHEAD: Final = 256
"""What a message takes in the stream beside its payload, at most: subject, headers, framing. In bytes."""
_WEIGH: Final = 5.0
"""How often, in seconds, the stream is asked for its size and its cap: other replicas append to it, and operators raise it."""
_LOOK: Final = 1.0
"""How often, in seconds, the disk is looked at."""


def free_of(folder: Path) -> tuple[int, int]:
    """Bytes that are free on the disk of ``folder``, and how many of them are its reserve."""
    disk = shutil.disk_usage(folder)
    return disk.free, min(RESERVE, disk.total // 10)


class Room:
    """``soft_mark`` is the size in bytes from which on nothing new is opened (0: none), a ``share`` of the stream's cap."""

    def __init__(self, js: JetStream, soft_mark: int, share: float = 0.9) -> None:
        self._js, self._soft_mark, self._share = js, soft_mark, share
        self._bytes = 0
        self._weigh_at = self._look_at = 0.0
        self._disk: Callable[[], tuple[int, int]] | None = None
        self._refused = False

    def weighed(self, size: int, cap: int) -> None:
        """The stream has ``size`` bytes of at most ``cap`` (-1: no cap)."""
        self._bytes = size
        self._soft_mark = int(cap * self._share) if cap > 0 else 0

    def on_disk(self, folder: Path) -> None:
        """The stream is kept in ``folder`` of this machine."""
        self._disk = lambda: free_of(folder)

    def grew(self, payload: int) -> None:
        """A message of so many bytes was appended."""
        self._bytes += payload + _OVERHEAD

    @property
    def full(self) -> str | None:
        """Why nothing new is opened just now, or None."""
        why = self._why()
        return None if why is None else why.cause

    @property
    def due(self) -> bool:
        """Whether :meth:`require` has something to ask or to say: nearly never, and it is asked before every opening."""
        now = asyncio.get_running_loop().time()
        return (
            self._refused
            or (bool(self._soft_mark) and (now >= self._weigh_at or self._bytes >= self._soft_mark))
            or (self._disk is not None and now >= self._look_at)
        )

    async def require(self) -> None:
        """Refuses LEDGER_UNAVAILABLE by the rule ``ledger.soft-mark`` or ``ledger.disk``."""
        now = asyncio.get_running_loop().time()
        self._look_at = now + _LOOK
        if self._soft_mark and now >= self._weigh_at:
            self._weigh_at = now + _WEIGH
            state = await self._js.state(STREAM)
            self.weighed(state["bytes"], state.get("max_bytes", round(self._soft_mark / self._share)))
        why = self._why()
        self._refused = why is not None
        if why is not None:
            # INVARIANT: the last of the room is for closing (test_what_is_open_is_closed_in_a_ledger_that_is_nearly_full,
            # test_the_last_of_a_disk_is_for_closing_what_is_open).
            raise unavailable(*why)

    def _why(self) -> _Why | None:
        if self._disk is not None:
            free, reserve = self._disk()
            if free < reserve:
                said = f"{free} bytes are free on its disk, {reserve} are kept for what is open"
                return _Why("ledger.disk", "the disk of the ledger is nearly full; nothing new is opened", said)
        if self._soft_mark and self._bytes >= self._soft_mark:
            said = f"it has {self._bytes} bytes, from {self._soft_mark} on nothing new is opened"
            return _Why("ledger.soft-mark", "the ledger is nearly full; nothing new is opened", said)
        return None


class _Why(NamedTuple):
    rule: str
    message: str
    cause: str
