"""The task of a client's session: opened when its first call is made, and another one when the first has served its time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Final, Protocol

import msgspec

from remit_broker.core.fold import Fold
from remit_broker.core.nkey import public_of
from remit_broker.core.registry import Principal
from remit_broker.core.times import rfc3339
from remit_broker.edges.mcp.access import Holder, User
from remit_broker.edges.mcp.deputies import Deputies, Holding
from remit_broker.hop.begin import Wish, delegated
from remit_broker.hop.exchange import to
from remit_broker.hop.txn import MAX_TTL, Delegation, close_txn, open_txn
from remit_broker.ports import Ports, Registry
from remit_schemas.budget import Budget
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.scope import Detail, Scope

IDLE: Final = 900.0
"""Seconds without a call after which the next one begins another task."""
PER_PRINCIPAL: Final = 200
CLAIMED: Final = 2000
"""Tasks at once that clients without sessions say they go on with, of one principal and of all; of more, the longest idle end."""
RECORDS: Final = 1600
"""Records of a task, from which on a call that no other runs beside begins the next one. One call has two, or more where it waits."""
LAST: Final = 1900
"""Records from which on a call waits until those beside it have ended, so that it can begin the next task."""
PATIENCE: Final = 10.0
"""Seconds for which it waits. Then it is made in the task as it is: another call may be waiting for this one."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What a session's task is given. ``ttl`` is in seconds, ``agent`` the name under which clients without a grant call."""

    agent: str
    scopes: tuple[Detail, ...]
    budget: Budget
    ttl: int = MAX_TTL
    idle: float = IDLE
    view: str = "tools"
    """What is shown of all servers where a client does not say: their tools, or tools that ``search`` them."""
    sub_agents: tuple[str, ...] = ()
    """Names that a client may give its sub-agents; ``explorer`` acts as the agent ``<agent>-explorer``."""

    def deputies(self) -> dict[str, str]:
        """The agents that sub-agents act as, by the names of clients."""
        return {name: f"{self.agent}-{name}" for name in self.sub_agents}

    def scope(self) -> Scope:
        """What a task is given: the scopes, and that it may be handed on to the sub-agents."""
        return Scope.of((*self.scopes, *(Detail(resource=str(to(agent))) for agent in self.deputies().values())))


def narrowed(rules: Rules, user: User) -> Rules:
    """``rules`` within what ``user`` allowed the program. Refuses OUT_OF_SCOPE where nothing is left.

    INVARIANT: a program calls what its user allowed it, and nothing else (test_a_program_calls_what_its_user_allowed_it).
    """
    if user.scope is None:
        return rules
    met = Scope.of(rules.scopes) & Scope.of(Detail(resource=pattern) for pattern in user.scope)
    if not met:
        raise refusal(
            Code.OUT_OF_SCOPE, "nothing of what was allowed is served to clients here", rule="mcp.scope",
            ask="log in again for another scope, or ask an operator: mcp.scopes",
        )  # fmt: skip
    return msgspec.structs.replace(rules, scopes=met.details)


class Agents(Registry, Protocol):
    """The registry, where an agent can be added."""

    async def add(self, principal: Principal) -> None:
        """Refuses CONFLICT."""


class Task(Protocol):
    """Whose authority the calls of a session have. ``deputies`` are the sub-agents that its client may name."""

    deputies: Deputies

    async def holding(self) -> Holding:
        """For the next call, until it has ``left``. Refuses what cannot be opened."""

    def going_on(self, held: Holding) -> Holding:
        """For a call that began with ``held`` and goes on. Refuses GRANT_CLOSED where its task is over."""

    def left(self, txn: str) -> None:
        """A call that held something of ``txn`` has ended."""

    async def end(self) -> None:
        """The session is over."""


class Continued:
    """The chain that a client's grant belongs to: its task is not ours, so nothing is opened, nor closed."""

    def __init__(self, holder: Holder, deputies: Deputies) -> None:
        self.holder, self.deputies = holder, deputies

    async def holding(self) -> Holding:
        """What the client brought last."""
        return self._brought()

    def going_on(self, held: Holding) -> Holding:
        """What the client brought last: the grant may have been renewed since the call began."""
        return self._brought()

    def _brought(self) -> Holding:
        grant = self.holder.grant
        return Holding(grant.claims.aud, grant.jti.txn, grant.token)

    def left(self, txn: str) -> None:
        """Nothing: the task goes on without us."""

    async def end(self) -> None:
        """Nothing: others may go on with it."""


