"""How often one caller may ask, or one target be called: GCRA, one number for each (ITU-T I.371 annex A)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from remit_broker.core.rates import Overrides, Rate
from remit_broker.ports import Clock

_NANOS: Final = 1_000_000_000
_REMEMBERED: Final = 10_000


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
        self._put(who, due + self._interval * weight)
        return 0.0

    def charge(self, who: str, weight: int) -> None:
        """Use up ``weight`` calls more, whatever is left."""
        now = round(self._clock.monotonic() * _NANOS)
        self._put(who, max(self._arrivals.get(who, now), now) + self._interval * weight)

    def _put(self, who: str, due: int) -> None:
        self._arrivals[who] = due
        self._arrivals.move_to_end(who)
        if len(self._arrivals) > self._remember:
            self._arrivals.popitem(last=False)


class Unlimited:
    """No limit of this kind is configured."""

    def admit(self, who: str, weight: int = 1) -> float:
        """0: the call may go on."""
        return 0.0

    def charge(self, who: str, weight: int) -> None:
        """Nothing is counted."""


class ByPattern:
    """A default for each, and overrides by pattern (:mod:`remit_broker.core.rates`).

    ``each`` tells whose the default is: a caller's own name, or the callee of a resource. An override is ``shared`` by
    all that it matches, or each one's own.
    """

    def __init__(
        self, clock: Clock, default: Rate | None, overrides: Overrides, *, each: Callable[[str], str], shared: bool
    ) -> None:
        self._default = Gcra(clock, default.per_second, default.burst) if default else Unlimited()
        self._overrides, self._each, self._shared = overrides, each, shared
        self._by = {pattern: Gcra(clock, *rate) for pattern, rate in overrides.by_pattern.items()}
        self._known: OrderedDict[str, str | None] = OrderedDict()

    def admit(self, who: str, weight: int = 1) -> float:
        """0 when the call may go on, else the seconds to wait."""
        pattern = self._pattern(who) if self._overrides else None
        if pattern is None:
            return self._default.admit(self._each(who), weight)
        return self._by[pattern].admit(pattern if self._shared else who, weight)

    def charge(self, who: str, weight: int) -> None:
        """As :meth:`admit`, and it always goes on."""
        pattern = self._pattern(who) if self._overrides else None
        if pattern is None:
            self._default.charge(self._each(who), weight)
        else:
            self._by[pattern].charge(pattern if self._shared else who, weight)

    def _pattern(self, who: str) -> str | None:
        if who in self._known:
            return self._known[who]
        found = self._known[who] = self._overrides.pattern(who)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return found


def callers(clock: Clock, default: Rate, overrides: Overrides) -> ByPattern:
    """The rate of each caller, by its name."""
    return ByPattern(clock, default, overrides, each=lambda name: name, shared=False)


def targets(clock: Clock, default: Rate | None, overrides: Overrides) -> ByPattern:
    """The rate of what is called, by its resource; the default is each callee's own."""
    return ByPattern(clock, default, overrides, each=lambda resource: resource.split("/")[1], shared=True)
