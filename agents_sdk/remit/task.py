"""A task from outside the chain: opened for a user, or carried on with a grant that somebody was given."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from remit.caller import Call, Caller, Scopes
from remit.errors import Refused, as_refused, refused
from remit.plain import budget_of, details, seconds
from remit.run import Run
from remit.services import ask_service
from remit_schemas.budget import ZERO, Budget
from remit_schemas.errors import Code
from remit_schemas.grant import parse, verify

if TYPE_CHECKING:
    from remit.agent import Agent
    from remit.link import Link

BEGIN_SECONDS: Final = 20.0
"""Longest wait for the opening of a task: the broker may have to ask the issuer for its keys."""


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
    *, grant: str = "", token: str = "", scopes: Scopes = (), budget: Budget | str = "usd=0.1,calls=20",
    ttl: str | float = "10m", max_depth: int = 8, as_: str = "cli", credentials: str | os.PathLike[str] | None = None,
    bus: str | None = None, labels: Sequence[str] = ("*",),
) -> AsyncIterator[Task]:  # fmt: skip
    """A task, carried on as the agent ``as_``: that of a root ``grant`` for this agent, or a new one for the user of a ``token``.

    A ``token`` is the user's own, from an issuer that the broker knows (an OIDC access token), and needs ``scopes``; ``budget``,
    ``ttl``, ``max_depth`` and ``labels`` (which labels of data may reach it) are those of the new task, which is closed when the block
    is left. With a ``grant``, leaving the block
    cancels what still runs and leaves the txn open, since the same grant may be used again until it expires; :meth:`Task.close`
    closes it. Raises :class:`~remit.errors.Refused` or ``CredentialsError``.
    """
    from remit.agent import Agent

    if bool(grant) == bool(token):
        raise refused(
            Code.MALFORMED,
            "a task begins with a grant or with a user's token",
            rule="task.begin",
            ask="give one of them",
        )
    agent = Agent(as_, credentials, bus)
    try:
        await agent.connect()
        if token:
            grant = await agent.open(token, scopes=scopes, budget=budget, ttl=ttl, max_depth=max_depth, labels=labels)
        async with agent.task(grant) as task:
            try:
                yield task
            finally:
                if token:
                    # Nobody else has the grant. Nothing is lost where this fails: the task ends when its grant expires.
                    with suppress(Refused):
                        await task.close()
    finally:
        await agent.stop(0)


async def begin(
    link: Link,
    token: str,
    *,
    scopes: Scopes,
    budget: Budget | str,
    ttl: str | float,
    max_depth: int,
    labels: Sequence[str],
) -> str:
    """The root grant of a new task for the user of ``token``, held by this agent. Raises :class:`~remit.errors.Refused`."""
    wish = {
        "token": token,
        "scopes": msgspec.to_builtins(details(tuple(scopes))),
        "budget": msgspec.to_builtins(budget if isinstance(budget, Budget) else budget_of(budget, ZERO)),
        "ttl": max(1, int(seconds(ttl))),
        "max_depth": max_depth,
        "labels": list(labels),
    }
    opened = await ask_service(link, ("txn", "open"), wish, wait=BEGIN_SECONDS)
    grant: str = opened["grant"]
    return grant
