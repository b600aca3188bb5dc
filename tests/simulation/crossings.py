"""Somebody of one tenant tries what they have learned of another's: grants, ids of tasks, hops, approvals. Nothing may come of it."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from remit_broker.hop.txn import close_txn, revoke
from tests.simulation.borders import named
from tests.simulation.plans import Plan, Story
from tests.simulation.replicas import Replica
from tests.simulation.rules import APPROVERS


class Task(NamedTuple):
    """A task that was opened, and whose it is."""

    tenant: str
    txn: str
    grant: str


class Crossings:
    """Who tries it in a run."""

    at: Any
    rng: random.Random
    story: Story
    opened: list[Task]
    _ask: Any
    _decide: Any

    async def _cross(self, how: str) -> None:
        """With what is another tenant's."""
        theirs = [task for task in self.opened if task.tenant != self.opened[0].tenant]
        known = self.at.checks.checker._books
        if not theirs or any((task.tenant, task.txn) not in known for task in (self.opened[0], *theirs)):
            return  # a power cut took it
        mine, other = self.opened[0], self.rng.choice(theirs)
        if self.rng.random() < 0.5:
            mine, other = other, mine
        self.at.checks.say("cross", how, mine.tenant, other.txn)
        if how in ("decide", "revoke", "shut"):
            word = await self._operator(how, mine, other)
        else:
            desk = self.at.callers[named("desk", mine.tenant)]
            word = await self.crossed_call(desk, self._call(how, mine, other))
        self.at.checks.borders.crossed(how, word)

    async def crossed_call(self, desk: Any, call: Plan) -> str:
        """Make a call on the bus as ``desk``; what came of it."""
        raise NotImplementedError

    def _call(self, how: str, mine: Task, other: Task) -> Plan:
        """What is sent: ``txn`` in the subject, ``grant``, and ids."""
        books = self.at.checks.checker._books[other.tenant, other.txn]
        found: Plan = {
            "to": "agent/leaf/do",
            "plan": {},
            "ttl": 2.0,
            "txn": other.txn,
            "grant": other.grant,
            "budget": [1, 1, 1],
        }
        match how:
            case "smuggle":
                found["txn"] = mine.txn
            case "close":
                found["to"] = "remit/txn/close"
            case "wait":
                found |= {"to": "remit/approval/wait", "args": {"id": next(iter(books.approvals), "0" * 16)}}
            case "approval":
                asked = next(iter(books.approvals.values()), None)
                found |= {
                    "txn": mine.txn,
                    "grant": mine.grant,
                    "approval": "0" * 16 if asked is None else asked.asked["id"],
                }
                found["to"] = "agent/leaf/careful" if asked is None else asked.asked["resource"]
            case "resume":
                hops = [account for account in books.accounts.values() if account.parent is not None]
                hop = self.rng.choice(hops) if hops else None
                found |= {"resume": hop.hop if hop else "0" * 16, "to": hop.resource if hop else found["to"]}
        return found

    async def _operator(self, how: str, mine: Task, other: Task) -> str:
        """As an operator or approver of ``mine``'s tenant."""
        if how == "decide":
            books = self.at.checks.checker._books[other.tenant, other.txn]
            name = next(iter(books.approvals), "0" * 16)
            return "done" if await self._decide(mine.tenant, (other.txn, name), APPROVERS[0], "approve") else "refused"

        async def work(replica: Replica) -> bool:
            ports = replica.ports_of(mine.tenant)
            if how == "shut":
                await close_txn(mine.tenant, other.txn, "op", "closed", ports)
            else:
                root = self.at.checks.checker._books[other.tenant, other.txn].root.hop
                await revoke(mine.tenant, f"{other.txn}.{root}.1", "op", "", ports)
            return True

        return "done" if await self._ask(work, tries=1) else "refused"
