"""Scenes and runs of the core (:mod:`tests.simulation.core`): the same stories, troubles and checks as for the whole."""

from __future__ import annotations

import asyncio
from typing import Any

from remit_broker.hop.txn import Opened
from tests.simulation.borders import named
from tests.simulation.core import CoreReplica, Plain
from tests.simulation.disk import Disk
from tests.simulation.loop import SimulatedLoop
from tests.simulation.plans import Act, Plan
from tests.simulation.run import Run
from tests.simulation.seeded import EPOCH, Drawn
from tests.simulation.town import Base, Town
from tests.simulation.world import KeptHere

AGENTS = ("planner", "worker", "leaf")


class CoreScene(Base):
    """A scene of the core. It is set up anew for every run."""

    def __init__(self, loop: SimulatedLoop, town: Town, drawn: Drawn) -> None:
        super().__init__(loop, town, drawn)
        told = self.checks.told
        disk, kept = Disk(self.rng), KeptHere()
        self.replicas = [
            CoreReplica(f"r{n}", self.server, disk, self.config, self._fault, self._late, not town.clustered, kept)
            for n in range(town.replicas)
        ]
        self.agents, self.callers, self.odd = {}, {}, {}
        for tenant in town.tenants:
            for where, names in ((self.agents, AGENTS), (self.callers, ("desk",)), (self.odd, ("odd", "tools"))):
                where |= {named(name, tenant): Plain(name, self.server, told, tenant) for name in names}

    async def set_up(self) -> None:
        """Replicas serve, everybody is there."""
        for replica in self.replicas:
            replica.start()
        people = [*self.agents.values(), *self.callers.values(), *self.odd.values()]
        await asyncio.wait([person.start() for person in people])
        await self.until(lambda: all(replica.ready for replica in self.replicas), 20, every=0.01)

    def _late(self) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
        """What is overdue, as an index would tell."""
        now = EPOCH + self.loop.now
        hops, txns = [], []
        for books in self.checks.checker.books():
            root = books.root
            if root is None or books.closed:
                continue
            if root.exp < now:
                txns.append(books.key)
            for account in books.accounts.values():
                if account.parent is not None and account.state == "open":
                    due = self.checks.deadline_of(account.hop)
                    if due + self.town.grace < now:
                        hops.append((*books.key, account.hop))
        return hops, txns


class CoreRun(Run):
    """A story acted by plain clients."""

    async def crossed_call(self, desk: Any, call: Plan) -> str:
        trying: asyncio.Task[str] = desk.process.run(desk.crossed(call))
        await asyncio.wait({trying}, timeout=5)
        return trying.result() if trying.done() and not trying.cancelled() else "silence"

    async def _desk(self, desk: Any, opened: Opened, plan: Plan) -> None:
        calls = [asyncio.ensure_future(desk.call(opened.txn, opened.grant, call)) for call in plan["calls"]]
        if plan["close"] == "early":
            await asyncio.sleep(self.story.seconds / 2)
            await desk.close(opened.txn, opened.grant)
        await asyncio.wait(calls)
        if plan["close"] == "late":
            await desk.close(opened.txn, opened.grant)

    async def _act(self, act: Act) -> None:
        if act.what in ("revoke hop", "revoke txn", "policies", "cross"):
            await super()._act(act)

    async def _indexes(self) -> None:
        """There is none."""

    async def _probe(self) -> None:
        """Whether calls work again is tried on the whole."""
