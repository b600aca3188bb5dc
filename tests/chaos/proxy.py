"""A TCP proxy that can let a connection stall, delay it, or cut it: a network between two processes of one machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

_CHUNK = 64 * 1024


class Proxy:
    """Forwards to ``target`` (``nats://HOST:PORT``). ``url`` is what the client is given instead."""

    def __init__(self, target: str) -> None:
        at = urlsplit(target)
        self._target = (at.hostname or "127.0.0.1", at.port or 4222)
        self._open = asyncio.Event()
        self._open.set()
        self._delay = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Cut everything and listen no more."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def partition(self) -> None:
        """Nothing gets through, and nobody is told: the cable is out. New connections are accepted and hang, as behind a firewall."""
        self._open.clear()

    def heal(self) -> None:
        """Everything gets through again, what was held back first."""
        self._open.set()
        self._delay = 0.0

    def slow(self, seconds: float) -> None:
        """Every piece comes so much later, in each direction."""
        self._delay = seconds

    def cut(self) -> None:
        """Close every connection there is."""
        for task in self._tasks:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._open.wait()
            there, back = await asyncio.open_connection(*self._target)
        except (OSError, asyncio.CancelledError):
            writer.close()
            self._tasks.discard(task)
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, back))
                group.create_task(self._pump(there, writer))
        except (ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            back.close()
            self._tasks.discard(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

        async def forward() -> None:
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(max(due - loop.time(), 0))
                await self._open.wait()
                sink.write(piece)
                await sink.drain()

        sender = loop.create_task(forward())
        try:
            while piece := await source.read(_CHUNK):
                await pieces.put((loop.time() + self._delay, piece))
            raise ConnectionResetError("the other side has closed")
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)


@asynccontextmanager
async def proxies(*targets: str) -> AsyncIterator[list[Proxy]]:
    """One proxy before each target."""
    made = [Proxy(target) for target in targets]
    try:
        for proxy in made:
            await proxy.start()
        yield made
    finally:
        with contextlib.suppress(Exception):
            await asyncio.gather(*(proxy.stop() for proxy in made))
