"""Two stores that must behave alike: a real NATS server with durable sync, and the simulated one.

A contract is an async function that takes a :class:`Store`; :func:`contract` makes a test of it for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import nats
import pytest
from nats.aio.client import Client

from remit_broker.adapters.world import SystemClock
from remit_broker.ports import Clock
from tests.simulation.jetstream import JetStreams
from tests.simulation.loop import SimulatedLoop
from tests.simulation.nats_server import NatsServer
from tests.simulation.network import Network
from tests.simulation.seeded import EPOCH
from tests.support.local_nats import LocalNats, local_nats


class Store(Protocol):
    """A NATS server with JetStream, and what can happen to it."""

    clock: Clock
    """The clock that the server goes by."""

    async def connect(self) -> Client:
        """A connection that is made again until it is closed."""

    async def kill(self) -> None:
        """As SIGKILL."""

    async def start(self) -> None:
        """After :meth:`kill`: on what is on the disk."""

    def freeze(self) -> None:
        """As SIGSTOP."""

    def thaw(self) -> None:
        """As SIGCONT."""

    async def copy(self) -> None:
        """Kill it, keep a copy of its disk, and start it."""

    async def go_back(self) -> None:
        """Kill it, put the copy in the place of its disk, and start it."""


class RealStore(LocalNats):
    """nats-server."""

    clock = SystemClock()

    async def copy(self) -> None:
        await self.kill()
        shutil.copytree(self.folder / "store", self.folder / "old")
        await self.start()

    async def go_back(self) -> None:
        await self.kill()
        shutil.rmtree(self.folder / "store")
        (self.folder / "old").rename(self.folder / "store")
        await self.start()


class LoopClock:
    """The time of a loop of virtual time."""

    def now(self) -> float:
        return EPOCH + asyncio.get_running_loop().time()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class SimulatedStore:
    """The server of the simulation, in a loop of virtual time."""

    clock = LoopClock()

    def __init__(self, loop: SimulatedLoop, *, clustered: bool = False) -> None:
        rng = random.Random(1)
        self.server = NatsServer(loop, rng, Network(loop, rng))
        self.js = JetStreams(self.server, "CORE", rng, clustered=clustered)
        self.server.authorize = lambda options: ("CORE", options.get("name") or "somebody")
        self._clients: list[Client] = []
        self._old: dict[str, Any] = {}

    async def connect(self) -> Client:
        options: dict[str, Any] = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.05, "error_cb": _quiet}
        client = await nats.connect("nats://nats:4222", **options)
        self._clients.append(client)
        return client

    async def kill(self) -> None:
        self.server.stop()
        self.js.crash({})

    async def start(self) -> None:
        self.server.start()

    def freeze(self) -> None:
        self.server.freeze()

    def thaw(self) -> None:
        self.server.thaw()

    async def copy(self) -> None:
        self._old = {name: stream.kept() for name, stream in self.js.streams.items()}

    async def go_back(self) -> None:
        await self.kill()
        for name, kept in self._old.items():
            self.js.streams[name].restore(copy.deepcopy(kept))
        await self.start()

    async def close(self) -> None:
        for client in self._clients:
            with contextlib.suppress(Exception):
                await client.close()


async def _quiet(_: Exception) -> None:
    """Lost connections are what these tests are about."""


@asynccontextmanager
async def _real(folder: Path) -> AsyncIterator[RealStore]:
    store = RealStore(folder)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


Work = Callable[..., Awaitable[None]]


def contract(work: Work) -> Any:
    """A test of ``work`` on each store."""

    @pytest.mark.parametrize("store", ["nats-server", "simulated", "simulated-cluster"])
    def test(store: str, tmp_path: Path) -> None:
        if store == "nats-server":
            asyncio.run(_on_real(tmp_path, work))
        else:
            _on_simulated(work, clustered=store == "simulated-cluster")

    test.__name__, test.__doc__, test.__module__ = work.__name__, work.__doc__, work.__module__
    return test


async def _on_real(folder: Path, work: Work) -> None:
    async with _real(folder) as store:
        await work(store)


def _on_simulated(work: Work, *, clustered: bool) -> None:
    loop = SimulatedLoop(1)
    asyncio.set_event_loop(loop)
    try:
        store = SimulatedStore(loop, clustered=clustered)

        async def all_of_it() -> None:
            try:
                await work(store)
            finally:
                await store.close()

        loop.run_until_complete(all_of_it())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


__all__ = ["Store", "contract", "local_nats"]
