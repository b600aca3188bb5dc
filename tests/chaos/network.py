"""A network of its own for each NATS server: namespaces of the kernel, joined by a bridge, whose cables can be pulled.

Only root can make them. What is done to a cable the two ends are not told: connections stay open and fall silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.cluster import Place

POSSIBLE = os.geteuid() == 0
"""Whether this machine lets us; elsewhere servers are on loopback, and only the network of brokers can be cut."""


async def _ip(*words: str, program: str = "ip") -> None:
    process = await asyncio.create_subprocess_exec(
        program, *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    if process.returncode:
        raise OSError(f"{program} {' '.join(words)}: {said.decode().strip()}")


class Network:
    """``places`` are where nodes can be. A cable is named by the number of its node, from 0."""

    def __init__(self, size: int) -> None:
        self._id = secrets.token_hex(3)
        self._net = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(250)}"
        self._bridge = f"rb{self._id}"
        self._names = [f"r{self._id}n{number}" for number in range(size)]
        self.places = [
            Place(f"{self._net}.{number + 1}", ("ip", "netns", "exec", name)) for number, name in enumerate(self._names)
        ]

    async def make(self) -> None:
        """Everything, whole."""
        await _ip("link", "add", self._bridge, "type", "bridge")
        await _ip("addr", "add", f"{self._net}.254/24", "dev", self._bridge)
        await _ip("link", "set", self._bridge, "up")
        for name, place in zip(self._names, self.places, strict=True):
            await _ip("netns", "add", name)
            await _ip("link", "add", f"{name}h", "type", "veth", "peer", "name", f"{name}g")
            await _ip("link", "set", f"{name}h", "master", self._bridge)
            await _ip("link", "set", f"{name}g", "netns", name)
            await _ip("netns", "exec", name, "ip", "addr", "add", f"{place.host}/24", "dev", f"{name}g")
            for device in ("lo", f"{name}g"):
                await _ip("netns", "exec", name, "ip", "link", "set", device, "up")
            await _ip("link", "set", f"{name}h", "up")

    async def remove(self) -> None:
        """Everything, as far as it is there."""
        for name in self._names:
            with contextlib.suppress(OSError):
                await _ip("link", "del", f"{name}h")
            with contextlib.suppress(OSError):
                await _ip("netns", "del", name)
        with contextlib.suppress(OSError):
            await _ip("link", "del", self._bridge)

    async def pull(self, node: int) -> None:
        """Nothing reaches a node, nor leaves it."""
        await _ip("link", "set", f"{self._names[node]}h", "down")

    async def plug(self, node: int) -> None:
        """Its cable is in again, and as fast as before."""
        await _ip("link", "set", f"{self._names[node]}h", "up")
        with contextlib.suppress(OSError):
            await _ip("qdisc", "del", "dev", f"{self._names[node]}h", "root", program="tc")

    async def part(self, one: int, other: int) -> None:
        """Two nodes do not reach each other; everybody else reaches both."""
        for here, there in ((one, other), (other, one)):
            with contextlib.suppress(OSError):
                await self._route("add", here, there)

    async def join(self, one: int, other: int) -> None:
        """They do again."""
        for here, there in ((one, other), (other, one)):
            with contextlib.suppress(OSError):
                await self._route("del", here, there)

    async def _route(self, what: str, here: int, there: int) -> None:
        inside = ("netns", "exec", self._names[here], "ip", "route")
        await _ip(*inside, what, "blackhole", f"{self.places[there].host}/32")

    async def throttle(self, node: int, kilobits: int) -> None:
        """What goes to a node goes slowly."""
        rate = ("rate", f"{kilobits}kbit", "burst", "16k", "latency", "400ms")
        with contextlib.suppress(OSError):
            await _ip("qdisc", "add", "dev", f"{self._names[node]}h", "root", "tbf", *rate, program="tc")

    async def heal(self) -> None:
        """All cables are in, and everybody reaches everybody."""
        for node in range(len(self.places)):
            await self.plug(node)
            for other in range(node):
                await self.join(node, other)


@asynccontextmanager
async def network(size: int) -> AsyncIterator[Network]:
    """A network for ``size`` nodes, gone afterwards."""
    made = Network(size)
    try:
        await made.make()
        yield made
    finally:
        await made.remove()
