"""The configuration of the NATS server: accounts, the broker's own users, the auth callout, JetStream and limits.

A pure function from values to text. There is no secret in it: users are public nkeys, and so are the issuer and the curve key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from remit_broker.core.bus_permissions import CALLOUT_QUEUE, CALLOUT_SUBJECT, NEVER, account_of
from remit_schemas.names import DEFAULT_TENANT

Sync = Literal["always", "default"]
"""``always``: an acknowledged record survives a power cut. ``default``: the server's two minutes; only with three replicas."""

MAX_PAYLOAD: Final = 1024 * 1024
"""Bytes of a message, its headers included."""

MAX_SUBSCRIPTIONS: Final = 2048
"""Of one connection: services and an inbox need a handful."""

MAX_CONNECTIONS: Final = 4096
KEPT_CONNECTIONS: Final = 64
"""Connections that agents cannot use up: the broker's replicas must always get in."""

CORE_ACCOUNT: Final = "CORE"
AUTH_ACCOUNT: Final = "AUTH"
SYS_ACCOUNT: Final = "SYS"


class PublicKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Public nkeys: the callout's issuer (``A…``) and curve key (``X…``), and the broker's user in each account (``U…``).

    ``bus`` is that in the account of the default tenant, ``tenants`` those in the accounts of the others, by tenant.
    """

    issuer: str
    xkey: str
    core: str
    bus: str
    auth: str
    sys: str
    tenants: Mapping[str, str] = {}


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """Where this server listens for the others of its cluster, and where they are (``nats://HOST:PORT``, itself may be among them)."""

    host: str = "127.0.0.1"
    port: int
    routes: tuple[str, ...]
    name: str = "remit"
    advertise: bool = True
    """Whether clients are told of the other servers' addresses; not where those mean nothing to them (containers)."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What may differ between servers. ``port`` -1 lets the system choose; sizes are in bytes."""

    keys: PublicKeys
    store_dir: str
    host: str = "127.0.0.1"
    port: int = -1
    server_name: str = "remit"
    sync: Sync = "always"
    log_file: str = ""
    max_connections: int = MAX_CONNECTIONS
    max_file_store: int = 64 * 1024**3
    max_memory_store: int = 256 * 1024**2
    cluster: Cluster | None = None


# The broker's own users can do what their part needs, no more: a confused broker must not become somebody's deputy.
_BUS_DENY_PUBLISH: Final = (*NEVER, "req.>", "res.>", "ctl.>")
_AUTH_PUBLISH: Final = ("$SYS._INBOX.>",)
_AUTH_SUBSCRIBE: Final = (f"{CALLOUT_SUBJECT} {CALLOUT_QUEUE}",)


def settings(config: ServerConfig) -> dict[str, Any]:
    """The configuration as the NATS server understands it, before rendering."""
    keys = config.keys
    jetstream: dict[str, Any] = {
        "store_dir": config.store_dir,
        "max_memory_store": config.max_memory_store,
        "max_file_store": config.max_file_store,
    }
    if config.sync == "always":
        jetstream["sync_interval"] = "always"
    base: dict[str, Any] = {
        "server_name": config.server_name,
        "host": config.host,
        "port": config.port,
        "max_payload": MAX_PAYLOAD,
        "max_control_line": 4096,
        "max_connections": config.max_connections,
        # For each connection. The limit a user claim may carry is not applied to users that a callout made (tried on 2.15).
        "max_subscriptions": MAX_SUBSCRIPTIONS,
        "max_pending": 16 * 1024**2,
        "write_deadline": "5s",
        "ping_interval": "20s",
        "ping_max": 2,
        "jetstream": jetstream,
        "system_account": SYS_ACCOUNT,
        "accounts": _accounts(keys, config.max_connections - KEPT_CONNECTIONS),
        "authorization": {
            # Longer than the callout ever takes, shorter than a client's patience.
            "timeout": 2,
            "auth_callout": {
                "issuer": keys.issuer,
                "account": AUTH_ACCOUNT,
                "auth_users": [keys.core, keys.bus, keys.auth, keys.sys, *keys.tenants.values()],
                "xkey": keys.xkey,
            },
        },
    }
    if config.cluster is not None:
        base["cluster"] = _cluster(config.cluster)
    if config.log_file:
        base |= {"log_file": config.log_file, "logfile_size_limit": 16 * 1024**2, "logfile_max_num": 4}
    return base


def _cluster(cluster: Cluster) -> dict[str, Any]:
    return {
        "name": cluster.name,
        "host": cluster.host,
        "port": cluster.port,
        "routes": list(cluster.routes),
        "no_advertise": not cluster.advertise,
    }


def _accounts(keys: PublicKeys, connections: int) -> dict[str, Any]:
    tenants = {DEFAULT_TENANT: keys.bus, **keys.tenants}
    # INVARIANT: one tenant leaves room for the connections of the others
    # (test_a_tenant_cannot_use_up_the_connections_of_another).
    each = max(1, connections // len(tenants))
    return {
        SYS_ACCOUNT: {"users": [{"nkey": keys.sys}]},
        CORE_ACCOUNT: {"jetstream": "enabled", "users": [{"nkey": keys.core}]},
        AUTH_ACCOUNT: {
            "users": [_user(keys.auth, publish={"allow": _AUTH_PUBLISH}, subscribe={"allow": _AUTH_SUBSCRIBE})]
        },
        # INVARIANT: a tenant is an account of its own, which imports and exports nothing
        # (test_nothing_that_one_tenant_says_is_heard_by_another).
        **{account_of(tenant): _bus_account(nkey, each) for tenant, nkey in tenants.items()},
    }


def _bus_account(nkey: str, connections: int) -> dict[str, Any]:
    return {
        "limits": {"max_connections": connections},
        "users": [_user(nkey, publish={"deny": _BUS_DENY_PUBLISH}, subscribe={"deny": NEVER})],
    }


def _user(nkey: str, *, publish: dict[str, Sequence[str]], subscribe: dict[str, Sequence[str]]) -> dict[str, Any]:
    return {"nkey": nkey, "permissions": {"publish": publish, "subscribe": subscribe}}


def render(config: ServerConfig, head: str = "Written by the broker at each start; changes here are lost.") -> str:
    """The text of ``nats.conf``. Every string is quoted, so that no name or path can add a setting. ``head`` is a comment."""
    return (
        "".join(f"# {line}".rstrip() + "\n" for line in head.splitlines())
        + "\n".join(
            f"{key}: {json.dumps(value, indent=2, ensure_ascii=False)}" for key, value in settings(config).items()
        )
        + "\n"
    )
