"""One run: the story is played, things go wrong, then all is calm, and every promise must have been kept."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from remit.errors import Refused, ToolFailed
from remit_broker.core.revocations import Entry
from remit_broker.core.times import rfc3339
from remit_broker.hop.txn import Delegation, Opened, close_txn, open_txn, revoke
from remit_schemas.budget import Budget
from remit_schemas.errors import Refusal
from remit_schemas.scope import Scope, parse_scope
from tests.simulation.approvers import People
from tests.simulation.borders import named
from tests.simulation.crossings import Crossings, Task
from tests.simulation.people import Person, PersonProcess, Raw, all_calls, crossed
from tests.simulation.plans import Act, Plan, Story, story
from tests.simulation.replicas import Replica
from tests.simulation.seeded import wall
from tests.simulation.town import TOWNS, Base
from tests.simulation.troubles import Troubles

CALM = 90.0
"""Seconds in which everything that was open must end once nothing goes wrong any more."""


class Outcome(NamedTuple):
    """What a run left behind."""

    seed: int
    town: str
    violations: list[tuple[float, str, str, str]]
    totals: dict[str, int]
    seconds: float
    digest: str
    faults: tuple[str, ...]


class Run(Troubles, People, Crossings):
    """The acting of one story."""

    def __init__(self, at: Base, seed: int) -> None:
        at.reseed(seed)
        self.at, self.rng = at, at.rng
        self.story: Story = story(random.Random(f"story {seed}"), clustered=at.town.clustered, tenants=at.town.tenants)
        self.opened: list[Task] = []
        self.calm = False
        self._began = at.loop.now
        self._revoked: set[tuple[str, str]] = set()
        self._lifted: Counter[tuple[str, str]] = Counter()
        self.totals = at.checks.totals

    async def all(self) -> None:
        """From the first txn to the last check."""
        say = self.at.checks.say
        self.at.checks.timely, self.at.checks.grace = "clocks" not in self.story.faults, self.at.town.grace
        self.at.checks.exact = not self.story.faults
        say("story", sorted(self.story.faults), self.story.acts)
        self._unkind()
        plays = [asyncio.ensure_future(self._txn(plan)) for plan in self.story.txns]
        acts = [asyncio.ensure_future(self._act(act)) for act in self.story.acts]
        deciding = asyncio.ensure_future(self._people())
        troubles = [
            asyncio.ensure_future(work()) for fault in sorted(self.story.faults) if (work := self._trouble(fault))
        ]
        await asyncio.sleep(self.story.seconds)
        await asyncio.wait([*plays, *acts], timeout=20)
        for task in (*troubles, deciding):
            task.cancel()
        await self._be_calm()
        await self._settle()

    # The play

    async def _ask(self, work: Callable[[Replica], Any], tries: int = 3) -> Any:
        """Have some replica do something, as an operator would; None where it did not come to it."""
        for _ in range(tries):
            serving = self.at.serving()
            if not serving:
                await asyncio.sleep(0.3)
                continue
            replica = self.rng.choice(serving)
            task = replica.process.run(work(replica))
            await asyncio.wait({task}, timeout=8)
            if task.done() and not task.cancelled() and task.exception() is None:
                return task.result()
            if task.done() and not task.cancelled() and not isinstance(task.exception(), Refusal):
                self.at.checks.broken("fault", "operator", repr(task.exception()))
            await asyncio.sleep(0.2)
        return None

    async def _open(self, plan: Plan) -> Opened | None:
        wish = Delegation(
            tenant=plan.get("tenant", "default"), user=plan["user"], agent="desk",
            scope=Scope.of(parse_scope(text) for text in plan["scope"]),
            budget=Budget(*plan["budget"]), ttl=plan["ttl"], auth="sim", max_depth=plan["max_depth"],
        )  # fmt: skip

        async def begin(replica: Replica) -> Opened:
            return await open_txn(wish, replica.ports_of(wish.tenant))

        found: Opened | None = await self._ask(begin)
        if found is not None:
            self.opened.append(Task(wish.tenant, found.txn, found.grant))
            self.at.checks.borders.opened(wish.tenant, found.txn)
        return found

    async def _txn(self, plan: Plan) -> None:
        opened = await self._open(plan)
        if opened is None:
            return
        desk = self.at.callers[named("desk", plan.get("tenant", "default"))]
        task = desk.process.run(self._desk(desk, opened, plan))
        await asyncio.wait({task}, timeout=30)

    async def _desk(self, desk: Person, opened: Opened, plan: Plan) -> None:
        """What the first agent does with a task."""
        assert desk.agent is not None
        try:
            async with desk.agent.task(opened.grant) as task:
                if plan["close"] == "early":
                    calls = asyncio.ensure_future(all_calls(task, plan["calls"], together=plan["together"]))
                    await asyncio.sleep(self.story.seconds / 2)
                    await task.close()
                    await calls
                else:
                    await all_calls(task, plan["calls"], together=plan["together"])
                    if plan["close"] == "late":
                        await task.close()
        except (Refused, ToolFailed) as no:
            desk.told("task ended", opened.txn, str(no)[:100])

    async def crossed_call(self, desk: Person, call: Plan) -> str:
        """Make a call on the bus as ``desk``, with what is another tenant's; what came of it."""
        assert desk.agent is not None
        asking = desk.process.run(crossed(desk.agent, call))
        await asyncio.wait({asking}, timeout=5)
        return asking.result() if asking.done() and not asking.cancelled() else "silence"

    async def _act(self, act: Act) -> None:
        await asyncio.sleep(act.at)
        verb, _, what = act.what.partition(" ")
        if what in ("hop", "txn"):
            await self._revoke_grant(what)
            return
        if verb in ("policies", "cross"):
            await (self._edit if verb == "policies" else self._cross)(act.about)
            return
        name = act.about
        entry = Entry(
            kind=what,  # type: ignore[arg-type]
            name=name,
            who="op",
            at=rfc3339(wall()),
            state="revoked" if verb == "revoke" else "reinstated",
        )
        # A pattern of tools is only watched as the one resource that the plans use.
        watched = what, {"mcp/tools/*": "mcp/tools/read", "agent/odd/*": "agent/odd/do"}.get(name, name)
        lifted = self._lifted[watched]
        if verb == "reinstate":
            self._lifted[watched] += 1
            self.at.checks.revoked.pop(watched, None)
        else:
            self._revoked.add((what, name))

        async def put(replica: Replica) -> bool:
            await replica.broker.revocations.put(entry)  # type: ignore[union-attr]
            return True

        # Where somebody lifts it while it is still being written, either may come last.
        # Once all is calm an operator goes on trying until it is written.
        if await self._ask(put, tries=60 if self.calm else 3) and verb == "revoke" and self._lifted[watched] == lifted:
            self.at.checks.revoked[watched] = self.at.loop.now
            self.at.checks.say("revoked", what, name)

    async def _revoke_grant(self, what: str) -> None:
        checks = self.at.checks
        jtis = [
            (books.key[0], f"{txn}.{account.hop}.{account.n}") for books in checks.checker.books()
            for account in books.accounts.values()
            if account.state == "open" and (account.parent is None) == (what == "txn") for txn in (books.key[1],)
        ]  # fmt: skip
        if not jtis:
            return
        tenant, jti = self.rng.choice(jtis)

        async def work(replica: Replica) -> bool:
            with contextlib.suppress(Refusal):
                await revoke(tenant, jti, "op", "", replica.ports_of(tenant))
                await replica.broker.revocations.announce(tenant, jti)  # type: ignore[union-attr]
            return True

        await self._ask(work, tries=1)

    # The end

    async def _be_calm(self) -> None:
        """Nothing goes wrong any more; who is dead is started again."""
        self.calm = True
        at = self.at
        at.checks.say("calm")
        store = at.js.faults
        store.lost_acks = store.late_acks = store.slow_commits = 0.0
        at.server.duplicates = 0.0
        if not at.server.up:
            at.server.start()
        for name in sorted(at.network.severed):
            self._heal(name)
        for replica in at.replicas:
            replica.process.doom = -1
            replica.process.skew = replica.disk.unkind = 0.0
            self._thaw(replica.process)
            if not replica.process.alive:
                replica.start()
        self._agreed()
        people: list[Person | Raw] = [*at.agents.values(), *at.callers.values(), *at.odd.values()]
        for person in people:
            person.process.skew = 0.0
            if not person.process.alive:
                person.start()
        if not await at.until(lambda: all(replica.ready for replica in at.replicas), 40) and not at.halt_allowed:
            at.checks.broken("calm.replica", "replica", "a replica does not start again")
        elif not await at.until(self._hearing, 30) and not at.halt_allowed:
            at.checks.broken("calm.silent", "replica", "a replica does not hear of revocations again")
        for what, name in sorted(self._revoked):
            await self._act(Act(0.0, f"reinstate {what}", name))

    def _hearing(self) -> bool:
        return all(replica.broker is not None and replica.broker.revocations.fresh for replica in self.at.replicas)

    async def _settle(self) -> None:
        at, checks = self.at, self.at.checks
        halted = [
            replica
            for replica in at.replicas
            if replica.broker is not None and replica.ready and replica.broker.ledger.halted
        ]
        if halted and not at.halt_allowed:
            checks.broken("ledger.halted", halted[0].name, str(halted[0].broker.ledger.halted))
        if at.halt_allowed:
            self.totals["halted"] += len(halted)
            checks.finish(settled=False)
            return
        await at.until(lambda: bool(checks.violations) or not checks.open_hops(), CALM, every=0.25)
        # What waits for an input waits as long as its task: that one ends now.
        for tenant, txn in [] if checks.violations else checks.waiting():
            await self._ask(functools.partial(_closed, tenant, txn))
        await asyncio.sleep(1.2)
        # What a partition held back until everything was calm opened its hops only then.
        await at.until(lambda: bool(checks.violations) or not checks.open_hops(), CALM, every=0.25)
        if checks.violations:
            return
        checks.finish(settled=True)
        checks.counted_once(exactly=not self.story.faults)
        await self._indexes()
        await self._folds()
        await self._accounts()
        await self._probe()

    async def _indexes(self) -> None:
        """Every replica's index holds what the ledger holds."""
        stream = self.at.js.streams["LEDGER"]
        for replica in self.at.replicas:
            broker = replica.broker
            if broker is None or not replica.ready:
                continue
            if not await self.at.until(lambda b=broker: b.index.position >= stream.last_seq or b.index.halted, 20):
                self.at.checks.broken("index.behind", replica.name, f"{broker.index.position} of {stream.last_seq}")
                continue
            if broker.index.halted:
                self.at.checks.broken("index.halted", replica.name, str(broker.index.halted))
                continue
            db = replica.disk.db
            assert db is not None
            rows = db.execute("SELECT count(*), coalesce(max(stream_seq), 0) FROM record").fetchone()
            if rows != (len(stream.messages), stream.last_seq):
                self.at.checks.broken("index.differs", replica.name, f"it has {rows}, the ledger {stream.last_seq}")
            if left := db.execute("SELECT count(*) FROM broken").fetchone()[0]:
                self.at.checks.broken("index.broken", replica.name, f"{left} txns are marked as broken")
            for txn, spent in db.execute("SELECT txn, spent_calls FROM txn").fetchall():
                root = self.at.checks.books((self.at.checks.borders.owner[txn], txn)).root
                if root is None or root.spent["calls"] != spent:
                    self.at.checks.broken(
                        "index.differs", txn, f"it says {spent} calls, the ledger {root and root.spent}"
                    )

    async def _folds(self) -> None:
        """What each replica makes of each txn is what its records say."""
        for replica in self.at.serving():
            for books in self.at.checks.checker.books():
                task = replica.process.run(replica.ports.ledger.newest(*books.key))
                await asyncio.wait({task}, timeout=10)
                if task.done() and task.exception() is None:
                    self.at.checks.compare(books.key, task.result().nodes)

    async def _accounts(self) -> None:
        """When nothing runs, nothing is held; unless its replica died with it, which counts as spent until the window ends."""
        if not self.at.town.caps or self.story.faults & {
            "crashes",
            "freezes",
            "partitions",
            "restarts",
            "cuts",
            "leader changes",
        }:
            return
        await asyncio.sleep(4.0)
        for replica in self.at.serving():
            assert replica.broker is not None
            for tenant in self.at.town.tenants:
                task = replica.process.run(replica.broker.accounts.report(tenant))
                await asyncio.wait({task}, timeout=10)
                for row in task.result() if task.done() and task.exception() is None else ():
                    self.at.checks.caps.account(tenant, row)

    async def _probe(self) -> None:
        """The system works again."""
        if self.at.town.caps:
            return
        plan: Plan = {
            "user": "eve", "budget": [1000, 1000, 40], "ttl": 60, "scope": ["agent/**"], "max_depth": 4, "close": None,
            "calls": [{"to": "agent/leaf/do", "plan": {}, "ttl": 5.0, "budget": [10, 10, 1]}], "together": False,
        }  # fmt: skip
        opened = None
        for _ in range(20):
            opened = opened or await self._open(plan)
            await asyncio.sleep(0.0 if opened else 1.0)
        if opened is None:
            self.at.checks.broken("calm.open", "probe", "no txn can be opened when all is calm")
            return
        desk = self.at.callers["desk"]
        assert desk.agent is not None and isinstance(desk.process, PersonProcess)

        async def ask() -> list[str]:
            async with desk.agent.task(opened.grant) as task:
                return await all_calls(task, plan["calls"])

        said: Any = "nothing"
        for _ in range(12):
            asking = desk.process.run(ask())
            await asyncio.wait({asking}, timeout=15)
            said = asking.exception() or asking.result() if asking.done() else "nothing"
            if said == ["value"]:
                return
            await asyncio.sleep(2.0)
        self.at.checks.broken("calm.call", "probe", f"a call does not work when all is calm: {said}")


