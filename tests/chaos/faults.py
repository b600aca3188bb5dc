"""What is done to a town while calls are being made. The plan is drawn from the seed; what it meets is not: these are processes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from tests.chaos.broker import move
from tests.chaos.town import Child, Town

Fault = Callable[[Town], Awaitable[str]]


async def kill_broker(town: Town) -> str:
    """SIGKILL at any moment."""
    broker = town.rng.choice(town.brokers)
    if broker.alive:
        town.died(broker)
        broker.kill()
    return broker.name


async def freeze_broker(town: Town) -> str:
    """SIGSTOP for up to eight seconds, longer than a hop may take here."""
    broker = town.rng.choice(town.brokers)
    if broker.alive and not broker.frozen:
        town.froze(broker)
        broker.freeze()
        town.later(town.rng.uniform(0.3, 8.0), broker.thaw)
    return broker.name


async def kill_person(town: Town) -> str:
    """A caller or a callee dies."""
    person = town.rng.choice(town.people)
    if person.alive:
        town.died(person)
        person.kill()
    return person.name


async def freeze_person(town: Town) -> str:
    """A caller or a callee stands still."""
    person = town.rng.choice(town.people)
    if person.alive and not person.frozen:
        town.froze(person)
        person.freeze()
        town.later(town.rng.uniform(0.3, 5.0), person.thaw)
    return person.name


async def _server(town: Town) -> Any:
    """A server: in a cluster the leader of the ledger half of the time, and never one more than a majority can spare."""
    if isinstance(town.servers[0], Child):
        return town.servers[0]
    if any(not one.running or one.frozen for one in town.servers):
        return None
    with contextlib.suppress(Exception):
        async with asyncio.timeout(2):
            leader = await town.cluster.leader("LEDGER")
            if leader is not None and town.rng.random() < 0.5:
                town.counts["fault.leader"] += 1
                return leader
    return town.rng.choice(town.servers)


async def kill_server(town: Town) -> str:
    """A NATS server dies; with it, where it is embedded, its broker."""
    server = await _server(town)
    if server is None or not server.running:
        return ""
    town.died(server)
    await server.kill()
    return str(server.name)


async def freeze_server(town: Town) -> str:
    """A NATS server stands still, its connections open."""
    server = await _server(town)
    if server is None or not server.running:
        return ""
    town.froze(server)
    server.freeze()
    town.later(town.rng.uniform(0.2, 6.0), server.thaw)
    return str(server.name)


async def slow_disk(town: Town) -> str:
    """A stuttering store: a NATS server that is stopped and let go twenty times a second, as one that waits for its disk."""
    server = await _server(town)
    if server is None or not server.running:
        return ""

    async def stutter() -> None:
        try:
            for _ in range(town.rng.randrange(20, 80)):
                server.freeze()
                await asyncio.sleep(0.04)
                server.thaw()
                await asyncio.sleep(0.01)
        finally:
            server.thaw()

    town.later(0, stutter)
    return str(server.name)


async def move_clock(town: Town) -> str:
    """The wall clock of one broker jumps, ahead or back, and is set right after a while."""
    broker = town.rng.choice(town.brokers)
    seconds = town.rng.choice((-3600.0, -30.0, -2.0, 0.7, 2.5, 20.0, 3600.0))
    move(broker.clock, seconds)
    town.later(town.rng.uniform(0.5, 5.0), lambda: move(broker.clock, 0.0))
    return f"{broker.name} {seconds:+g} s"


async def _node(town: Town) -> int:
    """The number of a node: that of the ledger's leader half of the time."""
    server = await _server(town)
    return town.servers.index(server) if server is not None else town.rng.randrange(len(town.servers))


async def partition(town: Town) -> str:
    """Nothing gets through between a broker and its NATS server, or to one server of a cluster, and nobody is told."""
    if town.network is not None:
        net, node = town.network, await _node(town)
        await net.pull(node)
        town.later(town.rng.uniform(1.0, 12.0), lambda: net.plug(node))
        return f"cable of n{node + 1}"
    if not town.proxies:
        return ""
    proxy = town.rng.choice(town.proxies)
    proxy.partition()
    town.later(town.rng.uniform(0.3, 8.0), proxy.heal)
    return proxy.url


async def part_servers(town: Town) -> str:
    """A server of a cluster does not reach one or both of the others, brokers and agents reach all: an old leader is asked."""
    if town.network is None:
        return ""
    net, one = town.network, await _node(town)
    others = [(one + 1) % 3, (one + 2) % 3]
    if town.rng.random() < 0.4:
        others.pop(town.rng.randrange(2))
    for other in others:
        await net.part(one, other)
        town.later(town.rng.uniform(1.0, 12.0), functools.partial(net.join, one, other))
    return f"n{one + 1} from {' and '.join(f'n{other + 1}' for other in others)}"


async def slow_network(town: Town) -> str:
    """Everything between a broker and its NATS server takes its time; of a cluster, everything that goes to one server."""
    if town.network is not None:
        net, node = town.network, await _node(town)
        await net.throttle(node, town.rng.choice((64, 256, 1024)))
        town.later(town.rng.uniform(1.0, 6.0), lambda: net.plug(node))
        return f"cable of n{node + 1}"
    if not town.proxies:
        return ""
    proxy = town.rng.choice(town.proxies)
    proxy.slow(town.rng.uniform(0.02, 0.6))
    town.later(town.rng.uniform(0.5, 5.0), proxy.heal)
    return proxy.url


async def cut_network(town: Town) -> str:
    """Connections between a broker and its NATS server are reset."""
    if not town.proxies:
        return ""
    proxy = town.rng.choice(town.proxies)
    proxy.cut()
    return proxy.url


async def edit_policies(town: Town) -> str:
    """The policies change, at one broker after the other: what was approved under the old ones is of no use any more."""
    text = f"edited {town.rng.getrandbits(32):08x}"
    for broker in town.brokers:
        town.later(town.rng.uniform(0.0, 1.5), functools.partial(broker.edit, text))
    return text


FAULTS: dict[Fault, int] = {
    kill_broker: 5,
    freeze_broker: 4,
    kill_person: 3,
    freeze_person: 2,
    kill_server: 3,
    freeze_server: 3,
    slow_disk: 2,
    move_clock: 3,
    partition: 4,
    part_servers: 3,
    slow_network: 2,
    cut_network: 2,
    edit_policies: 1,
}
"""How often each is chosen, beside the others."""


async def trouble(town: Town, seconds: float, pause: float) -> None:
    """Make faults for a while, one every ``pause`` seconds on average; they overlap."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    town.troubled = True
    names = list(FAULTS)
    while loop.time() < until:
        await asyncio.sleep(min(town.rng.expovariate(1 / pause), max(until - loop.time(), 0)))
        fault = town.rng.choices(names, list(FAULTS.values()))[0]
        if what := await fault(town):
            town.counts[f"fault.{fault.__name__}"] += 1
            town.journal.write("fault", fault=fault.__name__, target=what)
