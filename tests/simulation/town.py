"""Where runs take place: towns, and what every scene has: a network, a server, who watches them, and the seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from nats.errors import Error as NatsError

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.jetstream import ApiError, Unreachable
from remit_broker.config import BusConfig, Config, LimitsConfig
from remit_broker.config.keys import ApprovalsConfig, TenantConfig
from remit_schemas.errors import Code, Refusal
from tests.simulation.borders import OTHER
from tests.simulation.caps import Caps
from tests.simulation.checks import Checks
from tests.simulation.jetstream import JetStreams
from tests.simulation.loop import SimulatedLoop
from tests.simulation.nats_server import NatsServer, Peer
from tests.simulation.network import Network
from tests.simulation.replicas import ISSUER, URL, Replica
from tests.simulation.seeded import Drawn

_UNCERTAIN = (Code.LEDGER_UNAVAILABLE, Code.GRANT_CLOSED)
"""Refusals that a replica may meet in its own work when the ledger is away, or another was first."""


APPROVAL_TTL: Final = 4.0
APPROVAL_USE: Final = 1.5
"""Seconds that a request waits, and that an approval can be used: short, so that a run sees both end."""
NO_CAPS: Final[Mapping[str, Any]] = {}


class Town(NamedTuple):
    """A configuration that runs start from. ``caps`` are as in remit.toml, of a day."""

    name: str
    replicas: int
    clustered: bool
    caps: Mapping[str, Any] = NO_CAPS
    grace: float = 2.0
    grant_ttl: int = 60
    """How long a grant lives before it has to be renewed; short, so that a run sees it."""
    tenants: tuple[str, ...] = ("default",)


TOWNS = (
    Town("pair", 2, clustered=True),
    Town("capped", 2, clustered=True, caps={
        "user": {"default": {"day": "calls=25"}}, "agent": {"leaf": {"day": "calls=9"}},
        "tool": {"mcp/tools/read": {"day": "calls=6,tokens=700"}},
    }),
    Town("trio", 3, clustered=True, grant_ttl=2),
    Town("single", 2, clustered=False, caps={"tenant": {"default": {"day": "calls=30"}}}),
    Town("alone", 1, clustered=False),
    Town("shared", 2, clustered=True, tenants=("default", OTHER), caps={
        "user": {"default": {"day": "calls=40"}}, "tool": {"mcp/tools/read": {"day": "calls=6,tokens=700"}},
    }),
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


class Base:
    """A scene without anybody in it yet."""

    replicas: list[Replica]
    agents: dict[str, Any]
    callers: dict[str, Any]
    odd: dict[str, Any]

    def __init__(self, loop: SimulatedLoop, town: Town, drawn: Drawn) -> None:
        self.loop, self.town, self.drawn = loop, town, drawn
        self.rng = random.Random(f"scene {town.name}")
        self.network = Network(loop, self.rng)
        self.server = NatsServer(loop, self.rng, self.network)
        self.js = JetStreams(self.server, "CORE", self.rng, clustered=town.clustered)
        self.checks = Checks(loop, caps_of(town))
        self.halt_allowed = False
        limits = LimitsConfig(orphan_grace=town.grace, drain=3.0)
        self.config = Config(
            bus=BusConfig(url=URL), limits=limits, caps=dict(town.caps), issuer=ISSUER,
            approvals=ApprovalsConfig(ttl=APPROVAL_TTL, use=APPROVAL_USE),
            tenants={name: TenantConfig() for name in town.tenants if name != "default"},
        )  # fmt: skip
        self.server.watchers.append(self.checks.published)
        self.server.on_connected.append(self._connected)
        self.js.on_stored.append(self.checks.stored_in)
        self.network.heard = self.checks.knows

    def reseed(self, seed: int) -> None:
        """From here on everything comes from ``seed``."""
        self.rng.seed(f"rng {seed}")
        self.loop.rng.seed(f"loop {seed}")
        self.loop.fifo = seed % 2 == 0
        self.drawn.seed(seed)

    def _connected(self, peer: Peer) -> None:
        if peer.who == ("CORE", "broker") and peer.wire.process is not None:
            self.checks.looked.add(peer.wire.process)

    def _fault(self, who: str, where: str, error: BaseException) -> None:
        said = error.cause if isinstance(error, Refusal) else ""
        self.checks.say("fault", who, where, repr(error)[:200], said[:200])
        self.checks.totals[f"fault {where}"] += 1
        if where == "index" and self.halt_allowed:
            return
        uncertain = isinstance(error, Refusal) and error.body.code in _UNCERTAIN
        expected = NatsError | TimeoutError | OSError | Unreachable | ApiError | ConfigError
        if not uncertain and not isinstance(error, expected):
            self.checks.broken("fault", f"{who} {where}", f"{error!r} {said}")

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
