"""A result that comes in parts: put together within bounds, of one hop and of the process, before anything of it is looked at."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

from remit_broker.ports import Ports, Room
from remit_schemas.control import Control
from remit_schemas.envelope import Error, Part, Result
from remit_schemas.errors import Code, refusal
from remit_schemas.parts import AHEAD, Joiner

T = TypeVar("T")

TOGETHER: Final = 4
"""So many of the largest results may be in hand at once, in parts or whole."""


class PartsRoom:
    """How much of results in parts this process holds. One callee may have a quarter, which is one of the largest."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.processor = time.thread_time
        self._held: dict[str, tuple[str, int]] = {}
        self._of: Counter[str] = Counter()
        self._quiet = asyncio.Lock()

    @property
    def bytes(self) -> int:
        """How much is held now."""
        return self._of.total()

    def take(self, hop: str, callee: str, size: int) -> None:
        """Hold ``size`` bytes more for ``hop``. Refuses RESULT_INVALID where there is no room.

        INVARIANT: what is held of results in parts is bounded, for one callee and in all
        (test_parts_that_never_end_leave_room_for_those_of_others).
        """
        if self._of[callee] + size > self.largest or self.bytes + size > TOGETHER * self.largest:
            raise refusal(
                Code.RESULT_INVALID, f"the broker holds as much of large results of {callee} and others as it may",
                rule="parts.room", ask="ask for less, or for fewer large results at once", effect="unknown",
            )  # fmt: skip
        self._held[hop] = (callee, self._held.get(hop, ("", 0))[1] + size)
        self._of[callee] += size

    def give_back(self, hop: str) -> None:
        """Nothing of ``hop`` is held any more."""
        callee, size = self._held.pop(hop, ("", 0))
        if size:
            self._of[callee] -= size
            if not self._of[callee]:
                del self._of[callee]

    async def aside(self, work: Callable[[], T]) -> T:
        """Do ``work`` in a thread, one at a time: what takes seconds for a large value stops no other hop meanwhile."""
        async with self._quiet:
            return await asyncio.to_thread(work)


class Gathering:
    """The parts of one hop's result. ``room`` may be None where the caller takes none."""

    __slots__ = ("_callee", "_hop", "_joiner", "_room", "size")

    def __init__(self, room: Room | None, hop: str, callee: str) -> None:
        self._room, self._hop, self._callee = room, hop, callee
        self._joiner: Joiner | None = None
        self.size = 0

    def take(self, part: Part) -> Control | None:
        """The next part; what the callee is to be told of it. Refuses RESULT_INVALID."""
        if self._room is None:
            raise refusal(
                Code.RESULT_INVALID, f"{self._callee} answers in parts, which its caller does not take", rule="parts.unasked",
                ask='send the request with "parts": true, or ask for less', effect="unknown",
            )  # fmt: skip
        joiner = self._joiner = self._joiner or Joiner(self._room.largest)
        size = len(part.data.encode())
        self._room.take(self._hop, self._callee, size)
        self.size += size
        joiner.take(part)
        # Half of what may be ahead: the callee goes on while the word is on its way.
        return Control(parts=joiner.count) if joiner.count % (AHEAD // 2) == 0 else None

    async def end(self, final: Result | Error, ports: Ports) -> Result | Error:
        """The final frame, with the value that the parts make up. Refuses RESULT_INVALID where they do not make up one."""
        if isinstance(final, Error) or (self._joiner is None and not final.parts):
            return final
        joiner = self._joiner or Joiner(0)
        return await ports.room.aside(lambda: joiner.whole(final))
