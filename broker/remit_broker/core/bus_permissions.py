"""Which subjects one connection may use: the table of who may say what where, as permissions of a NATS user.

What is not allowed is denied by the NATS server; the denials below only repeat that for what must never become reachable by
a later, wider allowance (foreign JetStream and system APIs: CVE-2025-30215, CVE-2026-33222).
"""

from __future__ import annotations

from typing import Any, Final

from remit_broker.core.registry import Principal
from remit_schemas.names import DEFAULT_TENANT, Kind, is_connection, is_principal, is_tenant, token
from remit_schemas.subjects import NEW, inbox_prefix

BUS_ACCOUNT: Final = "BUS"
"""The NATS account of the default tenant's agents and servers."""


def account_of(tenant: str) -> str:
    """The NATS account of a tenant's agents and servers. Raises ``ValueError`` for what is no tenant's name."""
    if not is_tenant(tenant):
        raise ValueError("no tenant is called so")
    return BUS_ACCOUNT if tenant == DEFAULT_TENANT else f"{BUS_ACCOUNT}_{tenant}"


CALLOUT_SUBJECT: Final = "$SYS.REQ.USER.AUTH"
CALLOUT_QUEUE: Final = "callout"
"""Where the NATS server asks who a connection is, and the queue group of those who answer."""

NEVER: Final = ("$JS.>", "$SYS.>", "$KV.>", "$O.>", "$MQTT.>", "$NRG.>", "_INBOX.>", "ledger.>")
"""Denied to every agent and server, in both directions."""


def _head(*parts: str) -> str:
    """Every subject that begins with these literal tokens and goes on."""
    return ".".join(token(part) for part in parts) + ".>"


def publishes(kind: Kind, name: str) -> tuple[str, ...]:
    """Where a principal may publish: its own requests, replies and control. A server of tools only asks the broker itself."""
    if kind == "mcp":
        return (_head("req", name, NEW, "remit"), _head("res", name))
    return (_head("req", name), _head("res", name), _head("ctl", name))


def subscribes(kind: Kind, name: str, connection: str) -> tuple[str, ...]:
    """Where a connection may listen: its services in the queue group of its own name, and its own inbox.

    INVARIANT: never a service without its queue, or a second listener could copy the traffic
    (test_a_plain_subscription_beside_the_queue_copies_nothing).
    """
    return (f"{_head('svc', kind, name)} {name}", f"{inbox_prefix(name, connection)}.>")


def permissions(principal: Principal, connection: str) -> dict[str, Any]:
    """The ``pub``, ``sub`` and limit fields of a NATS user claim. Raises ``ValueError`` for a name that is not one plain token.

    The limits are open: the server applies those of its configuration, and none of a callout's users (tried on 2.15).

    No ``resp``: permission to answer by reply subject breaks when a callee reconnects, so callees answer on ``res.…``.
    """
    if not is_principal(principal.name) or not is_connection(connection) or principal.kind not in ("agent", "mcp"):
        raise ValueError("a name that could hide a wildcard")
    return {
        "pub": {"allow": list(publishes(principal.kind, principal.name)), "deny": list(NEVER)},
        "sub": {"allow": list(subscribes(principal.kind, principal.name, connection)), "deny": list(NEVER)},
        "subs": -1,
        "data": -1,
        "payload": -1,
    }
