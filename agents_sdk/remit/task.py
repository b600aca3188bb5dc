"""A task from outside the chain: opened for a user, or carried on with a grant that somebody was given."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from remit.caller import Call, Caller, ask_service
from remit.errors import as_refused
from remit.run import Run
from remit_schemas.grant import parse, verify

if TYPE_CHECKING:
    from remit.agent import Agent


class Task(Caller):
    """What the holder of a grant does with it: ``async with agent.task(grant) as task``.

    Leaving the block cancels the calls in flight. It does not close the txn, since the same grant may be used again until it
    expires: :meth:`close` does.
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
    *, grant: str, as_: str = "cli", credentials: str | os.PathLike[str] | None = None, bus: str | None = None
) -> AsyncIterator[Task]:
    """The task of a root ``grant``, carried on as the agent ``as_`` whom the grant names.

    Leaving the block cancels what still runs and leaves the txn open, since the same grant may be used again until it expires;
    :meth:`Task.close` closes it. Raises :class:`~remit.errors.Refused` or ``CredentialsError``.
    """
    from remit.agent import Agent

    agent = Agent(as_, credentials, bus)
    try:
        await agent.connect()
        async with agent.task(grant) as task:
            yield task
    finally:
        await agent.stop(0)
