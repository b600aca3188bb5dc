"""What one long txn costs per hop, and what open txns and idle connections take in memory."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, Final

from remit_broker.bench import peers
from remit_broker.bench.measure import Call, Samples, round_of
from remit_broker.bench.site import Site, caller
from remit_broker.bench.usage import processor_seconds, resident_bytes

LONG: Final = 1000
"""Hops of the long txn: two records each."""
PART: Final = 250
CONNECTIONS: Final = 200
OPEN: Final = 1000
WARM: Final = 20
"""Connections and txns before the first look: what the first ones take is taken once."""


async def long_txn(site: Site, stack: AsyncExitStack, scale: float) -> dict[str, Any]:
    """One txn grown to 2,000 records, one hop after the other: the cost of a hop in its first quarter and in its last."""
    nc, connection = await peers.connect_agent(site.told)
    stack.push_async_callback(nc.close)
    call = await caller(nc, connection, await site.grants(1))
    part = max(20, int(PART * min(scale, 1.0)))
    rounds = [await _part(site, call, part) for _ in range(LONG // PART)]
    first, last = rounds[0], rounds[-1]
    return {
        "records": 1 + 2 * part * len(rounds),
        "p50_us_first": first[0].quantile(0.5),
        "p50_us_last": last[0].quantile(0.5),
        "cpu_us_first": first[1],
        "cpu_us_last": last[1],
    }


async def _part(site: Site, call: Call, hops: int) -> tuple[Samples, float | None]:
    before = processor_seconds(site.brokers)
    samples = await round_of(call, hops, 1)
    after = processor_seconds(site.brokers)
    return samples, None if before is None or after is None else round((after - before) / hops * 1e6, 1)


async def memory(site: Site, stack: AsyncExitStack, scale: float) -> dict[str, Any]:
    """Bytes of resident memory per idle agent connection and per open txn, of the broker and of the NATS server.

    ``site`` is one that has done nothing yet: another has memory to spare from what it did before.
    """
    count, opened = max(10, int(CONNECTIONS * min(scale, 1.0))), max(50, int(OPEN * min(scale, 1.0)))
    found: dict[str, Any] = {"idle_connections": count, "open_txns": opened}
    await _connect(site, stack, WARM)
    await site.grants(WARM)
    before = _resident(site)
    await _connect(site, stack, count)
    between = _resident(site)
    await site.grants(opened)
    after = _resident(site)
    for part in before:
        found[f"{part}_bytes_per_connection"] = _each(before[part], between[part], count)
        found[f"{part}_bytes_per_open_txn"] = _each(between[part], after[part], opened)
    return found


async def _connect(site: Site, stack: AsyncExitStack, count: int) -> None:
    for _ in range(count):
        nc, _connection = await peers.connect_agent(site.told)
        stack.push_async_callback(nc.close)


def _resident(site: Site) -> dict[str, int | None]:
    return {"broker": resident_bytes(site.brokers), "nats_server": resident_bytes(site.servers)}


def _each(before: int | None, after: int | None, count: int) -> int | None:
    return None if before is None or after is None else max(0, (after - before) // count)
