"""Connections without sockets: two ordered streams of bytes that take time, can be cut, and lose what was under way.

``loop.create_connection`` ends here, so that whatever client library runs on asyncio's transports runs unchanged.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from tests.simulation.loop import PROCESS, Process, SimulatedLoop


class Remote(Protocol):
    """The server's side of one connection."""

    def received(self, data: bytes) -> None:
        """Bytes from the client."""

    def lost(self) -> None:
        """The connection has ended."""


Accept = Callable[["Wire"], Remote | None]
"""What a server makes of a new connection; None: it refuses it."""


class Network:
    """Who can be dialled, and how long messages take. ``latency`` is the mean of one way, in seconds."""

    def __init__(self, loop: SimulatedLoop, rng: random.Random, latency: float = 0.0003) -> None:
        self.loop, self.rng, self.latency = loop, rng, latency
        self.hosts: dict[str, Accept] = {}
        self.wires: list[Wire] = []
        self.saying = 0
        """What the server lets its client know with what it sends at this moment: a sequence of the ledger, or 0."""
        self.heard: Callable[[Process | None, int], None] = lambda process, seq: None
        """Told when that has arrived."""
        self.severed: set[str] = set()
        """Hosts of processes that are cut off: bytes wait, as in a partition, until it heals."""
        loop.dial = self.dial

    def delay(self) -> float:
        """How long the next bytes take."""
        seconds = self.rng.expovariate(1.0) * self.latency
        return seconds if self.rng.random() > 0.002 else seconds + self.rng.random() * 0.2

    async def dial(self, factory: Callable[[], Any], host: str, port: int) -> tuple[asyncio.Transport, Any]:
        """Connect, or raise ConnectionRefusedError."""
        await asyncio.sleep(self.delay())
        accept = self.hosts.get(host)
        process = PROCESS.get()
        if accept is None or (process is not None and process.host in self.severed):
            raise ConnectionRefusedError(111, f"nobody listens at {host}")
        wire = Wire(self, process)
        remote = accept(wire)
        if remote is None:
            raise ConnectionRefusedError(111, f"{host} lets nobody in")
        protocol = factory()
        wire.join(remote, protocol)
        return wire.transport, protocol


class Wire:
    """One connection. The client's end is :attr:`transport`; the server uses :meth:`send` and :meth:`cut`."""

    def __init__(self, network: Network, process: Process | None) -> None:
        self.network, self.process = network, process
        self.transport = SimTransport(self)
        self._loop = network.loop
        self._remote: Remote | None = None
        self.protocol: Any = None
        self._context = contextvars.copy_context()
        self._up_at = self._down_at = 0.0
        self._up: deque[bytes] = deque()
        self._down: deque[tuple[bytes, int]] = deque()
        self._held: list[tuple[bool, bytes, int]] = []
        self.open = True
        self._told_remote = self._told_client = False
        if process is not None:
            process.kept.append(self)
            process.at_death.append(self.died)

    def join(self, remote: Remote, protocol: Any) -> None:
        """Both ends are there."""
        self._remote, self.protocol = remote, protocol
        self.network.wires.append(self)
        protocol.connection_made(self.transport)

    @property
    def severed(self) -> bool:
        """Whether nothing comes through at present."""
        return self.process is not None and self.process.host in self.network.severed

    def write(self, data: bytes) -> None:
        """From the client."""
        if not self.open or (self.process is not None and not self.process.alive):
            return
        if self.severed:
            self._held.append((True, data, 0))
            return
        self._up_at = max(self._up_at, self._loop.now + self.network.delay())
        self._up.append(data)
        self._loop.call_at(self._up_at, self._arrive, context=SERVER)

    def send(self, data: bytes) -> None:
        """From the server."""
        if not self.open:
            return
        if self.severed:
            self._held.append((False, data, self.network.saying))
            return
        self._down_at = max(self._down_at, self._loop.now + self.network.delay())
        self._down.append((data, self.network.saying))
        self._loop.call_at(self._down_at, self._deliver, context=self._context)

    def heal(self) -> None:
        """What waited while the connection was severed goes on its way."""
        held, self._held = self._held, []
        for up, data, saying in held:
            self.network.saying = saying
            (self.write if up else self.send)(data)
        self.network.saying = 0

    def _arrive(self) -> None:
        # Whichever callback comes first takes the first bytes: a stream is never out of order.
        data = self._up.popleft()
        if not self._told_remote and self._remote is not None:
            self._remote.received(data)

    def _deliver(self) -> None:
        data, said = self._down.popleft()
        if self.open:
            if said:
                self.network.heard(self.process, said)
            self.protocol.data_received(data)

    def close(self) -> None:
        """The client closes: what it has written still arrives."""
        if self.open:
            self.open = False
            self._forget()
            self._up_at = max(self._up_at, self._loop.now + self.network.delay())
            self._loop.call_at(self._up_at, self._end_remote, context=SERVER)
            self._loop.call_soon(self._end_client, None, context=self._context)

    def cut(self) -> None:
        """The server's end is gone: what was under way in either direction is lost."""
        if self.open:
            self.open = False
            self._forget()
            self._end_remote()
            self._loop.call_later(self.network.delay(), self._end_client, None, context=self._context)

    def died(self) -> None:
        """The client's process died: of what it has written a part may still arrive, nothing is delivered any more."""
        if self.open:
            self.open = False
            self._forget()
            at = (
                max(self._up_at, self._loop.now + self.network.delay())
                if self.network.rng.random() < 0.5
                else self._loop.now
            )
            self._loop.call_at(at, self._end_remote, context=SERVER)

    def _forget(self) -> None:
        if self in self.network.wires:
            self.network.wires.remove(self)

    def _end_remote(self) -> None:
        if not self._told_remote:
            self._told_remote = True
            if self._remote is not None:
                self._remote.lost()

    def _end_client(self, error: Exception | None) -> None:
        if not self._told_client:
            self._told_client = True
            if error is None:
                self.protocol.eof_received()
            self.protocol.connection_lost(error)


class SimTransport(asyncio.Transport):
    """What asyncio's streams and protocols expect of a connection."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire
        self._closing = False

    def write(self, data: Any) -> None:
        if not self._closing:
            self._wire.write(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self._closing = True
        self._wire.close()

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing or not self._wire.open

    def get_protocol(self) -> Any:
        return self._wire.protocol

    def set_protocol(self, protocol: Any) -> None:
        self._wire.protocol = protocol

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        raise NotImplementedError

    def resume_reading(self) -> None:
        raise NotImplementedError

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


SERVER = contextvars.Context()
"""Where servers live: in no process that could die with a client."""