async def _closed(tenant: str, txn: str, replica: Replica) -> bool:
    return (await close_txn(tenant, txn, "op", "closed", replica.ports_of(tenant))).state == "closed"


WHOLE_EVERY = 10


def is_whole(seed: int) -> bool:
    """Whether the whole broker plays this seed, or its core: nine of ten are of the core, which is so much cheaper."""
    return seed % WHOLE_EVERY == 0


def town_of(seed: int) -> int:
    """Which town a seed is played in."""
    return random.Random(f"town {seed}").choices(range(len(TOWNS)), (30, 15, 15, 15, 10, 15))[0]


def play(seed: int, at: Base, run: Run) -> Outcome:
    """Play ``seed`` in a scene that is set up."""
    error = ""
    try:
        at.loop.run_until_complete(run.all())
    except Exception as end:  # what ends a run is a finding too
        error = repr(end)
    checks = at.checks
    if error:
        checks.broken("run.ended", f"seed {seed}", error)
    for fault in at.loop.faults:
        checks.broken("fault", "loop", fault)
    checks.say("end", at.loop.now)
    totals = dict(checks.totals) | {key: value for key, value in at.js.counts.items() if value}
    totals["handles"] = at.loop.handles
    violations = [(when, *found) for when, found in checks.violations]
    return Outcome(seed, at.town.name, violations, totals, at.loop.now, checks.digest, tuple(sorted(run.story.faults)))
