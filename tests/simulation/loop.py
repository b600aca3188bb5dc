"""Virtual time and a seeded order: the same seed gives the same run, and hours take seconds."""

from __future__ import annotations

import asyncio
import asyncio.base_events
import random
import types
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class SimulatedLoop(asyncio.base_events.BaseEventLoop):
    """Time jumps to the next timer; the order of ready callbacks comes from the seed; no threads, no sockets."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.now, self.rng = 0.0, random.Random(seed)
        self._clock_resolution = 1e-9
        self._selector = types.SimpleNamespace(select=self._advance, close=lambda: None)

    def time(self) -> float:
        return self.now

    def _advance(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("deadlock: nothing is ready and no timer runs")
        self.now += max(timeout, 0)
        return []

    def _run_once(self) -> None:
        ready = list(self._ready)  # type: ignore[attr-defined]
        self.rng.shuffle(ready)
        self._ready.clear()  # type: ignore[attr-defined]
        self._ready.extend(ready)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]

    def _process_events(self, events: object) -> None:
        pass

    def _write_to_self(self) -> None:
        raise RuntimeError("a thread woke the loop inside a simulation")

    def run_in_executor(self, *_: Any) -> Any:  # type: ignore[override]
        raise RuntimeError("an executor inside a simulation")


def simulate(seed: int, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end under ``seed``."""
    loop = SimulatedLoop(seed)
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(work)
    finally:
        asyncio.set_event_loop(None)
        loop.close()
