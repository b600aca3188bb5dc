"""A running broker for tests: the real thing in this process, on a real NATS server, in a folder of its own.

``async with running_broker(folder) as lab`` and the pytest fixture built on it give the broker, registered agents with
valid credentials, root grants, and the records of what happened.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from remit_broker.app import Broker
from remit_broker.config import settings
from remit_broker.core.registry import Principal
from remit_broker.credentials import credentials_file
from remit_broker.hop.txn import Delegation, Opened, open_txn
from remit_broker.starter import write_policies
from remit_schemas.budget import Budget, parse_budget
from remit_schemas.claims import ANY_LABEL
from remit_schemas.names import DEFAULT_TENANT, Kind
from remit_schemas.scope import Scope, parse_scope


def seed_name(name: str, tenant: str) -> str:
    """By what :attr:`Lab.seeds` has the seed of a principal."""
    return name if tenant == DEFAULT_TENANT else f"{tenant}/{name}"


class Lab:
    """A running broker and what a test does with it."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker = broker
        self.folder = folder
        self.seeds: dict[str, str] = {}

    @property
    def url(self) -> str:
        """The bus."""
        return self.broker.bus

    async def agent(
        self, name: str, tier: str = "standard", kind: Kind = "agent", tenant: str = DEFAULT_TENANT
    ) -> Path:
        """Register an agent or server; the path of its credentials file."""
        known = {"bus": self.url, **self.broker.published()}
        folder = self.folder / "credentials" / ("" if tenant == DEFAULT_TENANT else tenant)
        path, public = credentials_file(folder, name, kind, known, tenant)
        seed = json.loads(path.read_text(encoding="utf-8"))["nkey_seed"]
        self.seeds[seed_name(name, tenant)] = seed
        principal = Principal(name=name, kind=kind, nkey=public, tier=tier, tenant=tenant)
        await self.broker.registries.of(tenant).add(principal)
        return path

    async def grant(
        self,
        to: str,
        *scopes: str,
        user: str = "ann",
        budget: str | Budget = "usd=1,tokens=100000,calls=100",
        ttl: int = 600,
        max_depth: int = 8,
        roles: Sequence[str] = (),
        groups: Sequence[str] = (),
        labels: Sequence[str] = (ANY_LABEL,),
        tenant: str = DEFAULT_TENANT,
    ) -> Opened:
        """Open a txn for ``user`` and give ``to`` its root grant."""
        amount = parse_budget(budget) if isinstance(budget, str) else budget
        return await open_txn(
            Delegation(
                tenant=tenant,
                user=user,
                agent=to,
                scope=Scope.of(parse_scope(text) for text in scopes),
                budget=amount,
                ttl=ttl,
                auth="test",
                max_depth=max_depth,
                roles=tuple(roles),
                groups=tuple(groups),
                labels=tuple(labels),
            ),
            self.broker.ports_of(tenant),
        )

    async def records(self, txn: str, tenant: str = DEFAULT_TENANT) -> list[dict[str, Any]]:
        """The records of a txn in order, as the index has them after everything written so far."""
        await self.broker.caught_up()
        return [entry["record"] for entry in await self.broker.index.chain(tenant, txn)]

    async def refusals(self, txn: str, tenant: str = DEFAULT_TENANT) -> list[dict[str, Any]]:
        """The calls refused under a txn."""
        await self.broker.caught_up()
        return await self.broker.index.refusals(tenant, txn)


@asynccontextmanager
async def running_broker(
    folder: Path, config: Mapping[str, Any] | None = None, policies: Sequence[tuple[str, str]] = ()
) -> AsyncIterator[Lab]:
    """A broker on ``folder``, stopped at the end. ``policies`` are ``(file name, Cedar text)``; none: the starter's."""
    write_policies(folder / "policies", policies)
    raw: dict[str, Any] = {"http": {"port": 0}, **(config or {})}
    async with Broker(settings(folder / "remit.toml", raw)) as broker:
        yield Lab(broker, folder)
