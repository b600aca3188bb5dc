"""Who answers for the auth callout: a broker beside its other work, or a process that does nothing else.

On its own it needs the keys, the registry and the revocations, and neither ledger nor index. Two or more share the questions of the
NATS servers by queue group, so that a broker can be stopped, started or upgraded without anybody being kept from connecting.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
from contextlib import AsyncExitStack
from typing import Any

from nats.aio.client import Client

from remit_broker import __version__
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_checks import require_callout, require_servers
from remit_broker.adapters.nats_connect import Connections, connect_all
from remit_broker.adapters.nats_presence import Connected
from remit_broker.adapters.registries import Registries
from remit_broker.adapters.registry import KvRegistry
from remit_broker.adapters.revocations import KvRevocations
from remit_broker.adapters.world import SystemClock
from remit_broker.config import BusConfig, Settings
from remit_broker.core import callout_probe
from remit_broker.edges.callout import Admitted, Callout, CalloutKeys

log = logging.getLogger("remit")


async def answer_callout(nc: Client, keys: KeyFiles, admitted: Admitted, bus: BusConfig, url: str) -> Callout:
    """Begin to answer; with an external server, see that it asks and takes the answer. Raises :class:`ConfigError`."""
    told: dict[str, str] = {}

    def tell(who: str, why: str) -> None:
        told[who] = why
        _log(who, why)

    seeds = CalloutKeys(issuer=keys.seed("issuer"), xkey=keys.seed("xkey"))
    callout = Callout(nc, seeds, admitted, SystemClock(), tell, bus.connection_ttl)
    await callout.start()
    if bus.url:
        try:
            await require_callout(url, keys, lambda: told.get(callout_probe.NAME, told.get("")))
        except BaseException:
            await callout.stop()
            raise
    callout.told = _log
    return callout


def _log(who: str, why: str) -> None:
    log.info("bus: %s", f"{who or 'somebody'} is refused: {why}" if why else f"{who} connects")


class Gate:
    """A callout without a broker, on the bus at ``url``. ``async with`` it."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._settings, self._url = settings, url
        self.name = f"callout-{secrets.token_hex(4)}"
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Gate:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        bus = self._settings.config.bus
        keys = KeyFiles.open(self._settings.data)
        nats = await connect_all(self._url, keys, self._bus_error, self._settings.others)
        self._stack.push_async_callback(_close, nats)
        if bus.url:
            await require_servers(nats, bus.replicas)
        js = nats.core.jetstream()
        registry = Registries(KvRegistry({}, tenant=tenant) for tenant in self._settings.tenants)
        await registry.start(js, bus.replicas, _fault)
        self._stack.push_async_callback(registry.stop)
        revocations = KvRevocations(SystemClock(), _fault, self.name)
        revocations.about = self._about
        self._stack.push_async_callback(revocations.stop)
        await revocations.start(js, bus.replicas)
        most = self._settings.config.limits.connections_per_agent
        connected = Connected(nats.sys, most, SystemClock(), clustered=bool(bus.url), tenants=self._settings.tenants)
        await connected.start(_fault)
        self._stack.push_async_callback(connected.stop)
        callout = await answer_callout(nats.auth, keys, Admitted(registry, revocations, connected), bus, self._url)
        self._stack.push_async_callback(callout.stop)

    def _about(self) -> dict[str, Any]:
        return {"role": "callout", "host": socket.gethostname(), "pid": os.getpid(), "version": __version__}

    def _bus_error(self, name: str, error: Exception) -> None:
        log.warning("%s: %s", name, error)


async def _close(connections: Connections) -> None:
    for connection in connections:
        with contextlib.suppress(Exception):
            await connection.close()


def _fault(where: str, error: BaseException) -> None:
    log.error("fault in %s: %r", where, error)
