"""What is revoked ends where it runs: hops of this replica are withdrawn, connections of an agent cut."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from nats.aio.client import Client

from remit_broker.adapters.kick import Cutter
from remit_broker.adapters.nats_evict import Evictor
from remit_broker.adapters.revocations import KvRevocations
from remit_broker.core.revocations import Entry
from remit_broker.tenants import Tenant
from remit_schemas.names import Jti


def enforce(
    revocations: KvRevocations, tenants: Mapping[str, Tenant], cutter: Cutter, sys: Client, *, clustered: bool
) -> None:
    """From now on what ``revocations`` hears is done here. ``sys`` is a connection in the system account."""
    for tenant in tenants.values():
        evict = Evictor(sys, clustered=clustered, tenant=tenant.name)
        tenant.evict_by(evict)
        revocations.on_entry(functools.partial(_heard, tenant, cutter, evict))
        tenant.bus.on_suspect = functools.partial(_suspect, tenant, cutter)

    def grant(name: str, jti: Jti) -> None:
        if (tenant := tenants.get(name)) is not None:
            tenant.bus.suspect(jti.txn)

    revocations.on_grant = grant


def _heard(tenant: Tenant, cutter: Cutter, evict: Evictor, entry: Entry) -> None:
    if entry.kind != "all" and entry.tenant != tenant.name:
        return
    tenant.bus.withdraw(entry)
    if entry.state == "revoked" and entry.kind in ("agent", "tenant"):
        cutter.cut(evict, lambda: tenant.cut_off(entry))


def _suspect(tenant: Tenant, cutter: Cutter, txn: str) -> None:
    cutter.begin(tenant.withdraw(txn))
