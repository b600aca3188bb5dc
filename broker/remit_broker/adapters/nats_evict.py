"""Ending connections: what a connection may do was decided when it was made, and only its end takes that back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Final

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from remit_broker.adapters.nats_system import ask_all
from remit_broker.core.bus_permissions import account_of
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import DEFAULT_TENANT

SECONDS: Final = 2.0
"""How long the servers have to answer, and a connection to be gone."""

_PAUSE: Final = 0.02
PAGE: Final = 1024
"""Connections that one server tells of at a time."""


class Evictor:
    """Ends the connections of principals of a tenant, on every server. ``sys`` is a connection in the system account."""

    def __init__(self, sys: Client, clustered: bool = False, tenant: str = DEFAULT_TENANT) -> None:
        self._sys, self._clustered, self._account = sys, clustered, account_of(tenant)

    async def __call__(self, *names: str, still: Callable[[], bool] = lambda: True) -> None:
        """End all connections that were let in as one of ``names``; returns when there are none. Refuses LEDGER_UNAVAILABLE.

        Nobody of that name must be let in meanwhile: call it where the registry does not know the key that is to go, or only as
        long as ``still`` says so: nothing is ended once it does not.
        """
        until = time.monotonic() + SECONDS
        try:
            while (found := await self._connections(names)) and still():
                if time.monotonic() >= until:
                    raise _cannot(names, f"{len(found)} connections stay")
                for server, cid in found:
                    await self._sys.request(
                        f"$SYS.REQ.SERVER.{server}.KICK", msgspec.json.encode({"cid": cid}), timeout=SECONDS
                    )
                await asyncio.sleep(_PAUSE)
        except (NatsError, TimeoutError, OSError, msgspec.MsgspecError, LookupError) as error:
            raise _cannot(names, repr(error)) from None

    async def _connections(self, names: Collection[str]) -> list[tuple[str, int]]:
        """(server id, connection id) of live connections of ``names``: of very many the first, and as long as there are any."""
        wanted = {"auth": True, "acc": self._account, "limit": PAGE}
        if len(names) == 1:
            wanted["user"] = next(iter(names))
        asked = msgspec.json.encode(wanted)
        found = []
        for answer in await ask_all(self._sys, "$SYS.REQ.SERVER.PING.CONNZ", asked, self._clustered):
            server = answer["server"]["id"]
            # The filter of the server is not relied upon: nobody else may be disconnected.
            # INVARIANT: the same name of another tenant stays connected
            # (test_revoking_an_agent_of_one_tenant_does_not_touch_its_namesake).
            found += [
                (server, c["cid"])
                for c in answer["data"]["connections"] or ()
                if c.get("authorized_user") in names and c.get("account") == self._account
            ]
        return found


def _cannot(names: Collection[str], cause: str) -> Refusal:
    name = next(iter(names)) if len(names) == 1 else f"{len(names)} principals"
    return refusal(
        Code.LEDGER_UNAVAILABLE, f"the connections of {name} could not be ended", rule="registry.evict",
        ask="try again; until it is done, whoever is connected as it stays so", cause=cause,
    )  # fmt: skip
