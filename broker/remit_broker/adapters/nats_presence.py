"""How many connections each principal has on all servers, so that the callout can bound them: told by the servers' own events.

Events are not kept for whoever is away, and a server that is killed announces no end of its connections. So the servers are
asked for all connections at the start, then now and again, and whenever somebody was refused who may have fewer by now.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from remit_broker.adapters.nats_system import ask_all
from remit_broker.adapters.tasks import ended
from remit_broker.core.bus_permissions import account_of
from remit_broker.ports import Clock
from remit_schemas.names import DEFAULT_TENANT

PAGE: Final = 1024
"""Connections that one server tells of at a time."""
EVERY: Final = 30.0
SOON: Final = 1.0
"""Seconds between two askings at most, and at least."""
COMING: Final = 3.0
"""Seconds a connection that was let in may take until the servers tell of it; the server's own time for it is 2 s."""

Fault = Callable[[str, BaseException], None]


Who = tuple[str, str]
"""A principal: the NATS account of its tenant, and its name there."""


class _Client(msgspec.Struct):
    id: int = 0
    user: str = ""
    acc: str = ""


class _Server(msgspec.Struct):
    id: str = ""


class _Event(msgspec.Struct):
    server: _Server = msgspec.field(default_factory=_Server)
    client: _Client = msgspec.field(default_factory=_Client)


_decode = msgspec.json.Decoder(_Event).decode


class Connected:
    """The live connections of each principal. ``sys`` is a connection in the system account; ``most`` is how many one may have."""

    def __init__(
        self,
        sys: Client,
        most: int,
        clock: Clock,
        *,
        clustered: bool = False,
        tenants: Sequence[str] = (DEFAULT_TENANT,),
    ) -> None:
        self._sys, self._most, self._clock, self._clustered = sys, most, clock, clustered
        self._accounts = {tenant: account_of(tenant) for tenant in tenants}
        self._live: defaultdict[Who, set[tuple[str, int]]] = defaultdict(set)
        self._coming: defaultdict[Who, list[float]] = defaultdict(list)
        self._changes: list[tuple[Who, tuple[str, int], bool]] | None = None
        self._ask = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, fault: Fault) -> None:
        """Hear of every connection from now on, and ask for those there are."""
        for account in self._accounts.values():
            await self._sys.subscribe(f"$SYS.ACCOUNT.{account}.CONNECT", cb=self._on_connect)
            await self._sys.subscribe(f"$SYS.ACCOUNT.{account}.DISCONNECT", cb=self._on_disconnect)
        await self._look()
        self._task = asyncio.create_task(self._keep(fault))

    async def stop(self) -> None:
        """Stop asking."""
        if self._task is not None:
            await ended(self._task)

    def count(self, name: str, tenant: str = DEFAULT_TENANT) -> int:
        """Connections of ``name``, those that were just let in included."""
        now, who = self._clock.monotonic(), (self._accounts[tenant], name)
        coming = [due for due in self._coming.get(who, ()) if due > now]
        if coming:
            self._coming[who] = coming
        else:
            self._coming.pop(who, None)
        return len(self._live.get(who, ())) + len(coming)

    def take(self, name: str, tenant: str = DEFAULT_TENANT) -> str:
        """Let one more connection of ``name`` in: empty, or why not.

        INVARIANT: one principal leaves room for the others
        (test_one_principal_cannot_use_up_the_connections_of_the_others).
        """
        if (count := self.count(name, tenant)) >= self._most:
            self._ask.set()  # some may be gone without a word
            return f"{name} has {count} connections, at most {self._most} are let in (limits.connections_per_agent)"
        self._coming[self._accounts[tenant], name].append(self._clock.monotonic() + COMING)
        return ""

    async def _on_connect(self, message: Msg) -> None:
        self._note(message, present=True)

    async def _on_disconnect(self, message: Msg) -> None:
        self._note(message, present=False)

    def _note(self, message: Msg, *, present: bool) -> None:
        try:
            event = _decode(message.data)
        except msgspec.MsgspecError:
            return
        # INVARIANT: a namesake in another tenant is somebody else
        # (test_connections_are_counted_for_each_tenant_by_itself).
        who, where = (event.client.acc, event.client.user), (event.server.id, event.client.id)
        if self._changes is not None:
            self._changes.append((who, where, present))
        if present and where not in self._live.get(who, ()) and (coming := self._coming.get(who)):
            coming.pop(0)
        self._apply(who, where, present)

    def _apply(self, who: Who, where: tuple[str, int], present: bool) -> None:
        if not present:
            self._live[who].discard(where)
            if not self._live[who]:
                del self._live[who]
        else:
            self._live[who].add(where)

    async def _keep(self, fault: Fault) -> None:
        while True:
            await asyncio.sleep(SOON)
            try:
                async with asyncio.timeout(EVERY):
                    await self._ask.wait()
            except TimeoutError:
                pass
            self._ask.clear()
            try:
                await self._look()
            except Exception as error:
                fault("connections", error)

    async def _look(self) -> None:
        """What the servers say there is now; what they told while they were being asked is newer."""
        self._changes = []
        try:
            found: defaultdict[Who, set[tuple[str, int]]] = defaultdict(set)
            for account in self._accounts.values():
                await self._look_at(account, found)
            self._live = found
            for change in self._changes:
                self._apply(*change)
        finally:
            self._changes = None

    async def _look_at(self, account: str, found: defaultdict[Who, set[tuple[str, int]]]) -> None:
        offset, more = 0, True
        while more:
            body = msgspec.json.encode({"auth": True, "acc": account, "limit": PAGE, "offset": offset})
            more, offset = False, offset + PAGE
            for answer in await ask_all(self._sys, "$SYS.REQ.SERVER.PING.CONNZ", body, self._clustered):
                there = answer["data"]["connections"] or ()
                more = more or len(there) >= PAGE
                for one in there:
                    who = (account, one.get("authorized_user", ""))
                    found[who].add((answer["server"]["id"], one["cid"]))
