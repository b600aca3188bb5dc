"""What goes wrong in a run, as its story says: when and whom comes from the seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from tests.simulation.consent import waiting
from tests.simulation.network import SERVER
from tests.simulation.plans import STOPPABLE, Act, Story
from tests.simulation.replicas import Replica

REVOCATIONS = "KV_revocations"
"""The stream that what is revoked is heard from."""


class Troubles:
    """The unkind half of a run. ``at`` is its scene."""

    at: Any
    rng: random.Random
    story: Story
    calm: bool
    totals: Any

    async def _act(self, act: Act) -> None:
        """Do what an operator does."""
        raise NotImplementedError

    def _unkind(self) -> None:
        faults, store, rng = self.story.faults, self.at.js.faults, self.rng
        if "lost acks" in faults:
            store.lost_acks = rng.choice((0.02, 0.1, 0.3))
        if "late acks" in faults:
            store.late_acks, store.late = rng.choice((0.05, 0.3)), rng.choice((1.2, 3.0))
        if "slow commits" in faults:
            store.slow_commits, store.slow = rng.choice((0.02, 0.2)), rng.choice((0.3, 1.5))
        if "disk" in faults:
            for replica in self.at.replicas:
                replica.disk.unkind = rng.choice((0.05, 0.3))
        if "duplicates" in faults:
            self.at.server.duplicates = rng.choice((0.05, 0.3))
        if "clocks" in faults:
            for process in [r.process for r in self.at.replicas] + [p.process for p in self.at.agents.values()]:
                if rng.random() < 0.5:
                    process.skew = rng.choice((-40.0, -2.0, -0.3, 0.3, 2.0, 40.0))

    def _trouble(self, fault: str) -> Callable[[], Any] | None:
        return {
            "leader changes": self._leaders, "restarts": self._restarts, "power cut": self._power_cut, "crashes": self._crashes,
            "freezes": self._freezes, "cuts": self._cuts, "partitions": self._partitions, "callee crashes": self._callees,
            "caller crashes": self._desk_dies, "consumers": self._consumers, "clocks": self._clocks,
            "stops": self._stops,
        }.get(fault)  # fmt: skip

    async def _pause(self, shorter: float = 1.0) -> None:
        await asyncio.sleep(self.rng.random() * self.story.seconds * shorter)

    def _died(self, what: str) -> None:
        """Something died: was anything in flight?"""
        self.totals[what] += 1
        self.at.checks.say("trouble", what)
        if self.at.checks.open_hops():
            self.totals["in flight"] += 1
        self.totals["approvals pending"] += len(waiting(self.at.checks.checker.books()))

    async def _leaders(self) -> None:
        for _ in range(self.rng.choice((1, 2))):
            await self._pause(0.8)
            names = ["LEDGER"] if self.rng.random() < 0.6 else sorted(self.at.js.streams)
            self._died("leader changed")
            self.at.js.change_leader(names, self.rng.choice((0.05, 0.4, 1.5, 5.6)))

    async def _restarts(self) -> None:
        await self._pause()
        self._died("server restarted")
        self.at.server.stop()
        self.at.js.crash({})
        await asyncio.sleep(self.rng.choice((0.05, 0.5, 2.5)))
        self.at.server.start()

    async def _power_cut(self) -> None:
        await self._pause()
        self._died("power cut")
        self.at.server.stop()
        lost = self.at.js.crash({"LEDGER": self.rng.choice((1, 1, 2, 5, 20))})
        self.at.checks.rolled_back(lost.get("LEDGER", []))
        self.at.halt_allowed = True
        await asyncio.sleep(self.rng.choice((0.05, 0.5, 2.5)))
        self.at.server.start()

    async def _crashes(self) -> None:
        for _ in range(self.rng.choice((1, 1, 2, 4))):
            replica = self.rng.choice(self.at.replicas)
            process = replica.process

            def die(replica: Replica = replica) -> None:
                self._died("replica crashed")
                replica.kill()
                if self.rng.random() < 0.1:
                    replica.disk.lose()
                self.at.loop.call_later(self.rng.choice((0.05, 0.5, 2.0)), self._again, replica, context=SERVER)

            process.fate, process.doom = die, process.steps + self.rng.randrange(1, self.rng.choice((50, 300, 1500)))
            await self._pause()

    def _again(self, replica: Replica) -> None:
        if not replica.process.alive:
            replica.start()

    async def _freezes(self) -> None:
        for _ in range(self.rng.choice((1, 2, 3))):
            replica = self.rng.choice(self.at.replicas)
            process = replica.process

            def stop(process: Any = process) -> None:
                if process.frozen or self.calm:
                    return
                self._died("replica frozen")
                process.freeze()
                seconds = self.rng.choice((0.1, 0.7, 2.5, 5.0, 12.0))
                self.at.loop.call_later(seconds, self._thaw, process, context=SERVER)

            process.fate, process.doom = stop, process.steps + self.rng.randrange(1, self.rng.choice((50, 300, 1500)))
            await self._pause()

    def _thaw(self, process: Any) -> None:
        if process.frozen:
            self.at.checks.disturbed[process.name] = self.at.loop.now
            process.thaw(self.at.loop)

    async def _cuts(self) -> None:
        for _ in range(self.rng.choice((1, 2, 5))):
            await self._pause(0.6)
            peers = list(self.at.server.peers.values())
            if peers:
                self._died("connection cut")
                self.rng.choice(peers).end()

    async def _partitions(self) -> None:
        for _ in range(self.rng.choice((1, 2))):
            await self._pause(0.7)
            replica = self.rng.choice(self.at.replicas)
            self._died("replica cut off")
            self.at.network.severed.add(replica.name)
            await asyncio.sleep(self.rng.choice((0.2, 1.0, 3.0, 7.0)))
            self._heal(replica.name)

    def _heal(self, name: str) -> None:
        if name in self.at.network.severed:
            self.at.network.severed.discard(name)
            self.at.checks.disturbed[name] = self.at.loop.now
            for wire in list(self.at.network.wires):
                wire.heal()

    async def _callees(self) -> None:
        for _ in range(self.rng.choice((1, 2))):
            await self._pause()
            people = [*self.at.agents.values(), *self.at.odd.values()]
            person = self.rng.choice(people)
            self._died("callee crashed")
            person.process.die()
            await asyncio.sleep(self.rng.choice((0.02, 0.3, 1.0)))
            person.start()

    async def _desk_dies(self) -> None:
        await self._pause()
        desk = self.at.callers["desk"]
        self._died("caller crashed")
        desk.process.die()
        await asyncio.sleep(0.2)
        desk.start()

    async def _consumers(self) -> None:
        """A consumer that was kept in one server's memory is gone, and nobody says so."""
        for _ in range(self.rng.choice((1, 2, 4))):
            await self._pause(0.5)
            found = [one for stream in self.at.js.streams.values() for one in stream.consumers.values()]
            if found:
                self.totals["consumer lost"] += 1
                self.rng.choice(found).remove()

    async def _stops(self) -> None:
        """An operator stops something while openings wait for a ledger whose disk stalls, or one replica cannot hear of it."""
        await self._pause(0.4)
        streams = self.at.js.streams
        stalled = self.rng.random() < 0.5
        if stalled:
            self.at.js.counts["slow commits"] += 1
            streams["LEDGER"].ready_at = self.at.loop.now + 2.8
            await asyncio.sleep(0.1 + self.rng.random() * 0.3)
        elif REVOCATIONS in streams and streams[REVOCATIONS].consumers:
            self.totals["consumer lost"] += 1
            self.rng.choice(list(streams[REVOCATIONS].consumers.values())).remove()
        everything = ("all", "everything")
        kind, name = self.rng.choice((*STOPPABLE, everything, everything, everything))
        await self._act(Act(0.0, f"revoke {kind}", name))
        if self.at.town.clustered and not stalled:
            # Whoever has not heard of it yet does not hear of it soon.
            self._died("leader changed")
            self.at.js.change_leader([REVOCATIONS], 5.6)

    async def _clocks(self) -> None:
        await self._pause()
        process = self.rng.choice(self.at.replicas).process
        process.skew += self.rng.choice((-5.0, 5.0, 65.0))
        self.totals["clock jumped"] += 1
