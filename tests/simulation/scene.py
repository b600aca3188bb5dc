"""The simulated world of one run: a network, a NATS server, replicas, agents, and who watches them.

A scene is set up once for a *town* (how many replicas, which caps) from a fixed seed; what happens then comes from the seed of
the run. So many runs can start from one scene, each in a process forked from it, and one run can be repeated by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from nats.errors import Error as NatsError

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.jetstream import ApiError, Unreachable
from remit_broker.config import BusConfig, Config, LimitsConfig
from remit_broker.core.registry import Attachment, Definition
from remit_broker.edges.callout import Admitted, Refused
from remit_schemas.errors import Code, Refusal
from tests.simulation.checks import Caps, Checks
from tests.simulation.disk import Disk
from tests.simulation.jetstream import JetStreams, Kept, Proposal, Stream
from tests.simulation.loop import SimulatedLoop
from tests.simulation.nats_server import NatsServer, Peer, Unanswered, Who
from tests.simulation.network import Network
from tests.simulation.people import Person, Raw, known
from tests.simulation.replicas import ACCOUNTS, URL, Replica, principal, wired
from tests.simulation.seeded import Drawn, seeded

AGENTS = ("planner", "worker", "leaf")
CALLERS = ("desk",)
_UNCERTAIN = (Code.LEDGER_UNAVAILABLE, Code.GRANT_CLOSED)
"""Refusals that a replica may meet in its own work when the ledger is away, or another was first."""


NO_CAPS: Final[Mapping[str, Any]] = {}


class Town(NamedTuple):
    """A configuration that runs start from. ``caps`` are as in remit.toml, of a day."""

    name: str
    replicas: int
    clustered: bool
    caps: Mapping[str, Any] = NO_CAPS
    grace: float = 2.0


TOWNS = (
    Town("pair", 2, clustered=True),
    Town("capped", 2, clustered=True, caps={
        "user": {"default": {"day": "calls=25"}}, "agent": {"leaf": {"day": "calls=9"}},
        "tool": {"mcp/tools/read": {"day": "calls=6,tokens=700"}},
    }),
    Town("trio", 3, clustered=True),
    Town("single", 2, clustered=False, caps={"tenant": {"default": {"day": "calls=30"}}}),
    Town("alone", 1, clustered=False),
)  # fmt: skip


def caps_of(town: Town) -> Caps:
    """The caps of a town in plain numbers."""
    found: Caps = {}
    for kind, named in town.caps.items():
        for name, windows in named.items():
            for window, text in windows.items():
                pairs = (part.split("=") for part in text.split(","))
                found[kind, name, window] = {unit: int(amount) for unit, amount in pairs}
    return found


class Scene:
    """Everything there is. Made by :func:`scene`."""

    def __init__(self, loop: SimulatedLoop, town: Town, drawn: Drawn) -> None:
        self.loop, self.town, self.drawn = loop, town, drawn
        self.rng = random.Random(f"scene {town.name}")
        self.network = Network(loop, self.rng)
        self.server = NatsServer(loop, self.rng, self.network)
        self.js = JetStreams(self.server, "CORE", self.rng, clustered=town.clustered)
        self.checks = Checks(loop, caps_of(town))
        self.faulted: list[tuple[str, str, BaseException]] = []
        self.halt_allowed = False
        config = Config(
            bus=BusConfig(url=URL),
            limits=LimitsConfig(orphan_grace=town.grace, drain=3.0),
            caps=dict(town.caps),
            issuer=_issuer(),
        )
        self.replicas = [Replica(f"r{n}", Disk(self.rng), config, self._fault) for n in range(town.replicas)]
        self.agents = {name: Person(name, self.checks.told) for name in AGENTS}
        self.callers = {name: Person(name, self.checks.told, serves=False) for name in CALLERS}
        self.odd = {"odd": Raw("odd", "agent", self.checks.told), "tools": Raw("tools", "mcp", self.checks.told)}
        self.server.authorize = self._authorize
        self.server.watchers.append(self.checks.published)
        self.server.on_connected.append(self._connected)
        self.js.on_stored.append(self.checks.stored_in)
        self.js.on_told.append(self._told)

    def reseed(self, seed: int) -> None:
        """From here on everything comes from ``seed``."""
        self.rng.seed(f"rng {seed}")
        self.loop.rng.seed(f"loop {seed}")
        self.loop.fifo = seed % 2 == 0
        self.drawn.seed(seed)

    # Who is who

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
            found = Admitted(broker.registry, broker.revocations, broker.connected).by_nkey(nkey)
        except Refused:
            return None
        return None if found is None else ("BUS", found.name)

    def _connected(self, peer: Peer) -> None:
        if peer.who == ("CORE", "broker") and peer.wire.process is not None:
            self.checks.looked.add(peer.wire.process)

    # What replicas learn, and what goes wrong in them

    def _told(self, stream: Stream, peer: Peer | None, seq: int) -> None:
        if stream.name == "LEDGER" and peer is not None:
            self.checks.knows(peer.wire.process, seq)

    def _fault(self, who: str, where: str, error: BaseException) -> None:
        said = error.cause if isinstance(error, Refusal) else ""
        self.checks.say("fault", who, where, repr(error)[:200], said[:200])
        self.checks.totals[f"fault {where}"] += 1
        uncertain = isinstance(error, Refusal) and error.body.code in _UNCERTAIN
        expected = NatsError | TimeoutError | OSError | Unreachable | ApiError | ConfigError
        if not uncertain and not isinstance(error, expected):
            self.checks.broken("fault", f"{who} {where}", f"{error!r} {said}")

    # Setting up

    async def set_up(self) -> None:
        """Replicas serve, agents are attached."""
        self.js._create("KV_registry", {
            "name": "KV_registry", "subjects": ["$KV.registry.>"], "max_msgs_per_subject": 5, "allow_rollup_hdrs": True,
            "deny_delete": True, "allow_direct": True, "discard": "new", "max_bytes": -1, "num_replicas": 1, "storage": "file",
            "retention": "limits", "max_age": 0, "max_consumers": -1, "max_msgs": -1, "max_msg_size": -1,
        })  # fmt: skip
        for name in (*AGENTS, *CALLERS, *self.odd):
            self._put(f"principal.{name}", principal(name, "mcp" if name == "tools" else "agent"))
        for name, kind, op in (("odd", "agent", "do"), ("tools", "mcp", "read")):
            definitions = (Definition(op=op, input_schema={"type": "object"}),)
            self._put(f"attachment.{name}", Attachment(name=name, kind=kind, definitions=definitions))  # type: ignore[arg-type]
        for replica in self.replicas:
            replica.start()
        await self.until(lambda: all(replica.ready for replica in self.replicas), 20)
        starting = [person.start() for person in (*self.agents.values(), *self.callers.values())]
        for raw in self.odd.values():
            await raw.start()
        await asyncio.wait(starting)
        await asyncio.sleep(0.2)

    def _put(self, key: str, value: Any) -> None:
        stream = self.js.streams["KV_registry"]
        stream.store(Proposal(f"$KV.registry.{key}", "", b"", msgspec.json.encode(value), None, None))

    async def until(self, condition: Any, seconds: float, every: float = 0.05) -> bool:
        """Wait for ``condition``, for so long at most: whether it came."""
        due = self.loop.now + seconds
        while not condition():
            if self.loop.now >= due:
                return False
            await asyncio.sleep(every)
        return True

    def serving(self) -> list[Replica]:
        """Replicas that can be asked now."""
        return [replica for replica in self.replicas if replica.serves]


def _issuer() -> str:
    from tests.simulation.replicas import ISSUER

    return ISSUER


@contextlib.contextmanager
def scene(town: Town) -> Iterator[Scene]:
    """A scene that is set up, in a loop of its own. It is never taken down: the process that it is made in ends with it."""
    loop = SimulatedLoop(0)
    asyncio.set_event_loop(loop)
    with wired(), known(), seeded(loop, 0) as drawn:
        set_ = Scene(loop, town, drawn)
        loop.run_until_complete(set_.set_up())
        yield set_
        asyncio.set_event_loop(None)


__all__ = ["AGENTS", "CALLERS", "TOWNS", "Kept", "Scene", "Town", "scene"]
