"""What looks like a lost record on a cluster may be an old leader's answer: it is asked again before the ledger halts.

A server that was frozen or cut off and does not know yet that another one leads answers reads with what it has, which may be
less than what was acknowledged since. So where the stream has several replicas, everything is refused while the record in
question is looked for again; the ledger halts when it is not there for :data:`SECONDS` in which there were answers. One server
alone is never an old leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from remit_broker.adapters.jetstream import ApiError, JetStream, Unreachable
from remit_broker.adapters.ledger_memory import STREAM, Lost, hash_in, unavailable
from remit_schemas.errors import Refusal

SECONDS: Final = 15.0
"""Longer than a leader that has lost its followers takes to notice (ten seconds in nats-server 2.15)."""
_PAUSE: Final = 0.25


class Suspicion:
    """At most one at a time; while there is one, ``cause`` says what it is. ``seconds`` of 0 believes every loss at once."""

    def __init__(self, js: JetStream, seconds: float, halt: Callable[[str], None], cleared: Callable[[], None]) -> None:
        self._js, self._seconds, self._halt, self._cleared = js, seconds, halt, cleared
        self._task: asyncio.Task[None] | None = None
        self.cause: str | None = None

    def raised(self, lost: Lost) -> bool:
        """Whether ``lost`` is certain already. If not, it is being looked into from now on."""
        if not self._seconds or not lost.seq:
            return True
        if self.cause is None:
            self.cause = str(lost)
            self._task = asyncio.get_running_loop().create_task(self._look(lost))
        return False

    async def _look(self, lost: Lost) -> None:
        # INVARIANT: an old leader's answer does not halt the ledger, a loss does
        # (test_an_old_leaders_answer_is_no_loss, test_a_loss_on_a_cluster_halts_the_ledger_once_it_is_certain).
        loop = asyncio.get_running_loop()
        until = loop.time() + self._seconds
        while loop.time() < until:
            await asyncio.sleep(_PAUSE)
            try:
                found = await self._js.at(STREAM, lost.seq)
            except (Unreachable, ApiError):
                until += _PAUSE  # nobody has said anything about it
                continue
            if found is not None and hash_in(found) == lost.sealed:
                self.cause = None
                self._cleared()
                return
        self._halt(self.cause or str(lost))


def suspected(cause: str) -> Refusal:
    """The refusal meanwhile."""
    return unavailable("ledger.suspect", "a record is not where it was; it is being looked for", cause)
