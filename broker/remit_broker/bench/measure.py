"""Timing calls at a given number in flight, and what comes out of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

Call = Callable[[int], Awaitable[None]]
"""One call; the argument is a running number."""


class Samples(msgspec.Struct):
    """Latencies in nanoseconds and how long the round took in seconds."""

    nanos: list[int] = msgspec.field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Samples) -> None:
        """Take in another round."""
        self.nanos += other.nanos
        self.seconds += other.seconds

    def quantile(self, share: float) -> float:
        """Microseconds."""
        ordered = sorted(self.nanos)
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000, 1)

    @property
    def rate(self) -> float:
        """Calls per second."""
        return round(len(self.nanos) / self.seconds, 1)


async def round_of(call: Call, calls: int, in_flight: int) -> Samples:
    """``calls`` calls with ``in_flight`` of them under way at any time."""
    numbers = iter(range(calls))
    nanos: list[int] = []

    async def worker() -> None:
        for number in numbers:
            start = time.perf_counter_ns()
            await call(number)
            nanos.append(time.perf_counter_ns() - start)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return Samples(nanos, time.perf_counter() - began)
