"""What a broker with an index does every second: what was abandoned is closed, and so is what has expired or is idle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from remit_broker.adapters.index_queries import IndexQueries
from remit_broker.adapters.revocations import KvRevocations
from remit_broker.config import LimitsConfig
from remit_broker.core.times import rfc3339
from remit_broker.hop.scan import close_abandoned, close_expired, close_idle, close_orphans
from remit_broker.ports import Ports
from remit_schemas.names import DEFAULT_TENANT

At = TypeVar("At", bound=tuple[Any, ...])
SCAN_SECONDS = 1.0
KEPT_SILENT = 600.0
"""Seconds for which a silent replica is still shown."""


class Upkeep:
    """The scan of one replica. Several scan side by side: the ledger lets each hop be closed once."""

    def __init__(
        self, index: IndexQueries, ports: Callable[[str], Ports], revocations: KvRevocations, limits: LimitsConfig
    ) -> None:
        """``ports`` are those of a tenant."""
        self._index, self._of, self._presence = index, ports, revocations.presence
        self._limits, self._ports = limits, ports(DEFAULT_TENANT)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(SCAN_SECONDS)
            try:
                await self._once()
            except Exception as error:  # whatever one round ends with, the next one begins
                self._ports.observer.fault("scan", error)

    async def _once(self) -> None:
        now = self._ports.clock.now()
        overdue = await self._index.overdue(int(now * 1000), int(self._limits.orphan_grace * 1000))
        for ports, hops in self._by_tenant((late.tenant, late.txn, late.hop) for late in overdue):
            await close_orphans(hops, ports)
        for ports, hops in self._by_tenant(await self._silent()):
            await close_abandoned(hops, self._limits.orphan_grace, ports)
        for ports, txns in self._by_tenant(await self._index.expired_txns(int(now))):
            await close_expired(txns, ports)
        for ports, idle in self._by_tenant(await self._index.idle_txns(rfc3339(now - self._limits.txn_idle))):
            await close_idle(idle, ports)
        mono = self._ports.clock.monotonic()
        self._presence.forget(mono, max(KEPT_SILENT, 2 * self._limits.replica_silence))

    def _by_tenant(self, found: Iterable[At]) -> Iterator[tuple[Ports, list[At]]]:
        """What was found, with the ports of its tenant, which is what ``found`` begins with."""
        by: dict[str, list[At]] = {}
        for one in found:
            by.setdefault(one[0], []).append(one)
        return ((self._of(tenant), those) for tenant, those in by.items())

    async def _silent(self) -> list[tuple[str, str, str]]:
        """The open hops whose replica has been silent for too long. One that was opened since then is nobody's orphan yet."""
        bound, mono = self._limits.replica_silence, self._ports.clock.monotonic()
        before = rfc3339(self._ports.clock.now() - bound)
        return [
            (hop.tenant, hop.txn, hop.hop)
            for hop in await self._index.running_hops(before)
            if self._presence.silence(hop.by, mono) > bound
        ]
