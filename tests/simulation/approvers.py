"""People who decide: they approve, deny, decide twice, too late, on their own calls, and who may not tries it too."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from remit_broker.core.approvals import Approval
from remit_broker.hop.decide import Approver, Verdict, decide
from tests.simulation.consent import waiting
from tests.simulation.plans import Story
from tests.simulation.replicas import Replica
from tests.simulation.rules import APPROVERS, NOBODY

DECIDING = (("approve", 62), ("again", 8), ("deny", 7), ("own", 8), ("nobody", 5), ("ended", 10))


class People:
    """Whoever is asked in a run."""

    at: Any
    rng: random.Random
    story: Story
    _ask: Any
    _newest = ""

    def _agreed(self) -> None:
        """When all is calm every machine has the newest policies, also one that died over an edit."""
        for replica in self.at.replicas:
            if self._newest:
                replica.rules.edit(self._newest, self.at.loop.now)

    async def _people(self) -> None:
        """Look now and then at what waits, and say something to it, until nobody plays any more."""
        says = asyncio.Semaphore(3)
        while True:
            await asyncio.sleep(self.rng.expovariate(1.0 / self.story.people))
            found = waiting(self.at.checks.checker.books())
            if found and not says.locked():
                (tenant, txn), approval = self.rng.choice(found)
                await says.acquire()
                saying = asyncio.ensure_future(self._say(tenant, txn, approval))
                saying.add_done_callback(lambda _: says.release())

    async def _say(self, tenant: str, txn: str, approval: Any) -> None:
        what = self.rng.choices([name for name, _ in DECIDING], [weight for _, weight in DECIDING])[0]
        books = self.at.checks.checker._books[tenant, txn]
        who, verdict = self.rng.choice(APPROVERS), "approve"
        if what == "again" and approval.yes:
            who = sorted(approval.yes)[0]
        elif what == "deny":
            verdict = "deny"
        elif what == "own":
            who = books.user
        elif what == "nobody":
            who = NOBODY
        elif what == "ended":
            approval = self.rng.choice(list(books.approvals.values()))
        await self._decide(tenant, (txn, approval.asked["id"]), who, verdict)

    async def _decide(self, tenant: str, which: tuple[str, str], who: str, verdict: Verdict | str) -> Approval | None:
        """What ``who``, of ``tenant``, says to a request of a txn; None where it was not taken."""
        by = Approver(who=f"sim:{who}", user=who, tenant=tenant, auth="sim")

        async def say(replica: Replica) -> Approval:
            return await decide(*which, verdict, "", by, replica.ports_of(tenant))  # type: ignore[arg-type]

        found: Approval | None = await self._ask(say, tries=1)
        return found

    async def _edit(self, revision: str) -> None:
        """The policies change: at one machine after the other, as their folders are brought up to date."""
        self.at.checks.totals["policies changed"] += 1
        self.at.checks.say("policies", revision[:8])
        self._newest = revision
        for replica in self.at.replicas:
            if replica.process.alive:
                replica.process.run(_take(replica, revision, self.at.loop))
            else:
                replica.rules.edit(revision, self.at.loop.now)
            await asyncio.sleep(self.rng.random() * 0.3)


async def _take(replica: Replica, revision: str, loop: Any) -> None:
    replica.rules.edit(revision, loop.now)
