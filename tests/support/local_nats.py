"""A real NATS server with JetStream on this machine, without accounts: for tests of the adapters on their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client

BINARY = Path(sys.executable).parent / "nats-server"


class LocalNats:
    """One server. ``kill`` ends it as a crash does; ``start`` after it uses the same folder and port."""

    def __init__(self, folder: Path, max_file_store: int = 1 << 30) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.folder = folder
        self.config = folder / "nats.conf"
        self.config.write_text(
            f'host: "127.0.0.1"\nport: {self.port}\n'
            f"jetstream {{ store_dir: {json.dumps(str(folder / 'store'))}, sync_interval: always, "
            f"max_file_store: {max_file_store} }}\n"
        )
        self._process: asyncio.subprocess.Process | None = None
        self._clients: list[Client] = []

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            str(BINARY), "-c", str(self.config), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(15):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.02)

    async def end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(how)
            await self._process.wait()

    async def kill(self) -> None:
        await self.end(signal.SIGKILL)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def connect(self, **options: Any) -> Client:
        client = await nats.connect(
            self.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05, error_cb=_quiet, **options
        )
        self._clients.append(client)
        return client

    async def close(self) -> None:
        """Close every connection, and the server."""
        for client in self._clients:
            with contextlib.suppress(Exception):
                await client.close()
        with contextlib.suppress(ProcessLookupError):
            self.thaw()
        await self.end(signal.SIGTERM)


async def _quiet(_: Exception) -> None:
    """Lost connections are what these tests are about."""


@contextlib.asynccontextmanager
async def local_nats(folder: Path, **options: Any) -> AsyncIterator[LocalNats]:
    """A running server in ``folder``."""
    server = LocalNats(folder, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.close()
