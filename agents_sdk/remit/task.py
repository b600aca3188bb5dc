"""A task from outside the chain: opened for a user, or carried on with a grant that somebody was given."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from remit.caller import Call, Caller, Scopes, ask_service
from remit.errors import Refused, as_refused
from remit.plain import budget_of, details, seconds
from remit.run import Run
from remit_schemas.budget import ZERO, Budget
from remit_schemas.grant import parse, verify
from remit_schemas.scope import format_detail

if TYPE_CHECKING:
    from remit.agent import Agent


class Task(Caller):
    """What the holder of a grant does with it: ``async with agent.task(grant) as task``.

    Leaving the block cancels the calls in flight. It does not close the txn, since the same grant may be used again until it
    expires: :meth:`close` does, and whoever opened the txn with :func:`open_task` need not think of it.
    """

    def __init__(self, agent: Agent, grant: str) -> None:
        """Raises :class:`~remit.errors.Refused` for what is no grant."""
        with as_refused():
            self._unverified = parse(grant)
            claims = self._unverified.claims
        # The connection is made when the block is entered; until then there is nobody to ask.
        super().__init__(None, grant, claims.txn, claims.budget, float(claims.exp))  # type: ignore[arg-type]
        self.user = claims.sub
        self._agent = agent
        self._connected_here = False

    async def __aenter__(self) -> Task:
        self._connected_here = not self._agent.connected
        self._link = await self._agent.connect()
        try:
            self._check()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()
        await self._leave()

    async def close(self) -> dict[str, Any]:
        """Close the txn: nothing more can be called under it, calls in flight are charged. Only the root's holder may.

        Returns ``{"txn", "spent"}``. Raises :class:`~remit.errors.Refused`.
        """
        closed: dict[str, Any] = await ask_service(self._link, ("txn", "close"), {}, txn=self.txn, grant=self._grant)
        self._ended = True
        return closed

    async def _begin(self, call: Call) -> Run:
        if self._link is None:
            raise RuntimeError("a task calls from inside its block: async with agent.task(grant) as task")
        return await super()._begin(call)

    def _check(self) -> None:
        """The broker will check the grant; with keys at hand a mistake is named here, before anything is sent."""
        pinned = self._agent.pinned
        if pinned is not None:
            issuer, keys = pinned
            with as_refused():
                verify(self._unverified, keys, issuer=issuer, audience=self._agent.name, now=time.time())

    async def _leave(self) -> None:
        if self._connected_here:
            await self._agent.stop(0)


@asynccontextmanager
async def open_task(
    *, user: str | None = None, grant: str | None = None, as_: str = "cli", credentials: str | os.PathLike[str] | None = None,
    bus: str | None = None, scopes: Scopes | None = None, budget: Budget | str | None = None, ttl: str | float | None = None,
) -> AsyncIterator[Task]:  # fmt: skip
    """A task as the agent ``as_``: opened for the user whose token is ``user``, or with a ``grant`` that was given.

    A task that was opened here is closed when the block is left; one that came with a grant is not. ``scopes``, ``budget`` and
    ``ttl`` are what is asked for a new one. Raises :class:`~remit.errors.Refused` or ``CredentialsError``.
    """
    from remit.agent import Agent

    if (user is None) == (grant is None):
        raise ValueError("open_task takes the token of a user, or a grant: one of the two")
    agent = Agent(as_, credentials, bus)
    try:
        await agent.connect()
        token = grant if grant is not None else await _open(agent, user or "", scopes, budget, ttl)
        async with agent.task(token) as task:
            try:
                yield task
            finally:
                if grant is None:
                    await _close(task)
    finally:
        await agent.stop(0)


async def _open(
    agent: Agent, user: str, scopes: Scopes | None, budget: Budget | str | None, ttl: str | float | None
) -> str:
    args: dict[str, Any] = {"user_token": user}
    if scopes is not None:
        args["scopes"] = [format_detail(detail) for detail in details(tuple(scopes))]
    if budget is not None:
        wish = budget_of(budget, ZERO)
        args["budget"] = {"usd_micros": wish.usd_micros, "tokens": wish.tokens, "calls": wish.calls}
    if ttl is not None:
        args["ttl_ms"] = max(1, int(seconds(ttl) * 1000))
    opened = await ask_service(await agent.connect(), ("txn", "open"), args)
    return str(opened["grant"])


async def _close(task: Task) -> None:
    from remit.client import log

    try:
        await task.close()
    except Refused as no:
        # It ends by itself when its grant expires; an exception here would hide that of the block.
        log.warning("txn %s was not closed: %s", task.txn, no)
