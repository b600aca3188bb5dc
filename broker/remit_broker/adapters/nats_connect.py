"""The broker's own connections: one user and one private inbox in each account, never given up."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, Literal

import nats
from nats.aio.client import Client

from remit_broker.adapters.errors import ConfigError, ServiceError
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_client import HardenedClient
from remit_broker.core.tenant_user import seed_of
from remit_schemas.names import DEFAULT_TENANT

Account = Literal["core", "bus", "auth", "sys"]
ACCOUNTS: Final[tuple[Account, ...]] = ("core", "bus", "auth", "sys")

OnError = Callable[[str, Exception], None]
"""Called with the connection's name and what went wrong: a refused publish arrives here and nowhere else."""

CONNECT_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 0.1
_PING_SECONDS: Final = 3
"""A connection whose server owes two answers to pings at this interval is given up."""


@dataclass(frozen=True)
class Connections:
    """The broker's connections: one to its own account, to the callout's and to the system's, and one to each tenant's.

    ``bus`` is that to the default tenant's, ``others`` are those to the accounts of the other tenants.
    """

    core: Client
    bus: Client
    auth: Client
    sys: Client
    others: Mapping[str, Client] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Client]:
        return iter(self.named().values())

    def named(self) -> dict[str, Client]:
        """Each by the name by which it is spoken of: ``core``, ``bus``, ``auth``, ``sys`` and ``bus.<tenant>``."""
        own: dict[str, Client] = {account: getattr(self, account) for account in ACCOUNTS}
        return {**own, **{f"bus.{tenant}": found for tenant, found in self.others.items()}}

    def of(self, tenant: str) -> Client:
        """The one in the account of a tenant."""
        return self.bus if tenant == DEFAULT_TENANT else self.others[tenant]


def _ignore(_: str, __: Exception) -> None:
    return None


async def connect(
    url: str, keys: KeyFiles, account: Account, on_error: OnError = _ignore, tenant: str = DEFAULT_TENANT
) -> Client:
    """Connect as the broker's user in one account, to one of the servers of ``url``, which are separated by commas.

    Where the account is ``bus``, in that of ``tenant``.

    Raises :class:`ConfigError` where that is refused, :class:`ServiceError` where it is not answered in time.

    After that the connection is kept for ever: it reconnects until it is closed.
    """
    name = f"remit-{account}" if tenant == DEFAULT_TENANT else f"remit-{account}-{tenant}"
    seen: list[Exception] = []

    async def error(problem: Exception) -> None:
        # A refusal is followed by the connection's end, which says less.
        if not any(_refused(str(one)) for one in seen):
            seen[:] = [problem]
        on_error(name, problem)

    nc = HardenedClient()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await nc.connect(
                url.split(","),
                name=name,
                nkeys_seed_str=seed_of(keys.seed(account), tenant),
                inbox_prefix=f"_INBOX_remit_{account}.{secrets.token_hex(12)}",
                error_cb=error,
                # -1 also makes the first connect try for ever, hence the time limit around it.
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RETRY_SECONDS,  # type: ignore[arg-type]  # a float is fine: it is only slept
                # A server that says nothing for so long is as good as gone: where there are others, they are tried.
                ping_interval=_PING_SECONDS,
                max_outstanding_pings=2,
                # Longer than the two seconds after which a server says that nobody vouched for a user it does not know.
                connect_timeout=3,
            )
        return nc
    except (TimeoutError, OSError, nats.errors.Error) as problem:
        raise _cannot(url, name.removeprefix("remit-"), str(seen[-1] if seen else problem) or "no answer") from None


def _cannot(url: str, account: str, cause: str) -> ConfigError:
    if _refused(cause):
        return ConfigError(
            f"the NATS server at {url} refuses the broker's {account} user: {cause}",
            "its nats.conf was made for other keys or tenants: print it with `remit init DIR --nats-config`, or bring the keys "
            "here with `remit keys import`",
        )
    return ServiceError(
        f"the broker cannot connect to {url} as its {account} user: {cause}",
        "start the NATS server, or correct bus.url",
    )


def _refused(cause: str) -> bool:
    return "authorization" in cause.lower()


async def connect_all(
    url: str, keys: KeyFiles, on_error: OnError = _ignore, tenants: Sequence[str] = ()
) -> Connections:
    """All of them, or none. ``tenants`` are those beside the default one."""
    async with AsyncExitStack() as stack:
        found: dict[str, Client] = {}
        for account in ACCOUNTS:
            found[account] = await connect(url, keys, account, on_error)
            stack.push_async_callback(found[account].close)
        others: dict[str, Client] = {}
        for tenant in tenants:
            others[tenant] = await connect(url, keys, "bus", on_error, tenant)
            stack.push_async_callback(others[tenant].close)
        stack.pop_all()
    return Connections(**found, others=others)
