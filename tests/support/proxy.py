"""A TCP proxy that can let connections stall, delay them, or cut them: a network between two processes of one machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

_CHUNK = 64 * 1024
_AHEAD = 64


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
        self.accepted = 0
        """Connections so far."""

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

    def strand(self) -> None:
        """The connections there are stall for good, new ones get through: the network has forgotten what it knew of them."""
        self._open.clear()
        # Those that run look at the event they began with.
        self._open = asyncio.Event()
        self._open.set()

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
        self.accepted += 1
        ends, door = [writer], self._open
        try:
            await door.wait()
            there, back = await asyncio.open_connection(*self._target)
            ends.append(back)
            # Whichever direction ends first ends both.
            async with asyncio.TaskGroup() as group:
                for source, sink in ((reader, back), (there, writer)):
                    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_AHEAD)
                    group.create_task(self._read(source, pieces))
                    group.create_task(self._write(sink, pieces, door))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            for end in ends:
                end.transport.abort()
            self._tasks.discard(task)

    async def _read(self, source: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        while piece := await source.read(_CHUNK):
            await pieces.put((loop.time() + self._delay, piece))
        await pieces.put((loop.time() + self._delay, b""))

    async def _write(
        self, sink: asyncio.StreamWriter, pieces: asyncio.Queue[tuple[float, bytes]], door: asyncio.Event
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(max(due - loop.time(), 0))
            await door.wait()
            if not piece:
                raise ConnectionResetError("the other side has closed")
            sink.write(piece)
            await sink.drain()


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
