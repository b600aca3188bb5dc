"""The simulated world of one run: a network, a NATS server, replicas, agents, and who watches them.

A scene is set up once for a *town* (how many replicas, which caps) from a fixed seed; what happens then comes from the seed of
the run. So many runs can start from one scene, each in a process forked from it, and one run can be repeated by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from remit_broker.core.registry import Attachment, Definition
from remit_broker.edges.callout import Admitted, Refused
from tests.simulation.borders import account_of, named
from tests.simulation.disk import Disk
from tests.simulation.loop import SimulatedLoop
from tests.simulation.nats_server import Unanswered, Who
from tests.simulation.people import Person, Raw, known
from tests.simulation.replicas import ACCOUNTS, Replica, principal, wired
from tests.simulation.seeded import Drawn, seeded
from tests.simulation.streams import Proposal
from tests.simulation.town import Base, Town

AGENTS = ("planner", "worker", "leaf")
CALLERS = ("desk",)
ODD = (("odd", "agent"), ("tools", "mcp"))


class Scene(Base):
    """Everything there is. Made by :func:`scene`."""

    def __init__(self, loop: SimulatedLoop, town: Town, drawn: Drawn) -> None:
        super().__init__(loop, town, drawn)
        told = self.checks.told
        self.replicas = [Replica(f"r{n}", Disk(self.rng), self.config, self._fault) for n in range(town.replicas)]
        self.agents, self.callers, self.odd = {}, {}, {}
        for tenant in town.tenants:
            self.agents |= {named(name, tenant): Person(name, told, tenant=tenant) for name in AGENTS}
            self.callers |= {named(name, tenant): Person(name, told, serves=False, tenant=tenant) for name in CALLERS}
            self.odd |= {named(name, tenant): Raw(name, kind, told, tenant) for name, kind in ODD}
        self.server.authorize = self._authorize

    def _authorize(self, options: dict[str, Any]) -> Who | None:
        nkey = options.get("nkey", "")
        if nkey in ACCOUNTS:
            return ACCOUNTS[nkey], "broker"
        serving = [replica for replica in self.replicas if replica.serves]
        if not serving:
            raise Unanswered
        broker = self.rng.choice(serving).broker
        assert broker is not None
        try:
            found = Admitted(broker.registries, broker.revocations, broker.connected).by_nkey(nkey)
        except Refused:
            return None
        return None if found is None else (account_of(found.tenant), found.name)

    # Setting up

    async def set_up(self) -> None:
        """Replicas serve, agents are attached."""
        for tenant in self.town.tenants:
            self._register(tenant)
        for replica in self.replicas:
            replica.start()
        await self.until(lambda: all(replica.ready for replica in self.replicas), 20)
        starting = [person.start() for person in (*self.agents.values(), *self.callers.values())]
        for raw in self.odd.values():
            await raw.start()
        await asyncio.wait(starting)
        await asyncio.sleep(0.2)

    def _register(self, tenant: str) -> None:
        """The names of a tenant, which are those of any other, each with a key of its own."""
        bucket = "registry" if tenant == "default" else f"registry_{tenant}"
        self.js._create(f"KV_{bucket}", {
            "name": f"KV_{bucket}", "subjects": [f"$KV.{bucket}.>"], "max_msgs_per_subject": 5, "allow_rollup_hdrs": True,
            "deny_delete": True, "allow_direct": True, "discard": "new", "max_bytes": -1, "num_replicas": 1, "storage": "file",
            "retention": "limits", "max_age": 0, "max_consumers": -1, "max_msgs": -1, "max_msg_size": -1,
        })  # fmt: skip

        def put(key: str, value: Any) -> None:
            stream = self.js.streams[f"KV_{bucket}"]
            stream.store(Proposal(f"$KV.{bucket}.{key}", "", b"", msgspec.json.encode(value), None, None))

        for name in (*AGENTS, *CALLERS, *(name for name, _ in ODD)):
            put(f"principal.{name}", principal(name, "mcp" if name == "tools" else "agent", tenant))
        for name, kind, ops in (("odd", "agent", ("do",)), ("tools", "mcp", ("read", "write"))):
            definitions = tuple(Definition(op=op, input_schema={"type": "object"}) for op in ops)
            put(f"attachment.{name}", Attachment(name=name, kind=kind, definitions=definitions))  # type: ignore[arg-type]


@contextlib.contextmanager
def scene(town: Town) -> Iterator[Scene]:
    """A scene that is set up, in a loop of its own. It is never taken down: the process that it is made in ends with it."""
    loop = SimulatedLoop(0)
    asyncio.set_event_loop(loop)
    with wired(), known(), seeded(loop, 0, grant_ttl=town.grant_ttl) as drawn:
        set_ = Scene(loop, town, drawn)
        loop.run_until_complete(set_.set_up())
        yield set_
        asyncio.set_event_loop(None)
