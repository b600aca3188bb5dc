"""The run: servers and peers as processes of their own, the ways interleaved round by round, one table at the end."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import nats
from nats.aio.client import Client

from remit_broker.adapters.nats_server import find_binary
from remit_broker.bench import peers
from remit_broker.bench.growth import long_txn, memory
from remit_broker.bench.measure import Call, Samples, round_of
from remit_broker.bench.site import PAYLOAD, TXNS, Patient, Site, caller, peer, site
from remit_broker.bench.usage import processor_seconds
from remit_schemas.envelope import Request, encode

ROUNDS: Final = ((1, 400), (32, 2400), (256, 3200))
"""In flight, and calls of one round at scale 1."""
Depths = Sequence[tuple[int, int]]
LATENCIES: Final = 2
"""At so many depths latency is reported; beyond, it is that of a queue."""
SLOW: Final = frozenset({"governed_fsync"})
"""Ways whose rounds have half the calls."""

Say = Callable[[str], None]


class Way(NamedTuple):
    """One way to make a call; ``middle`` are the processes between caller and callee."""

    call: Call
    middle: Sequence[int] = ()


class Measured:
    """The rounds of one way at one depth: latencies, and the processor time that its middle used."""

    def __init__(self) -> None:
        self.samples = Samples()
        self.seconds = 0.0

    async def round(self, way: Way, calls: int, depth: int) -> None:
        """One more."""
        before = processor_seconds(way.middle)
        self.samples.add(await round_of(way.call, calls, depth))
        after = processor_seconds(way.middle)
        if before is not None and after is not None:
            self.seconds += after - before

    @property
    def cpu_us(self) -> float | None:
        """Microseconds of the middle's processor time per call; None where there is no middle, or the system does not say."""
        return round(self.seconds / len(self.samples.nanos) * 1e6, 1) if self.seconds else None


async def bench(rounds: int, scale: float, say: Say, profile: Path | None = None) -> dict[str, Any]:
    """Measure everything. ``scale`` says how many calls a round has.

    With ``profile`` only one governed way is measured, with the broker under a profiler that writes its findings there.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remit-bench-")))
        setup: dict[str, Any] = {}
        if profile is not None:
            say("starting a broker under the profiler")
            ways = {"governed": (await _governed(stack, folder / "governed", "default", setup, profile=profile))[0]}
            found = await interleaved(ways, rounds, scale, say)
        else:
            ways = await _plain(stack, folder, say)
            say("starting a broker on a NATS server with its default sync")
            ways["governed"], first = await _governed(stack, folder / "governed", "default", setup)
            say("starting a broker whose every record waits for the disk")
            ways["governed_fsync"], _ = await _governed(stack, folder / "governed_fsync", "always", setup)
            say("starting a broker of two processes")
            ways["governed_two"], _ = await _governed(stack, folder / "governed_two", "default", setup, replicas=2)
            found = await interleaved(ways, rounds, scale, say)
            say("growing one txn")
            found["long_txn"] = await long_txn(first, stack, scale)
            say("opening txns and connections")
            fresh = await stack.enter_async_context(site(folder / "memory", "default"))
            found["memory"] = await memory(fresh, stack, scale)
        return {**found, "setup": {**setup, **machine(), "rounds": rounds, "payload_bytes": len(encode(PAYLOAD))}}


async def interleaved(
    ways: dict[str, Way], rounds: int, scale: float, say: Say, depths: Depths = ROUNDS, slow: frozenset[str] = SLOW
) -> dict[str, Any]:
    """Every way in every round, so that what else the machine does hits all of them alike."""
    measured = {(name, depth): Measured() for name in ways for depth, _ in depths}
    for name, way in ways.items():
        say(f"warming up {name}")
        await round_of(way.call, int(600 * scale), 16)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for depth, count in depths:
            for name, way in ways.items():
                size = count // 2 if name in slow else count
                await measured[name, depth].round(way, max(depth, int(size * scale)), depth)
    found = {name: _figures(measured, name, depths) for name in ways}
    for name, way in ways.items():
        if isinstance(way.call, Patient):
            found[name]["refused"] = way.call.refused
    return found


def _figures(measured: dict[tuple[str, int], Measured], name: str, depths: Depths) -> dict[str, float | None]:
    """Latencies at the first depths, and the rate and the processor time of a call at each; rates say nothing with 1 in flight."""
    found: dict[str, float | None] = {}
    for number, (depth, _) in enumerate(depths):
        one = measured[name, depth]
        if number < LATENCIES:
            found |= {f"p50_us_{depth}": one.samples.quantile(0.5), f"p99_us_{depth}": one.samples.quantile(0.99)}
        if depth > 1:
            found[f"ops_{depth}"] = one.samples.rate
        found[f"cpu_us_{depth}"] = one.cpu_us
    return found


def machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}


async def _plain(stack: AsyncExitStack, folder: Path, say: Say) -> dict[str, Way]:
    say("starting a plain NATS server, an echo and a relay")
    plain = await stack.enter_async_context(_plain_server(folder))
    await stack.enter_async_context(peer("echo", plain))
    relay = await stack.enter_async_context(peer("relay", plain))
    nc = await nats.connect(plain)
    stack.push_async_callback(nc.close)
    return {"direct": Way(_plain_call(nc, peers.ECHO)), "relay": Way(_plain_call(nc, peers.RELAY), (relay,))}


def _plain_call(nc: Client, subject: str) -> Call:
    data = encode(Request(args=PAYLOAD))

    async def call(_: int) -> None:
        await nc.request(subject, data, timeout=30)

    return call


@asynccontextmanager
async def _plain_server(folder: Path) -> AsyncIterator[str]:
    """The same binary without accounts or JetStream: what a direct call costs on this machine."""
    ports = folder / "plain"
    ports.mkdir()
    process = await asyncio.create_subprocess_exec(
        str(find_binary()), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(ports),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(10):
            while not (found := list(ports.glob("*.ports"))) or not found[0].stat().st_size:
                await asyncio.sleep(0.02)
        yield json.loads(found[0].read_text(encoding="utf-8"))["nats"][0]
    finally:
        process.terminate()
        await process.wait()


async def _governed(
    stack: AsyncExitStack, folder: Path, sync: str, setup: dict[str, Any], *, replicas: int = 1,
    profile: Path | None = None,
) -> tuple[Way, Site]:  # fmt: skip
    """A broker with a callee, and calls under :data:`TXNS` open txns."""
    place = await stack.enter_async_context(site(folder, sync, replicas=replicas, profile=profile))
    nc, connection = await peers.connect_agent(place.told)
    stack.push_async_callback(nc.close)
    call = Patient(await caller(nc, connection, await place.grants(TXNS)))
    setup[folder.name] = await place.status()
    return Way(call, place.brokers), place
