"""Virtual time, a seeded order, and processes that can be stopped, killed and given a wrong clock.

The same seed gives the same run, and hours take seconds. Every callback belongs to the process in whose context it was
scheduled; between any two callbacks, which is to say at every ``await`` that waits, a process can be frozen or end for good.
"""

from __future__ import annotations

import asyncio
import asyncio.base_events
import contextvars
import heapq
import random
import traceback
import types
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):  # noqa: N818
    """Nothing is ready and no timer runs."""


class Process:
    """One operating-system process of the simulated world. ``skew`` is by how many seconds its wall clock is wrong.

    ``steps`` counts the callbacks it has run; at ``doom`` of them, ``fate`` is called instead of the next one.
    """

    def __init__(self, name: str, host: str = "") -> None:
        self.name, self.host = name, host or name
        self.alive, self.frozen = True, False
        self.skew = 0.0
        self.steps = 0
        self.doom = -1
        self.fate: Callable[[], None] = lambda: None
        self.waiting: list[asyncio.Handle] = []
        self.kept: list[Any] = []
        """What must not be collected before the run is over: a dead process runs no clean-up."""
        self.at_death: list[Callable[[], None]] = []

    def freeze(self) -> None:
        """Stand still (SIGSTOP)."""
        self.frozen = True

    def thaw(self, loop: SimulatedLoop) -> None:
        """Go on with everything that has come due meanwhile (SIGCONT)."""
        self.frozen = False
        waiting, self.waiting = self.waiting, []
        if self.alive:
            loop.resume(waiting)

    def die(self) -> None:
        """End for good (SIGKILL): nothing it was about to do has any effect."""
        if self.alive:
            self.alive = False
            for tell in self.at_death:
                tell()

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin ``work`` in this process."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, self)
        return asyncio.get_running_loop().create_task(work, context=context)


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class SimTask(asyncio.Task):
    """A task whose place in a set depends on when it was made, not on where it lies in memory."""

    def __init__(self, *args: Any, **options: Any) -> None:
        loop: SimulatedLoop = options["loop"]
        loop.numbers += 1
        self._number = loop.numbers
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._number


class SimFuture(asyncio.Future):
    """A future, likewise."""

    def __init__(self, *, loop: SimulatedLoop) -> None:
        loop.numbers += 1
        self._number = loop.numbers
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class SimulatedLoop(asyncio.base_events.BaseEventLoop):
    """Time jumps to the next timer; the order of ready callbacks comes from the seed; no threads, no sockets.

    With ``fifo`` only callbacks of different processes change places, as between real processes; without it, any do.
    """

    def __init__(self, seed: int, *, fifo: bool = False) -> None:
        super().__init__()
        self.now, self.rng, self.fifo = 0.0, random.Random(seed), fifo
        self.numbers = 0
        self.handles = 0
        self.limit = 400_000
        self.faults: list[str] = []
        self.dial: Callable[..., Coroutine[Any, Any, Any]] | None = None
        """How connections are made (:mod:`tests.simulation.network`)."""
        self._clock_resolution = 1e-9
        self._selector = types.SimpleNamespace(select=lambda timeout: [], close=lambda: None)
        self.set_task_factory(self._task)
        self.set_exception_handler(self._fault)

    def time(self) -> float:
        return self.now

    def create_future(self) -> SimFuture:
        return SimFuture(loop=self)

    def _task(self, loop: Any, work: Any, **options: Any) -> SimTask:
        context = options.get("context")
        task = SimTask(work, loop=loop, **options)
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            process.kept.append(task)
        return task

    def _fault(self, _: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        where = traceback.extract_tb(error.__traceback__)[-1:] if isinstance(error, BaseException) else []
        at = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in where)
        self.faults.append(f"{context.get('message')}: {error!r}{at}")

    def resume(self, handles: Sequence[asyncio.Handle]) -> None:
        """These have waited long enough."""
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def _run_once(self) -> None:
        scheduled, ready = self._scheduled, self._ready  # type: ignore[attr-defined]
        if not ready:
            while scheduled and scheduled[0]._cancelled:
                heapq.heappop(scheduled)._scheduled = False
            if not scheduled:
                raise Deadlock("nothing is ready and no timer runs")
            self.now = max(self.now, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self.now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        handles = list(ready)
        ready.clear()
        if len(handles) > 1:
            self._shuffle(handles)
        self.handles += len(handles)
        if self.handles > self.limit:
            raise Deadlock(f"more than {self.limit} callbacks: something goes round in circles")
        for handle in handles:
            if handle._cancelled:
                continue
            context = handle._context
            process = context.get(PROCESS)
            if process is not None:
                if not process.alive:
                    process.kept.append(handle)
                    continue
                if process.frozen:
                    process.waiting.append(handle)
                    continue
                process.steps += 1
                if process.steps == process.doom:
                    process.fate()
                    if process.frozen or not process.alive:
                        (process.waiting if process.alive else process.kept).append(handle)
                        continue
            try:
                context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt, Deadlock):
                raise
            except BaseException as error:
                self.call_exception_handler({"message": f"{handle!r}", "exception": error})

    def _shuffle(self, handles: list[asyncio.Handle]) -> None:
        if not self.fifo:
            self.rng.shuffle(handles)
            return
        # Each process keeps the order of its own callbacks, as asyncio promises; whose turn it is comes from the seed.
        order = [handle._context.get(PROCESS) for handle in handles]  # type: ignore[attr-defined]
        turns = list(range(len(handles)))
        self.rng.shuffle(turns)
        queues: dict[Any, list[asyncio.Handle]] = {}
        for process, handle in zip(order, handles, strict=True):
            queues.setdefault(id(process), []).append(handle)
        places = [id(order[turn]) for turn in turns]
        nexts = {key: iter(queue) for key, queue in queues.items()}
        handles[:] = [next(nexts[key]) for key in places]

    def _timer_handle_cancelled(self, handle: Any) -> None:
        pass

    def _process_events(self, events: object) -> None:
        pass

    def _write_to_self(self) -> None:
        raise RuntimeError("a thread woke the loop inside a simulation")

    def run_in_executor(self, *_: Any) -> Any:  # type: ignore[override]
        raise RuntimeError("an executor inside a simulation")

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        self._asyncgens.discard(agen)  # type: ignore[attr-defined]
        process = PROCESS.get()
        if not self.is_closed() and (process is None or process.alive):
            self.create_task(agen.aclose())

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        if self.dial is None:
            raise ConnectionRefusedError("there is no network in this simulation")
        return await self.dial(protocol_factory, host, port)

    def close(self) -> None:
        # Without a callback left, what is never finished can be collected.
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        super().close()


def simulate(seed: int, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end under ``seed``."""
    loop = SimulatedLoop(seed)
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(work)
    finally:
        asyncio.set_event_loop(None)
        loop.close()
