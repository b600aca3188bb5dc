"""Work that goes on in order, a bounded time of it in every turn of the event loop.

A turn of the loop runs everything that is ready before it looks at connections and timers again. Hundreds of hops that are ready
at once would make one turn last for most of a second, and what is heard through several turns (a heartbeat, an answer of the
ledger) would come seconds late: a broker that is merely busy would take itself for deaf. Too little in a turn is a loss too: what
is written and read in one turn shares its system calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

TURN: Final = 0.1
"""Seconds that a turn should last at most while something waits. A heartbeat takes about four turns, and has 1.5 s."""
FIRST: Final = 32
MORE: Final = 8
MOST: Final = 256
"""Pieces of work that begin in one turn: in the first ones, how many more after a short turn, and at most."""


class Pace:
    """First come, first served; how much in one turn follows from how long the turns take.

    INVARIANT: however much waits, timers and connections have their turn
    (test_timers_have_their_turn_however_much_waits, test_a_saturated_broker_hears_its_own_heartbeat).
    """

    def __init__(self) -> None:
        self._most = self._left = FIRST
        self._waiting: deque[Callable[[], object]] = deque()
        self._due = False
        self._began = 0.0

    @property
    def waiting(self) -> int:
        """Pieces of work that have not begun."""
        return len(self._waiting)

    def soon(self, begin: Callable[[], object]) -> None:
        """Call ``begin``: at once where this turn has room for it, else in one of the next. It must not wait or raise."""
        if not self._due:
            self._due = True
            loop = asyncio.get_running_loop()
            self._began = loop.time()
            loop.call_soon(self._next_turn)
        if self._left and not self._waiting:
            self._left -= 1
            begin()
        else:
            self._waiting.append(begin)

    def _next_turn(self) -> None:
        self._due = bool(self._waiting)
        if self._due:
            loop = asyncio.get_running_loop()
            began, self._began = self._began, loop.time()
            took = self._began - began
            # What begins in one turn is done in the next one, so that this is how long as much as now took.
            self._most = max(1, self._most // 2) if took > TURN else min(MOST, self._most + MORE)
            loop.call_soon(self._next_turn)
        self._left = self._most
        while self._left and self._waiting:
            self._left -= 1
            self._waiting.popleft()()
