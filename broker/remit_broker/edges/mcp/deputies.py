"""Sub-agents that a client names: each acts below the agent that the client calls as, with a grant of its own, and stands in the chain.

A client says in ``_meta`` of a request for which of its sub-agents it is (``dev.remit/agent``). That is a claim of the client's, as its
session is, so only names that the operator let it have are taken. The grant is handed on to that agent as it would be over OAuth: by
a hop to ``agent/<agent>/$delegate``, decided and recorded like every hop, open until the task ends.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from remit_broker.core import nkey
from remit_broker.core.registry import Principal
from remit_broker.core.times import rfc3339
from remit_broker.hop.exchange import asked, exchange, to
from remit_broker.hop.hop import Ask, Hop, Refused
from remit_broker.hop.renew import renew
from remit_broker.ports import Ports
from remit_schemas.envelope import Request, Want
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.grant import parse

AGENT: Final = "dev.remit/agent"
EARLY: Final = 20.0
"""Seconds before the end of a grant in which it is renewed."""


class Holding(NamedTuple):
    """What a call is made with."""

    caller: str
    txn: str
    grant: str


class Deputies:
    """Those of one task. ``names`` are the agents by the names that the client may say."""

    def __init__(self, tenant: str, names: Mapping[str, str], ports: Ports, agents: Any) -> None:
        self._tenant, self._names, self._ports, self._agents = tenant, names, ports, agents
        self._kept: dict[tuple[str, str], tuple[str, float]] = {}
        self._turn = asyncio.Lock()

    async def of(self, held: Holding, named: Any) -> Holding:
        """What a call of the sub-agent ``named`` is made with, below ``held``. Refuses OUT_OF_SCOPE, and whatever stops the handing on.

        INVARIANT: a client's sub-agents are those that an operator named, and each is in the chain
        (test_a_sub_agent_that_a_client_names_is_in_the_chain, test_a_sub_agent_that_nobody_named_is_refused).
        """
        agent = self._names.get(named) if isinstance(named, str) else None
        if agent is None:
            raise refusal(
                Code.OUT_OF_SCOPE, f"clients have no sub-agent {str(named)[:64]!r} here", rule="mcp.sub_agents",
                ask=f"name one of: {', '.join(sorted(self._names)) or 'none'}; an operator can add one: mcp.sub_agents",
            )  # fmt: skip
        async with self._turn:
            token, exp = self._kept.get((held.txn, agent), ("", 0.0))
            if exp - self._ports.clock.now() < EARLY:
                token, exp = await self._renewed(held, agent, token) or await self._handed_on(held, agent)
                self._kept = {key: kept for key, kept in self._kept.items() if key[0] == held.txn}
                self._kept[held.txn, agent] = token, exp
            return Holding(agent, held.txn, token)

    async def _handed_on(self, held: Holding, agent: str) -> tuple[str, float]:
        await self._enrol(agent)
        done = await exchange(self._ask(held.caller, held, agent), asked(held.grant, Want()), self._ports, None)
        if isinstance(done, Refused):
            raise Refusal(done.body)
        return done.grant, float(done.exp)

    async def _renewed(self, held: Holding, agent: str, token: str) -> tuple[str, float] | None:
        """The next grant of a sub-agent that has one; None where there is none, or none any more."""
        if not token or parse(token).claims.exp <= self._ports.clock.now():
            return None
        ask = self._ask(agent, held, agent)
        try:
            found = await renew(Hop(ask=ask, id=self._ports.ids.hop(), request=Request(grant=token)), self._ports)
        except Refusal:
            return None
        return str(found["grant"]), float(found["exp"])

    def _ask(self, caller: str, held: Holding, agent: str) -> Ask:
        clock = self._ports.clock
        return Ask(
            tenant=self._tenant, caller=caller, txn=held.txn, resource=to(agent), reply="", data=b"", at=clock.now(),
            mono=clock.monotonic(),
        )  # fmt: skip

    async def _enrol(self, agent: str) -> None:
        """A sub-agent is an agent like any other, as which nobody connects: nobody has a private key to its public one."""
        if self._agents.principal(agent) is None:
            about = Principal(
                name=agent, kind="agent", nkey=nkey.public_text("U", secrets.token_bytes(32)), tenant=self._tenant, tier="client",
                created=rfc3339(self._ports.clock.now()),
            )  # fmt: skip
            await self._agents.add(about)
