"""Which tenant a request of the API is for: the one thing that every handler is given, so that none has to find it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from starlette.requests import Request

from remit_broker.core.near import meant
from remit_broker.edges.http.log import LogDesk
from remit_broker.edges.http.operators import Caller, elsewhere
from remit_broker.edges.http.policy import PolicyDesk
from remit_broker.edges.http.revocations import KillSwitch
from remit_broker.edges.http.secrets import Connects, Vault
from remit_broker.edges.http.vault import VaultDesk
from remit_broker.operator_ports import AdminLog, Directory
from remit_broker.ports import Ports
from remit_schemas.errors import Code, refusal
from remit_schemas.names import DEFAULT_TENANT

PARAMETER: Final = "tenant"
"""The query parameter that names a tenant, on every route; without it the caller's own is meant, else the default one."""


class Servers(Protocol):
    """The MCP servers that the broker runs itself for a tenant."""

    def servers(self) -> list[dict[str, Any]]:
        """Each, and how it is."""

    async def reload_servers(self) -> None:
        """Run what the file says now. Refuses MALFORMED, and then nothing changes."""


@dataclass(frozen=True)
class Desk:
    """What is done for one tenant, and with what."""

    tenant: str
    ports: Ports
    directory: Directory
    kill: KillSwitch
    servers: Servers
    policy: PolicyDesk
    log: LogDesk
    secrets: Vault
    connects: Connects
    vault: VaultDesk
    admin: AdminLog
    traced: frozenset[str] = frozenset()
    """The MCP servers that are told the trace of each call."""


@dataclass(frozen=True)
class Call:
    """One request: who makes it, whether for every tenant or one, and the desk it is for."""

    caller: Caller
    desk: Desk

    @property
    def who(self) -> str:
        """The caller, for the record."""
        return self.caller.who

    @property
    def tenant(self) -> str:
        """The tenant it is for."""
        return self.desk.tenant


def desk_for(desks: Mapping[str, Desk], request: Request, caller: Caller) -> Desk:
    """The desk a request is for. Refuses UNKNOWN_TARGET for a tenant that is not there, and for another one than the caller's;
    UNAUTHENTICATED for a caller of a tenant that this broker does not serve.

    INVARIANT: whoever belongs to one tenant reaches no other, nor learns whether there is one
    (test_an_operator_of_one_tenant_reaches_no_other).
    """
    if caller.tenant is not None and caller.tenant not in desks:
        raise elsewhere(caller)
    asked = request.query_params.getlist(PARAMETER)
    if len(asked) > 1:
        raise refusal(Code.MALFORMED, "several tenants are named", rule="api.tenant", ask="name one")
    name = asked[0] if asked else caller.tenant or DEFAULT_TENANT
    found = desks.get(name) if caller.tenant in (None, name) else None
    if found is None:
        ask = f"you are of tenant {caller.tenant}" if caller.tenant else meant(sorted(desks), "remit.toml names them")
        raise refusal(Code.UNKNOWN_TARGET, f"there is no tenant {name[:64]!r}", rule="api.tenant", ask=ask)
    return found
