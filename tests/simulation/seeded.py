"""While a run lasts, every clock and every source of randomness of this process is the run's own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import secrets
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

from remit_broker.hop import narrow, renew
from tests.simulation.loop import PROCESS, SimulatedLoop

EPOCH = 1_800_000_000.0
"""Unix seconds at which every run begins: 15 January 2027, 08:00 UTC."""


def wall() -> float:
    """What the wall clock of the running process says."""
    loop = asyncio.get_running_loop()
    process = PROCESS.get()
    return EPOCH + loop.time() + (process.skew if process is not None else 0.0)


class Drawn(random.Random):
    """What the operating system's random source gives in a run."""

    def seed(self, a: Any = None, version: int = 2) -> None:
        super().seed(a if a is None else f"drawn {a}", version)
        random.seed(f"random {a}")


@contextlib.contextmanager
def seeded(loop: SimulatedLoop, seed: int, *, grant_ttl: int = 60) -> Iterator[Drawn]:
    """Clocks and randomness from the run. Nothing is collected meanwhile: when a cycle is found depends on everything else."""
    state = random.getstate()
    drawn = Drawn(seed)
    kept: list[tuple[Any, str, Any]] = []

    def put(where: Any, name: str, value: Any) -> None:
        kept.append((where, name, getattr(where, name)))
        setattr(where, name, value)

    def monotonic() -> float:
        return loop.time()

    for module in (narrow, renew):
        put(module, "GRANT_TTL", grant_ttl)
    put(time, "time", wall)
    put(time, "monotonic", monotonic)
    put(time, "perf_counter", monotonic)
    put(time, "thread_time", monotonic)
    put(time, "time_ns", lambda: int(wall() * 1e9))
    put(secrets, "_sysrand", drawn)
    put(secrets, "choice", drawn.choice)
    put(os, "urandom", drawn.randbytes)
    put(os, "getpid", lambda: 1)
    put(socket, "gethostname", lambda: "simulated")
    put(uuid, "uuid4", lambda: uuid.UUID(int=drawn.getrandbits(128), version=4))
    put(sys, "unraisablehook", lambda _: None)

    def dropped(message: Warning | str, *_: Any, **__: Any) -> None:
        # While a run lasts, somebody who lives has let go of work that was never begun: what it was for gets no answer. Once it
        # is over that is all that is left of whoever died or was still at it.
        if loop.is_running():
            loop.faults.append(str(message))

    logging.disable(logging.CRITICAL)
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", RuntimeWarning)
            warnings.showwarning = dropped
            yield drawn
    finally:
        for where, name, value in reversed(kept):
            setattr(where, name, value)
        random.setstate(state)
        logging.disable(logging.NOTSET)
        if collecting:
            gc.enable()
