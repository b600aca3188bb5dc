"""Processes and what they use: processor time and memory from ``/proc``, NATS servers alone and in a cluster of three."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import nats
from nats.aio.client import Client

from remit_broker.adapters.nats_server import find_binary

MIB: Final = 1024 * 1024
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

Sync = Literal["always", "default"]


def cpu(pid: int | None = None) -> float:
    """Seconds of processor time that a process (this one by default) has used, in user and system mode."""
    text = Path(f"/proc/{pid or os.getpid()}/stat").read_text(encoding="utf-8")
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rss(pid: int | None = None) -> float:
    """MiB of memory that a process holds."""
    return int(Path(f"/proc/{pid or os.getpid()}/statm").read_text(encoding="utf-8").split()[1]) * _PAGE / MIB


def child_named(pid: int, name: str) -> int:
    """The first process below ``pid`` that runs the program ``name``. Raises LookupError."""
    above = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            head, _, tail = (folder / "stat").read_text(encoding="utf-8").rpartition(")")
            above[int(folder.name)] = (int(tail.split()[1]), head.partition("(")[2])
    for one, (_, program) in above.items():
        up: int | None = one
        while up in above:
            up = above[up][0]
            if up == pid and program == name:
                return one
    raise LookupError(f"no {name} runs below {pid}")


def size(folder: Path) -> float:
    """MiB of all files below ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / MIB


class Server:
    """One NATS server with JetStream, without accounts, in a folder of its own. ``routes`` are the ports of its cluster."""

    def __init__(self, folder: Path, sync: Sync, name: str = "scale", cluster: tuple[int, Sequence[int]] | None = None):
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f'server_name: "{name}"', 'host: "127.0.0.1"', f"port: {self.port}",
            "jetstream {", f"  store_dir: {json.dumps(str(folder / 'store'))}", "  max_file_store: 64GB",
            *(["  sync_interval: always"] if sync == "always" else []), "}",
        ]  # fmt: skip
        if cluster is not None:
            own, others = cluster
            routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in others)
            lines.append(f'cluster {{ name: "scale", listen: "127.0.0.1:{own}", routes: [{routes}] }}')
        self._config = folder / "nats.conf"
        self._config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    async def start(self) -> float:
        """Start; returns the seconds until it takes connections, which it does when its store has been read."""
        began = time.monotonic()
        quiet = asyncio.subprocess.DEVNULL
        self._process = await asyncio.create_subprocess_exec(
            str(find_binary()), "-c", str(self._config), stdout=quiet, stderr=quiet
        )
        async with asyncio.timeout(600):
            while self._process.returncode is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return time.monotonic() - began
                await asyncio.sleep(0.01)
        raise RuntimeError(f"nats-server ended with {self._process.returncode}")

    async def end(self, kill: bool = False) -> None:
        """End it, as an operator or as a crash does."""
        if self._process is not None and self._process.returncode is None:
            if kill:
                self._process.kill()
            else:
                self._process.terminate()
            await self._process.wait()


@asynccontextmanager
async def one_server(folder: Path, sync: Sync) -> AsyncIterator[tuple[Server, Client]]:
    """A server alone, and a client."""
    server = Server(folder, sync)
    await server.start()
    try:
        nc = await connected(server)
        yield server, nc
        await nc.close()
    finally:
        await server.end()


@asynccontextmanager
async def three_servers(folder: Path, sync: Sync) -> AsyncIterator[tuple[list[Server], Client]]:
    """A cluster of three, and a client of one of them."""
    routes = [free_port() for _ in range(3)]
    async with AsyncExitStack() as stack:
        servers = []
        for number, route in enumerate(routes):
            name = f"scale{number}"
            server = Server(folder / name, sync, name, (route, [port for port in routes if port != route]))
            servers.append(server)
            stack.push_async_callback(server.end)
        await asyncio.gather(*(server.start() for server in servers))
        nc = await connected(servers[0])
        stack.push_async_callback(nc.close)
        yield servers, nc


async def connected(server: Server) -> Client:
    """A client that comes back when the server does; JetStream answers it."""
    nc = await nats.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05, error_cb=_quiet)
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                told: dict[str, Any] = json.loads((await nc.request("$JS.API.INFO", timeout=1)).data)
                if "error" not in told:
                    return nc
            await asyncio.sleep(0.05)


async def _quiet(_: Exception) -> None:
    """The server is stopped and started on purpose."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
