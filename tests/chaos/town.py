"""Brokers, NATS servers, callers and callees as processes, kept alive by somebody who starts again whatever dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx

from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.credentials import credentials_file
from tests.chaos.brokers import OTHER, Broker
from tests.chaos.journal import Journal
from tests.chaos.network import POSSIBLE, Network, network
from tests.chaos.processes import Person, Process, children, signal_to, state_of
from tests.chaos.stream import follow
from tests.support.cluster import Cluster
from tests.support.proxy import Proxy

PEOPLE = {
    "clerk": "clerk", "clerk2": "clerk", "files": "clerk", "planner": "planner", "desk": "desk", "front": "desk",
    f"{OTHER}-clerk": "clerk", f"{OTHER}-files": "clerk", f"{OTHER}-desk": "desk", "approver": "approver",
}  # fmt: skip
"""Processes by name, and the role each plays. ``clerk2`` is a second process of the agent ``clerk``; the agents of the other
tenant have the same names as those of the first.
"""
RECOVERY = 180.0
"""Seconds that a broker has to be ready again once all is whole; far more than it needs, as the machine may be busy with others."""
STAGES = ("admit", "verify", "narrow", "approve", "open", "sent", "started", "dispatch", "inspect_result", "close")
"""Where a hop can be when its broker dies or freezes: the ends of the stages, and between sending and the first frame."""


class Server(Protocol):
    """A NATS server, whoever runs it."""

    name: str

    @property
    def running(self) -> bool: ...

    async def kill(self) -> None: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


class Child:
    """The NATS server that a broker embeds: when it dies its broker ends too, and whoever keeps that starts both again."""

    def __init__(self, broker: Broker) -> None:
        self.name, self._broker = "embedded", broker
        self._frozen: set[int] = set()

    @property
    def pid(self) -> int:
        return next(iter(children(self._broker.pid)), 0) if self._broker.alive else 0

    @property
    def running(self) -> bool:
        return self.pid != 0

    async def kill(self) -> None:
        if pid := self.pid:
            signal_to(pid, signal.SIGKILL)

    def freeze(self) -> None:
        if pid := self.pid:
            self._frozen.add(pid)
            signal_to(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Also one whose broker died meanwhile: it ends then, as its leash told it to, and the next one can have its folder."""
        while self._frozen:
            signal_to(self._frozen.pop(), signal.SIGCONT)


