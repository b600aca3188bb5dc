"""One tenant in one broker process: its connection to the bus, its registry, its rates, and its half of the pipeline's world.

What a tenant must not share with another is an object of its own here, so that no stage has to remember to ask whose it is; what
it may share (ledger, policy, keys, clock) is keyed by the tenant of the call, which is the account that the call came through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from remit_broker.adapters.admin_stream import AdminStream
from remit_broker.adapters.limits import callers, targets
from remit_broker.adapters.nats_bus import NatsBus
from remit_broker.adapters.nats_evict import Evictor
from remit_broker.adapters.registry import KvRegistry
from remit_broker.config import Settings, default_rates
from remit_broker.core.revocations import Entry
from remit_broker.edges.attach.servers_file import ServersFileError
from remit_broker.edges.attach.supervisor import ServerSupervisor
from remit_broker.edges.bus import BusEdge
from remit_broker.edges.http.revocations import KillSwitch
from remit_broker.hop.parts import PartsRoom
from remit_broker.operator_ports import Index, RevocationList
from remit_broker.ports import Clock, Ports
from remit_schemas.errors import Code, Refusal, refusal


class Tenant:
    """The parts of one tenant. :meth:`wire` before anything else; :meth:`take_requests` when all is ready."""

    def __init__(
        self, name: str, bus: NatsBus, registry: KvRegistry, revocations: RevocationList, admin: AdminStream
    ) -> None:
        self.name, self.bus, self.registry, self.revocations, self.admin = name, bus, registry, revocations, admin
        self.supervisor: ServerSupervisor | None = None
        self._ports: Ports | None = None

    @property
    def ports(self) -> Ports:
        """What a call that comes through this tenant's account is decided with."""
        if self._ports is None:
            raise RuntimeError("not wired")
        return self._ports

    def wire(self, common: Mapping[str, Any], settings: Settings, clock: Clock) -> None:
        """Give it its ports: ``common`` are those that all tenants share."""
        limits = settings.config.limits
        caller, target = default_rates(limits)
        # INVARIANT: rates and room are a tenant's own (test_one_tenant_cannot_use_up_the_rates_of_another).
        self._ports = Ports(
            **common,
            clock=clock,
            bus=self.bus,
            registry=self.registry,
            revocations=self.revocations,
            rates=callers(clock, caller, settings.rates.caller),
            target_rates=targets(clock, target, settings.rates.target),
            room=PartsRoom(limits.result_bytes),
        )

    def evict_by(self, evict: Evictor) -> None:
        """Have connections of this tenant's principals ended by ``evict``."""
        # INVARIANT: a name that is removed or given another key keeps no connection of the old one
        # (test_whoever_holds_the_old_key_of_a_name_is_nobody_under_the_new_one).
        self.registry.evict = evict

    def cut_off(self, entry: Entry) -> list[str]:
        """Whose connections a revocation ends, as long as it is in force."""
        if entry.kind == "agent":
            return [entry.name] if self.ports.revocations.check((entry.name,), "") else []
        if not self.ports.revocations.tenant(entry.name):
            return []
        return [principal.name for principal in self.registry.principals()]

    async def withdraw(self, txn: str) -> None:
        """End the hops of this process below a grant that was revoked; the ledger says which they are."""
        try:
            fold = await self.ports.ledger.newest(self.name, txn)
        except Refusal as error:
            self.ports.observer.fault("withdraw", error)
            return
        for hop, queue in self.bus.running(txn):
            if fold.is_revoked(hop):
                queue.withdraw("the grant or one above it was revoked", "grant.revoked")

    async def take_requests(self, edge: BusEdge) -> None:
        """From now on calls of this tenant's agents are governed."""
        self.bus.on_input, self.bus.on_unwanted = edge.on_input, edge.on_unwanted
        await edge.start()

    async def run_servers(self, settings: Settings) -> Callable[[], Awaitable[None]]:
        """Run what its servers file says; what ends them. Raises :class:`ServersFileError`."""
        folder = settings.credentials_of(self.name)
        self.supervisor = ServerSupervisor(
            settings.servers_file_of(self.name), lambda server: folder / f"{server}.json"
        )
        await self.supervisor.start()
        return self.supervisor.stop

    def kill(self, index: Index) -> KillSwitch:
        """What operators stop and let go on here."""
        return KillSwitch(self.name, self.revocations, self.admin, self.registry, index, self.ports.clock)

    def servers(self) -> list[dict[str, Any]]:
        """The servers the broker runs itself, and how they are."""
        return [dataclasses.asdict(state) for state in self.supervisor.states()] if self.supervisor else []

    async def reload_servers(self) -> None:
        """Run what the servers file says now. Refuses MALFORMED, and then nothing changes."""
        if self.supervisor is None:
            raise RuntimeError("servers are run where the HTTP edge is")
        try:
            await self.supervisor.reload()
        except ServersFileError as bad:
            raise refusal(Code.MALFORMED, str(bad), rule="servers.file", ask="mend the file, then try again") from None


def without_tenant(ports: Ports, registry: KvRegistry) -> Ports:
    """What the scan closes the tasks of a removed tenant with: nobody of another tenant is taken for somebody of that one."""
    return msgspec.structs.replace(ports, registry=registry)
