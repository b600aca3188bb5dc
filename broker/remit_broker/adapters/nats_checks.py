"""Whether an external NATS server or cluster is what the broker needs, found out before anything is built on it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import nats.errors
from nats.aio.client import Client

from remit_broker.adapters.errors import ConfigError, ServiceError
from remit_broker.adapters.jetstream import OLDEST_SERVER, ApiError, JetStream, Unreachable
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_client import HardenedClient
from remit_broker.adapters.nats_config import AUTH_ACCOUNT, CORE_ACCOUNT, MAX_PAYLOAD, SYS_ACCOUNT
from remit_broker.adapters.nats_connect import Connections
from remit_broker.adapters.nats_system import ask_all, ask_one
from remit_broker.core import callout_probe
from remit_broker.core.bus_permissions import account_of
from remit_schemas.names import DEFAULT_TENANT

ACCOUNTS: Final = {"core": CORE_ACCOUNT, "auth": AUTH_ACCOUNT, "sys": SYS_ACCOUNT}
NO_JETSTREAM: Final = (10039, 10076)
"""Not for this account; not on this server."""
PROBE_SECONDS: Final = 4.0
PROBES: Final = 6
PRINT: Final = "compare its nats.conf with what `remit init DIR --nats-config` prints"


class Servers(NamedTuple):
    """What was found: the servers that answered, by name with their version, and how JetStream is laid out."""

    versions: dict[str, str]
    jetstream: dict[str, Any]
    """``JSZ`` of the server that is asked first; ``meta_cluster`` is in it where it is one of several."""

    @property
    def size(self) -> int:
        """How many servers JetStream can put replicas on."""
        return int((self.jetstream.get("meta_cluster") or {}).get("cluster_size", 1))


async def require_servers(connections: Connections, replicas: int) -> Servers:
    """Everything but the callout, which :func:`require_callout` looks at once somebody answers for it.

    Raises :class:`ConfigError` that names what is wrong and :class:`ServiceError` where an answer is missing.
    """
    found = await _asked(connections)
    for check in (_versions, _payload):
        check(found, connections)
    for name, connection in connections.named().items():
        await _account(connections.sys, name, connection)
    await _jetstream(connections.core)
    _peers(found, replicas)
    return found


async def _asked(connections: Connections) -> Servers:
    try:
        pings = await ask_all(connections.sys, "$SYS.REQ.SERVER.PING")
        own = await ask_one(connections.sys, server_id(connections.sys), "JSZ", b'{"config":true}')
    except nats.errors.NoRespondersError:
        raise ConfigError(
            f"the broker's sys user is not in the system account: {SYS_ACCOUNT} must be `system_account`", PRINT
        ) from None
    except (TimeoutError, nats.errors.Error, OSError):
        raise ServiceError(
            "the NATS server does not answer as its system account must",
            f"see that {SYS_ACCOUNT} is `system_account` in nats.conf and the server is not overloaded; {PRINT}",
        ) from None
    return Servers({ping["server"]["name"]: ping["server"]["ver"] for ping in pings}, own)


def _versions(found: Servers, _: Connections) -> None:
    wanted = ".".join(map(str, OLDEST_SERVER))
    for name, version in found.versions.items():
        if version_of(version) < OLDEST_SERVER:
            raise ConfigError(f"nats-server {name} is {version}: too old for the ledger", f"use {wanted} or newer")


def _payload(_: Servers, connections: Connections) -> None:
    for connection in connections:
        if connection.max_payload < MAX_PAYLOAD:
            raise ConfigError(
                f"the NATS server takes messages of {connection.max_payload} bytes; envelopes need {MAX_PAYLOAD}",
                f"set `max_payload: {MAX_PAYLOAD}` on every server",
            )


async def _account(sys: Client, name: str, connection: Client) -> None:
    asked = msgspec.json.encode({"cid": connection.client_id, "auth": True})
    try:
        told = await ask_one(sys, server_id(connection), "CONNZ", asked)
        account = told["connections"][0].get("account")
    except (TimeoutError, nats.errors.Error, OSError, LookupError, TypeError):
        raise ServiceError(f"the NATS server does not say in which account the {name} user is", "try again") from None
    wanted = ACCOUNTS.get(name) or account_of(name.removeprefix("bus.") if name != "bus" else DEFAULT_TENANT)
    if account != wanted:
        raise ConfigError(f"the broker's {name} user is in the account {account}; it must be in {wanted}", PRINT)


async def _jetstream(core: Client) -> None:
    try:
        await JetStream(core).api("INFO")
    except ApiError as error:
        if error.code not in NO_JETSTREAM:
            raise ServiceError(f"JetStream cannot be used: {error}", "look at the log of the NATS server") from None
        raise ConfigError(
            f"JetStream is not on for the account {CORE_ACCOUNT}: {error}",
            f"add a `jetstream` block, and `jetstream: enabled` to the account {CORE_ACCOUNT}; {PRINT}",
        ) from None
    except Unreachable:
        # Off on the whole server, nobody answers; a cluster without a majority does not answer either.
        raise ServiceError(
            "JetStream does not answer: it is off on this server, or the cluster has no leader",
            "add a `jetstream` block to every server, and see that most of them run",
        ) from None


def _peers(found: Servers, replicas: int) -> None:
    meta = found.jetstream.get("meta_cluster") or {}
    if found.size < replicas:
        raise ConfigError(
            f"bus.replicas is {replicas}, but JetStream has {found.size} server{'s' if found.size > 1 else ''}",
            f"start a cluster of at least {replicas}, or set bus.replicas to what there is",
        )
    if meta and not meta.get("leader"):
        raise ServiceError("the JetStream cluster has no leader", "start more of its servers: most of them must run")


async def require_callout(url: str, keys: KeyFiles, said: Callable[[], str | None] = lambda: None) -> None:
    """Connect as the probe, which only a callout with these keys lets in. Raises :class:`ConfigError`.

    ``said`` is what this process's own callout told of the probe: None (not asked), "" (let in) or why not.
    """
    verdict, own = None, None
    for _ in range(PROBES):
        verdict = await probe(url, keys)
        if verdict is None:
            return
        if (own := said()) is not None:
            break
        # Of several who answer, one that is frozen may have been asked: another one will be.
    if own == "":
        raise ConfigError(
            f"the NATS server does not take the callout's answer: {verdict}",
            f"`auth_callout.issuer` must be {keys.public('issuer')} on every server; {PRINT}",
        )
    if own:
        raise ConfigError(
            f"the NATS server's question to the callout cannot be opened: {own}",
            f"`auth_callout.xkey` must be {keys.public('xkey')} on every server; {PRINT}",
        )
    raise ConfigError(
        f"the NATS server does not ask the callout who connects: {verdict}",
        f"it needs `authorization.auth_callout` with the account {AUTH_ACCOUNT}, and somebody who answers; {PRINT}",
    )


async def probe(url: str, keys: KeyFiles) -> str | None:
    """Whether the callout lets the probe in: None, or why not."""
    last = "no answer"

    async def error(problem: Exception) -> None:
        nonlocal last
        last = str(problem) or last

    nc = HardenedClient()
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await nc.connect(
                url.split(","), name=secrets.token_hex(12), allow_reconnect=False, error_cb=error,
                nkeys_seed_str=callout_probe.seed_of(keys.seed("issuer")), connect_timeout=3, max_reconnect_attempts=1,
            )  # fmt: skip
        # Let in by a server that asks nobody: then anybody is.
        asked = nc._server_info.get("auth_required")
    except (TimeoutError, OSError, nats.errors.Error) as problem:
        return last if last != "no answer" else str(problem) or type(problem).__name__
    finally:
        with contextlib.suppress(Exception):
            await nc.close()
    return None if asked else "it lets anybody in"


def server_id(connection: Client) -> str:
    """The id of the server a connection is to."""
    return str(connection._server_info.get("server_id", ""))


def version_of(text: str) -> tuple[int, ...]:
    """``2.14.4-RC.1`` as numbers; what is no version is the oldest."""
    parts = text.partition("-")[0].split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0,)