class Opened:
    """A task of the user's own, held by the agent that stands for clients."""

    def __init__(self, user: User, rules: Rules, ports: Ports, agents: Agents, seed: str) -> None:
        self._user, self._rules, self._ports, self._agents, self._seed = user, rules, ports, agents, seed
        self.deputies = Deputies(user.tenant, rules.deputies(), ports, agents)
        self._now: Holding | None = None
        self._began = self._used = 0.0
        self._turn = asyncio.Lock()
        self._running: Counter[str] = Counter()
        self._quiet = asyncio.Event()

    async def holding(self) -> Holding:
        """The task as it is, or the next one: after :data:`IDLE` seconds, 8 h or :data:`RECORDS` records.

        INVARIANT: a session that goes on for ever is not one task for ever (test_a_session_goes_on_in_another_task_after_its_time).
        """
        async with self._turn:
            if self._now is None:
                self._now = await self._open(None)
            elif (earlier := await self._past(self._now)) is not None:
                self._now = await self._open(earlier)
            self._used = self._ports.clock.monotonic()
            self._running[self._now.txn] += 1
            return self._now

    def going_on(self, held: Holding) -> Holding:
        """The task as it is."""
        if self._now is None or self._now.txn != held.txn:
            raise refusal(
                Code.GRANT_CLOSED, "the task in which this call waited has ended", rule="mcp.task",
                ask="look at the chain before calling again", effect="unknown",
            )  # fmt: skip
        return self._now

    def left(self, txn: str) -> None:
        """One call less that a task must not be closed under."""
        self._running[txn] -= 1
        if self._running[txn] <= 0:
            del self._running[txn]
            self._quiet.set()

    async def end(self) -> None:
        """Close the task: nothing is open below it that anybody waits for."""
        async with self._turn:
            held, self._now = self._now, None
            if held is not None:
                await self._close(held)

    async def _past(self, held: Holding) -> Fold | None:
        """What the task came to, where its time is over and nothing runs in it."""
        clock, rules = self._ports.clock.monotonic(), self._rules
        fold = await self._ports.ledger.fold(self._user.tenant, held.txn)
        if fold.state == "open":
            old, busy = clock - self._began > rules.ttl - 60, held.txn in self._running
            idle = clock - self._used > rules.idle and not busy
            if not (idle or old or fold.seq + 1 >= RECORDS):
                return None
            # INVARIANT: no call is ended, or refused, because its session goes on in another task meanwhile
            # (test_calls_at_once_all_end_well_while_their_session_goes_on_in_other_tasks).
            if busy and not ((old or fold.seq + 1 >= LAST) and await self._ended(held.txn)):
                return None
            await self._close(held)
            fold = await self._ports.ledger.newest(self._user.tenant, held.txn)
        return fold

    async def _ended(self, txn: str) -> bool:
        """Whether the calls that run in a task end soon."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while txn in self._running:
                    self._quiet.clear()
                    await self._quiet.wait()
        return txn not in self._running

    async def _close(self, held: Holding) -> None:
        await close_txn(self._user.tenant, held.txn, held.caller, "closed", self._ports)

    async def _open(self, earlier: Fold | None) -> Holding:
        await self._enrol()
        # INVARIANT: what has reached the client in one task is on what it sends in the next
        # (test_labels_go_over_into_the_next_task_of_a_session).
        carried = tuple(sorted(earlier.reached.get(self._rules.agent, ()))) if earlier is not None else ()
        wish = msgspec.structs.replace(
            self._delegation(),
            carried=carried,
            continues=None if earlier is None else f"{earlier.txn}.{earlier.root}",
        )
        opened = await open_txn(wish, self._ports)
        self._began = self._ports.clock.monotonic()
        return Holding(self._rules.agent, opened.txn, opened.grant)

    def _delegation(self) -> Delegation:
        user, rules, proved = self._user, self._rules, self._user.identity
        if proved is not None:
            self._ports.identities.may_hold(rules.agent, proved)
            wish = Wish(token="", scopes=rules.scope().details, budget=rules.budget, ttl=rules.ttl)
            return delegated(proved, rules.agent, wish, self._ports)
        return Delegation(
            tenant=user.tenant, user=user.name, agent=rules.agent, scope=rules.scope(), budget=rules.budget,
            ttl=rules.ttl, auth=user.auth,
        )  # fmt: skip

    async def _enrol(self) -> None:
        """The agent that stands for clients is one like any other, so that policy can name it and operators can stop it.

        INVARIANT: nobody connects as it: its key is thrown away (test_nobody_connects_as_the_agent_of_clients).
        """
        name, tenant = self._rules.agent, self._user.tenant
        known = self._agents.principal(name)
        if known is None:
            about = Principal(
                name=name, kind="agent", nkey=public_of("U", self._seed), tenant=tenant, tier="client",
                created=rfc3339(self._ports.clock.now()),
            )  # fmt: skip
            await self._agents.add(about)
        elif known.kind != "agent":
            raise refusal(
                Code.CONFLICT, f"{name} is an MCP server, and clients call as an agent of that name", rule="mcp.agent",
                ask="give clients another name: agent under [mcp] in remit.toml",
            )  # fmt: skip


class Claims:
    """Tasks of clients without sessions: one for each request, or for all that their client says belong together."""

    def __init__(self, spawn: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._spawn = spawn
        self._tasks: dict[tuple[Hashable, ...], Task] = {}

    def task(self, whose: tuple[str, ...], view: str | None, claim: str, begin: Callable[[], Task]) -> Task:
        """The task for a request; with the same ``claim`` of the same principal at the same address it is the same.

        INVARIANT: what a client says of its requests is worth nothing to anybody else (test_a_claimed_session_is_its_users_alone).
        """
        if not claim:
            return begin()
        key = (whose, view, claim)
        found = self._tasks.pop(key, None) or begin()
        if isinstance(found, Continued):
            return found
        self._tasks[key] = found  # the last used is the last to go
        mine = [one for one in self._tasks if one[0] == whose]
        spare = mine[: max(0, len(mine) - PER_PRINCIPAL)] or list(self._tasks)[: max(0, len(self._tasks) - CLAIMED)]
        for one in spare:
            self._spawn(self._tasks.pop(one).end())
        return found

    def holds(self, task: Task) -> bool:
        """Whether further requests may belong to it."""
        return any(one is task for one in self._tasks.values())


def is_over(no: Refusal) -> bool:
    """Whether the task of a call had ended before it, so that the same call may be made in the next one."""
    return no.body.effect == "none" and no.body.code in (Code.GRANT_CLOSED, Code.GRANT_EXPIRED)