class Town:
    """Everything that runs. ``rng`` decides what is done to it; ``violations`` are what it saw by itself on the way."""

    def __init__(self, folder: Path, seed: str, brokers: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.seed = folder, seed
        self.rng = random.Random(f"{seed}/town")
        self.journal = Journal(folder / "journals", "town")
        self.counts: Counter[str] = Counter()
        self.troubled = False
        """Whether faults are being made: only then do brokers start with a failpoint."""
        self.keys = KeyFiles.open(folder / "data", create=True)
        self.brokers: list[Broker] = []
        self.people: list[Person] = []
        self.servers: list[Any] = []
        self.proxies: list[Proxy] = []
        self.network: Network | None = None
        self.urls = ""
        self._size = brokers
        self._stack = AsyncExitStack()
        self._killed: dict[str, int] = {}
        self._still: set[str] = set()
        self._later: set[asyncio.Task[None]] = set()
        self._resting: set[str] = set()

    # Beginning

    async def open(self, clustered: bool) -> None:
        """Start everything, faultless, and return when calls are being made."""
        await (self._on_a_cluster() if clustered else self._on_one_server())
        self._task(self._keep())
        for broker in self.brokers:
            await broker.ready()
            await broker.look()
        self._tell()
        await self._register()
        self._stack.push_async_callback(self._end_people)
        for name, role in PEOPLE.items():
            person = Person(self.folder, name, role, self.seed)
            self.people.append(person)
            person.launch()
        self._task(follow(self.urls, self.keys.seed("core"), Journal(self.folder / "journals", "reader")))
        self._task(self._look())
        await self._busy()

    async def _busy(self, results: int = 20) -> None:
        """Wait until calls come to their end, and every callee has been called."""
        journals = self.folder / "journals"
        desk = journals / "desk.jsonl"
        callees = [
            journals / f"{name}.jsonl" for name in ("clerk", "files", "planner", f"{OTHER}-clerk", f"{OTHER}-files")
        ]
        async with asyncio.timeout(120):
            while not all(path.exists() and path.stat().st_size for path in callees):
                await asyncio.sleep(0.2)
            while not desk.exists() or desk.read_bytes().count(b'"frame":"result"') < results:
                await asyncio.sleep(0.2)

    async def _on_one_server(self) -> None:
        """The first broker embeds it, the others come in through a proxy each."""
        port = _free_port()
        self.urls = f"nats://127.0.0.1:{port}"
        first = self._broker({"port": port})
        await first.ready()
        self.servers = [Child(first)]
        for _ in range(self._size - 1):
            self._broker({"url": (await self._proxy(self.urls)).url})

    async def _on_a_cluster(self) -> None:
        places = []
        if POSSIBLE:
            self.network = await self._stack.enter_async_context(network(3))
            places = self.network.places
        cluster = Cluster(self.folder, places=places, tenants=(OTHER,))
        self._stack.push_async_callback(cluster.close)
        await cluster.start()
        self.servers, self.urls = list(cluster.nodes), cluster.url
        self.cluster = cluster
        for _ in range(self._size):
            # One after the other: the first makes the streams.
            await self._broker({"url": self.urls, "replicas": 3}).ready()

    async def _proxy(self, url: str) -> Proxy:
        proxy = Proxy(url)
        await proxy.start()
        self.proxies.append(proxy)
        self._stack.push_async_callback(proxy.stop)
        return proxy

    def _broker(self, bus: dict[str, Any]) -> Broker:
        broker = Broker(self.folder, f"b{len(self.brokers)}", self.folder / "data" / "keys", bus)
        self.brokers.append(broker)
        self._stack.push_async_callback(broker.end)
        broker.launch()
        return broker

    async def _register(self) -> None:
        known = {"bus": self.urls, **(await self.brokers[0].api("GET", "/api/status"))["published"]}
        for name in PEOPLE:
            if name == "clerk2":
                shutil.copy2(self.folder / "credentials" / "clerk.json", self.folder / "credentials" / "clerk2.json")
                continue
            if name == "approver":
                continue
            agent, tenant = name.removeprefix(f"{OTHER}-"), OTHER if name.startswith(f"{OTHER}-") else "default"
            kind = "mcp" if agent == "files" else "agent"
            folder = self.folder / "credentials"
            _, public = credentials_file(folder / tenant, agent, kind, known)  # type: ignore[arg-type]
            (folder / tenant / f"{agent}.json").rename(folder / f"{name}.json")
            body = {"name": agent, "nkey": public, "kind": kind, "tier": "standard"}
            await self.brokers[0].api("POST", f"/api/agents?tenant={tenant}", body)

    def _tell(self) -> None:
        """Where callers find the HTTP edges."""
        told = [{"http": one.http, "token": one.token} for one in self.brokers if one.http]
        fresh = self.folder / "brokers.json.new"
        fresh.write_text(json.dumps(told), encoding="utf-8")
        fresh.rename(self.folder / "brokers.json")

    # Keeping

    def _task(self, work: Any) -> None:
        task = asyncio.ensure_future(work)

        async def stop() -> None:
            while not task.done():  # the client swallows a cancellation now and then
                task.cancel()
                await asyncio.wait([task], timeout=1)

        self._stack.push_async_callback(stop)

    def later(self, seconds: float, what: Any) -> None:
        """Call ``what`` after a while, whatever else goes on."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            found = what()
            if asyncio.iscoroutine(found):
                await found

        task = asyncio.ensure_future(wait())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _keep(self) -> None:
        """Start again whatever died, and let go on what froze itself."""
        while True:
            for process in (*self.brokers, *self.people):
                self._tend(process)
            for server in self.servers:
                if not isinstance(server, Child) and not server.running and server.name not in self._resting:
                    self._resting.add(server.name)
                    self.later(self._pause(3.0), lambda one=server: self._revive(one))
            await asyncio.sleep(0.05)

    async def _revive(self, server: Any) -> None:
        await server.start()
        self._resting.discard(server.name)

    def _pause(self, most: float) -> float:
        return self.rng.uniform(0.1, most) if self.troubled else 0.05

    def _tend(self, process: Process) -> None:
        if isinstance(process, Broker) and process.announced():
            self._tell()
        if process.wanted and not process.alive and process.name not in self._resting:
            self._resting.add(process.name)
            if (
                self._killed.get(process.name) != process.starts
            ):  # nobody here killed it: it did itself, or its server did
                self.died(process)
            if isinstance(process, Broker):
                process.failpoint = self._failpoint()
            self.later(self._pause(1.5), lambda: self._relaunch(process))
        elif not process.frozen:
            self._still.discard(process.name)
        elif process.name not in self._still:  # nobody here froze it
            self.froze(process)
            self.later(self.rng.uniform(0.3, 6.0), process.thaw)

    def _relaunch(self, process: Process) -> None:
        self._resting.discard(process.name)
        if process.wanted and not process.alive:
            process.launch()

    def _failpoint(self) -> str:
        if not self.troubled or self.rng.random() < 0.4:
            return ""
        how = "freeze:" if self.rng.random() < 0.4 else ""
        return f"{how}{self.rng.choice(STAGES)}@{self.rng.randrange(1, 120)}"

    async def _look(self) -> None:
        while True:
            for broker in self.brokers:
                if broker.alive and state_of(broker.pid) != "T":
                    await broker.look()
            await asyncio.sleep(0.5)

    def died(self, process: Any) -> None:
        """Write down that something ended, and what it was."""
        self._note("death", process)
        if isinstance(process, Process):
            self._killed[process.name] = process.starts

    def froze(self, process: Any) -> None:
        """Write down that something stands still."""
        self._note("freeze", process)
        if isinstance(process, Process):
            self._still.add(process.name)

    def _note(self, what: str, process: Any) -> None:
        kind = "broker" if isinstance(process, Broker) else "person" if isinstance(process, Person) else "server"
        role = process.role if isinstance(process, Person) else kind
        self.counts[f"{what}.{role}"] += 1
        point = getattr(process, "failpoint", "")
        replica = getattr(process, "replica", "")
        self.journal.write(what, kind=kind, name=process.name, replica=replica, failpoint=point)

    # Ending

    async def calm(self) -> None:
        """No more faults: everything is whole and runs again. Raises where a broker does not recover by itself."""
        self.troubled = False
        for task in list(self._later):
            with contextlib.suppress(Exception):
                await asyncio.wait_for(asyncio.shield(task), 10)
        for proxy in self.proxies:
            proxy.heal()
        if self.network is not None:
            await self.network.heal()
        for server in self.servers:
            server.thaw()
        for broker in self.brokers:
            shifted_back(broker)
        for process in (*self.brokers, *self.people):
            process.thaw()
        for broker in self.brokers:
            await broker.ready(RECOVERY)
            await broker.look()
        self._tell()

    async def ask(self, path: str) -> Any:
        """What a broker's API says: whichever answers, and again for a while where none does."""
        for _ in range(50):
            for broker in self.brokers:
                with contextlib.suppress(httpx.HTTPError, OSError):
                    if broker.announced():
                        return await broker.api("GET", path)
            await asyncio.sleep(1)
        raise AssertionError(f"no broker answers {path}")

    async def quiet(self) -> None:
        """Callers finish what they have begun, callees go on."""
        desks = [person for person in self.people if person.role == "desk"]
        await asyncio.gather(*(desk.end(20) for desk in desks))

    async def _end_people(self) -> None:
        await asyncio.gather(*(person.end(1) for person in self.people))

    async def close(self) -> None:
        """End everything."""
        for task in list(self._later):
            task.cancel()
        await self._stack.aclose()


def shifted_back(broker: Broker) -> None:
    """The true time again."""
    from tests.chaos.broker import move

    move(broker.clock, 0.0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running_town(folder: Path, seed: str, *, clustered: bool, brokers: int) -> AsyncIterator[Town]:
    """A town in which calls are being made; everything in it is ended afterwards."""
    town = Town(folder, seed, brokers)
    try:
        await town.open(clustered)
        yield town
    finally:
        began = time.monotonic()
        await town.close()
        town.journal.write("closed", seconds=time.monotonic() - began)
