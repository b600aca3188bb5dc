"""A real three-node JetStream cluster with Remit's own configuration, whose nodes can be killed, frozen and started again.

``async with running_cluster(folder) as cluster`` gives ``cluster.url`` (all nodes, comma-separated, as ``bus.url`` takes it),
``cluster.keys`` (a broker whose data folder is ``folder/data`` has them) and ``cluster.nodes``. Each node is a process of its own::

    await cluster.nodes[0].kill()           # SIGKILL, and wait until it is gone
    cluster.nodes[1].freeze()               # SIGSTOP; .thaw() lets it go on
    await cluster.nodes[0].start()          # on the same ports and store
    node = await cluster.leader("LEDGER")   # who leads a stream; None while nobody does
    await cluster.settled()                 # every node is there, every stream has a leader and all its peers are current
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import nats
from nats.aio.client import Client

from remit_broker.adapters import leash
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_config import Cluster as Routes
from remit_broker.adapters.nats_config import ServerConfig, render
from remit_broker.adapters.nats_server import find_binary, public_keys

SIZE: Final = 3
SECONDS: Final = 30.0
_POLL: Final = 0.05


class Place(NamedTuple):
    """Where a node listens, and the words that start a process there."""

    host: str
    inside: tuple[str, ...] = ()


class Node:
    """One server of the cluster. ``url`` is where clients connect, ``inside`` are words before its command."""

    def __init__(self, folder: Path, config: ServerConfig, inside: Sequence[str] = ()) -> None:
        self.folder, self.name, self.port, self._inside = folder, config.server_name, config.port, inside
        self.url = f"nats://{config.host}:{config.port}"
        folder.mkdir(parents=True)
        self.config = folder / "nats.conf"
        self.config.write_text(render(config), encoding="utf-8")
        self.frozen = False
        self._process: asyncio.subprocess.Process | None = None

    def __repr__(self) -> str:
        return f"Node({self.name})"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process lives, frozen or not."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start its process, if it has none. Returns before it has joined the others: see :meth:`Cluster.settled`."""
        if self.running:
            return
        command = [str(find_binary()), "--config", str(self.config)]
        with (self.folder / "nats.stderr").open("ab") as errors:
            # On the broker's own leash: a node does not outlive the test run, however that ends.
            self._process = await asyncio.create_subprocess_exec(
                *self._inside, sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), "--", *command,
                stdin=asyncio.subprocess.DEVNULL, stdout=errors, stderr=errors,
            )  # fmt: skip
        self.frozen = False

    async def kill(self) -> None:
        """End it as a crash of the machine does, frozen or not."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """End it as an operator does."""
        if self.frozen:
            self.thaw()
        await self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop it without a word: its connections stay open."""
        self._send(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        self._send(signal.SIGCONT)
        self.frozen = False

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._send(number)
            try:
                await asyncio.wait_for(self._process.wait(), SECONDS)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self.frozen = False


class Cluster:
    """The nodes, and questions about what they agreed on."""

    def __init__(
        self, folder: Path, size: int = SIZE, places: Sequence[Place] = (), tenants: Sequence[str] = (), **options: Any
    ) -> None:
        """``options`` are fields of the server's configuration, such as ``sync``; ``places`` where each node is, if not on loopback;
        ``tenants`` those beside the default one.
        """
        places = places or [Place("127.0.0.1")] * size
        self.keys = KeyFiles.open(folder / "data", create=True)
        ports = _free_ports(2 * size)
        clients, routes = ports[:size], ports[size:]
        peers = tuple(f"nats://{place.host}:{port}" for place, port in zip(places, routes, strict=True))
        self.nodes = [
            Node(
                folder / f"n{number + 1}",
                ServerConfig(
                    keys=public_keys(self.keys, tenants),
                    store_dir=str(folder / f"n{number + 1}" / "store"),
                    server_name=f"n{number + 1}",
                    host=places[number].host,
                    port=clients[number],
                    log_file=str(folder / f"n{number + 1}" / "nats.log"),
                    cluster=Routes(host=places[number].host, port=routes[number], routes=peers),
                    **{"max_file_store": 16 * 1024**3, **options},
                ),
                places[number].inside,
            )
            for number in range(size)
        ]

    @property
    def url(self) -> str:
        """Every node, as ``bus.url`` takes them."""
        return ",".join(node.url for node in self.nodes)

    async def start(self) -> None:
        """Start every node and wait until they are one cluster."""
        for node in self.nodes:
            await node.start()
        await self.settled()

    async def close(self) -> None:
        """End every node."""
        await asyncio.gather(*(node.kill() for node in self.nodes))

    def named(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    async def leader(self, stream: str) -> Node | None:
        """Who leads ``stream`` (``LEDGER``, ``REFUSALS``, ``KV_registry`` …), or None while nobody does."""
        name = (await self.info(stream)).get("cluster", {}).get("leader")
        return self.named(name) if name else None

    async def until_led(self, stream: str, not_by: Node | None = None) -> Node:
        """Wait until ``stream`` has a leader, another one than ``not_by``."""
        async with asyncio.timeout(SECONDS):
            while True:
                with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                    if (node := await self.leader(stream)) is not None and node is not not_by:
                        return node
                await asyncio.sleep(_POLL)

    async def info(self, stream: str) -> dict[str, Any]:
        """What JetStream says of a stream; raises what the client raises, and KeyError where there is no such stream."""
        answer = await self._ask("core", f"$JS.API.STREAM.INFO.{stream}")
        if "config" not in answer:
            raise KeyError(f"{stream}: {answer.get('error')}")
        return answer

    async def settled(self) -> None:
        """Wait until every node is in, and every stream has a leader and only current peers."""
        last: object = None
        try:
            async with asyncio.timeout(SECONDS):
                while True:
                    try:
                        if not (last := await self._unsettled()):
                            return
                    except (nats.errors.Error, OSError, TimeoutError, KeyError) as error:
                        last = error
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise AssertionError(f"the cluster did not settle: {last}") from None

    async def _unsettled(self) -> str:
        """What is not as it should be yet, or nothing."""
        meta = (await self._ask("sys", "$SYS.REQ.SERVER.PING.JSZ"))["data"].get("meta_cluster") or {}
        # The leader alone knows how its peers are, so its answer is the one that counts.
        if leader := meta.get("leader"):
            asked = f"$SYS.REQ.SERVER.{await self._id(leader)}.JSZ"
            meta = (await self._ask("sys", asked))["data"]["meta_cluster"]
        peers = meta.get("replicas") or ()
        if len(peers) != len(self.nodes) - 1 or not all(peer.get("current") for peer in peers):
            return f"the nodes: {meta}"
        for stream in (await self._ask("core", "$JS.API.STREAM.LIST")).get("streams") or ():
            group = stream.get("cluster") or {}
            peers = group.get("replicas") or ()
            if not group.get("leader") or not all(peer.get("current") for peer in peers):
                return f"{stream['config']['name']}: {group}"
        return ""

    async def _id(self, name: str) -> str:
        """The server id of a node."""
        async with self.client("sys", self.named(name)) as nc:
            return str(nc._server_info["server_id"])

    async def _ask(self, user: str, subject: str) -> dict[str, Any]:
        async with self.client(user) as nc:
            answer: dict[str, Any] = msgspec.json.decode((await nc.request(subject, b"", timeout=2)).data)
            return answer

    @asynccontextmanager
    async def client(self, user: str = "core", node: Node | None = None) -> AsyncIterator[Client]:
        """A connection as the broker's own user ``core``, ``bus``, ``auth`` or ``sys``, to one node that answers."""
        last: Exception = AssertionError("no node runs")
        for one in [node] if node else [found for found in self.nodes if found.running and not found.frozen]:
            nc = Client()
            try:
                await asyncio.wait_for(
                    nc.connect(
                        one.url, nkeys_seed_str=self.keys.seed(user), allow_reconnect=False, connect_timeout=1,
                        inbox_prefix=f"_INBOX_test_{user}", error_cb=_quiet,
                    ),
                    2,
                )  # fmt: skip
            except (nats.errors.Error, OSError, TimeoutError) as error:
                last = error
                continue
            try:
                yield nc
            finally:
                await nc.close()
            return
        raise last


async def _quiet(_: Exception) -> None:
    """A node that dies is what these tests are about."""


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different: held together until all are known."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(int(probe.getsockname()[1]))
        return found


@asynccontextmanager
async def running_cluster(folder: Path, size: int = SIZE, **options: Any) -> AsyncIterator[Cluster]:
    """A cluster that has settled; every node is ended afterwards, frozen or not."""
    cluster = Cluster(folder, size, **options)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.close()
