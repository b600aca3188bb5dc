"""What the NATS servers say: versions, accounts, streams, the callout, and the time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final

from remit_broker.adapters.errors import ConfigError, ServiceError
from remit_broker.adapters.jetstream import ApiError, JetStream, Unreachable
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_checks import probe, require_servers, server_id
from remit_broker.adapters.nats_connect import Connections, connect_all
from remit_broker.adapters.nats_system import ask_one
from remit_broker.cli.doctor.finding import Finding, note, ok, unknown, wrong
from remit_broker.config import Settings

SKEW: Final = 1.0
"""Seconds two clocks may differ."""
LAG: Final = 1000
"""Entries of a stream that a peer may be behind."""
NEEDED: Final = ("LEDGER", "REFUSALS", "KV_registry", "KV_revocations", "KV_agreement")


async def look(settings: Settings, url: str) -> AsyncIterator[Finding]:
    """Everything that can be asked with the broker's keys."""
    try:
        keys = KeyFiles.open(settings.data)
        nats = await connect_all(url, keys, tenants=settings.others)
    except ServiceError as gone:
        yield Finding("bus", "unknown", gone.message, gone.ask)
        return
    except ConfigError as bad:
        yield wrong("bus", bad.message, bad.ask)
        return
    try:
        async for found in _asked(settings, url, keys, nats):
            yield found
    finally:
        for connection in nats:
            with contextlib.suppress(Exception):
                await connection.close()


async def _asked(settings: Settings, url: str, keys: KeyFiles, nats: Connections) -> AsyncIterator[Finding]:
    try:
        servers = await require_servers(nats, settings.config.bus.replicas)
    except ServiceError as gone:
        yield wrong("bus", gone.message, gone.ask)
    except ConfigError as bad:
        yield wrong("bus", bad.message, bad.ask)
    else:
        listed = ", ".join(f"{name} {version}" for name, version in sorted(servers.versions.items()))
        yield ok("bus", f"{url}: {listed}")
        yield _sync(settings, servers.jetstream)
        if servers.size > 1 and len(servers.versions) < servers.size:
            yield wrong("cluster", f"{len(servers.versions)} of {servers.size} servers answer", "start the others")
    yield await _clock(nats)
    for found in await _streams(settings, nats):
        yield found
    yield await _callout(url, keys)


def _sync(settings: Settings, jetstream: dict[str, Any]) -> Finding:
    if jetstream.get("config", {}).get("sync_always") or settings.config.bus.replicas >= 3:
        return ok("durability", "an acknowledged record survives the loss of power of one machine")
    return note(
        "durability", "one replica that does not sync each record: a power cut loses acknowledged records",
        'set bus.sync = "always" (embedded), `sync_interval: always` in its jetstream block (external), or three replicas',
    )  # fmt: skip


async def _clock(nats: Connections) -> Finding:
    try:
        before = time.time()
        told = await ask_one(nats.sys, server_id(nats.sys), "VARZ")
        after = time.time()
        theirs = datetime.fromisoformat(told["now"][:26].rstrip("Z") + "+00:00").timestamp()
    except Exception as error:
        return unknown("clock", f"the server does not say what time it has: {error!r}")
    skew = max(before - theirs, theirs - after, 0.0)
    if skew > SKEW:
        return wrong("clock", f"this machine and the NATS server differ by {skew:.1f} s", "run a time service on both")
    return ok("clock", f"as the NATS server's, within {max(skew, after - before):.3f} s")


async def _streams(settings: Settings, nats: Connections) -> list[Finding]:
    js = JetStream(nats.core)
    try:
        listed: list[dict[str, Any]] = (await js.api("STREAM.LIST")).get("streams") or []
    except (Unreachable, ApiError) as error:
        return [
            wrong("streams", f"JetStream does not say which there are: {error}", "see that most of its servers run")
        ]
    found, wanted = [], settings.config.bus.replicas
    by_name = {stream["config"]["name"]: stream for stream in listed}
    if missing := [name for name in NEEDED if name not in by_name]:
        found.append(note("streams", f"not there yet: {', '.join(missing)}", "the first broker to start makes them"))
    for name, stream in sorted(by_name.items()):
        peers = (group := stream.get("cluster") or {}).get("replicas") or ()
        have = stream["config"]["num_replicas"]
        behind = [peer["name"] for peer in peers if not peer.get("current") or peer.get("lag", 0) > LAG]
        if have != wanted:
            ask = f"nats stream edit {name} --replicas {wanted}, or set bus.replicas = {have}"
            found.append(wrong("streams", f"{name} has {have} replicas, bus.replicas is {wanted}", ask))
        elif group and not group.get("leader"):
            found.append(wrong("streams", f"{name} has no leader", "start more of its servers: most of them must run"))
        elif behind:
            found.append(
                note("streams", f"{name}: {', '.join(behind)} is behind", "see that it runs; it catches up by itself")
            )
    ledger = by_name.get("LEDGER")
    if ledger is not None:
        limit, size = settings.config.bus.ledger_bytes, ledger["state"]["bytes"]
        if limit and size >= 0.9 * limit:
            found.append(
                wrong("ledger", f"{size} of {limit} bytes are used: nothing new is opened", "raise bus.ledger_bytes")
            )
    return found or [
        ok("streams", f"{len(listed)}, each with {wanted} replica{'s' if wanted > 1 else ''} and a leader")
    ]


async def _callout(url: str, keys: KeyFiles) -> Finding:
    loop = asyncio.get_running_loop()
    began = loop.time()
    said = await probe(url, keys)
    took = loop.time() - began
    if said is not None:
        return wrong("callout", f"agents cannot connect: {said}", "start a broker, or `remit callout`, with these keys")
    if took > 1.0:
        return note(
            "callout",
            f"it took {took:.1f} s to be let in",
            "one of those who answer may be frozen: the server waits for 2 s",
        )
    return ok("callout", f"lets in whom it should, in {took * 1000:.0f} ms")
