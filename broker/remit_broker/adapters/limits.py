"""How often one caller may ask, or one target be called: GCRA, one number for each (ITU-T I.371 annex A)."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

from remit_broker.ports import Clock

_NANOS: Final = 1_000_000_000


class Gcra:
    """``per_second`` calls on average, ``burst`` at once, for each caller or target of this replica."""

    def __init__(self, clock: Clock, per_second: float, burst: int, remember: int = 10_000) -> None:
        self._clock = clock
        # Whole nanoseconds: in floats the last call of a burst is late by a rounding error.
        self._interval = math.ceil(_NANOS / per_second)
        self._tolerance = self._interval * max(burst - 1, 0)
        self._arrivals: OrderedDict[str, int] = OrderedDict()
        self._remember = remember

    def admit(self, who: str, weight: int = 1) -> float:
        """0 when the call may go on, else the seconds to wait until it would.

        A call of more than the whole burst goes on as well where nothing was used up before: those after it wait.
        """
        now = round(self._clock.monotonic() * _NANOS)
        due = max(self._arrivals.get(who, now), now)
        early = due - self._tolerance - now
        if early > 0:
            return early / _NANOS
        self._arrivals[who] = due + self._interval * weight
        self._arrivals.move_to_end(who)
        if len(self._arrivals) > self._remember:
            self._arrivals.popitem(last=False)
        return 0.0


class Unlimited:
    """No limit of this kind is configured."""

    def admit(self, who: str, weight: int = 1) -> float:
        """0: the call may go on."""
        return 0.0
