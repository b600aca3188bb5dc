"""Appends of different txns that are ready at the same time, committed together.

Where every commit waits for the disk, appends that are published one by one are written to the disk one by one, however many there
are. JetStream can take several messages as one atomic batch (ADR-50 of NATS): each with its own expected sequence, all stored
next to one another with one wait for the disk, or none of them.

A batch has a price of its own, more than that of a few appends, so few go alone. While enough are under way, what comes meanwhile is
collected. A batch that is refused tells nobody anything: each of its appends is then published alone. A batch without an
answer is without an answer for each of them, and each is made sure of alone (``jetstream_ledger``).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from remit_broker.adapters.jetstream import Ack, JetStream, Unreachable

BATCH_ID: Final = "Nats-Batch-Id"
BATCH_SEQUENCE: Final = "Nats-Batch-Sequence"
BATCH_COMMIT: Final = "Nats-Batch-Commit"

LEAST: Final = 24
"""From so many on a batch is quicker than as many single appends: it waits for the disk a few times, whatever its size."""
MOST: Final = 256
"""Appends of one batch; the server takes 1000."""
ALONE: Final = 16
"""So many single appends may be under way before others are collected."""


class Publish(NamedTuple):
    """One append, ready to go."""

    subject: str
    payload: bytes
    headers: dict[str, str]


class _Entry(NamedTuple):
    what: Publish
    told: asyncio.Future[Ack | None]
    """The ack within a batch; None: go alone."""


class CommitGroups:
    """Publishes for one ledger. Times are in seconds."""

    def __init__(self, js: JetStream) -> None:
        self._js = js
        self._waiting: list[_Entry] = []
        self._alone = 0
        self._batch: asyncio.Task[None] | None = None
        self._due = False
        self.batches = 0
        """How many were committed."""

    async def publish(self, what: Publish, seconds: float) -> Ack:
        """The ack of one append, stored alone or in a batch. Raises :class:`Unreachable`: then it may be stored or not."""
        loop = asyncio.get_running_loop()
        entry = _Entry(what, loop.create_future())
        self._waiting.append(entry)
        self._later(lambda: self._turn(seconds))
        try:
            ack = await entry.told
            if ack is None:
                ack = await self._js.publish(what.subject, what.payload, what.headers, seconds)
            return ack
        finally:
            if _is_alone(entry):
                self._alone -= 1
                self._later(lambda: self._turn(seconds))

    def _later(self, turn: Callable[[], None]) -> None:
        """At the end of this turn of the event loop: what is ready by then goes together."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(turn)

    def _turn(self, seconds: float) -> None:
        self._due = False
        if self._batch is not None:
            return
        # Whoever was cancelled while it waited is not published at all.
        self._waiting = [entry for entry in self._waiting if not entry.told.done()]
        if len(self._waiting) >= LEAST:
            entries, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            self._batch = asyncio.get_running_loop().create_task(self._commit(entries, seconds))
        elif self._alone < ALONE:
            entries, self._waiting = self._waiting, []
            self._go_alone(entries)

    def _go_alone(self, entries: Sequence[_Entry]) -> None:
        for entry in entries:
            if not entry.told.done():
                self._alone += 1
                entry.told.set_result(None)

    async def _commit(self, entries: Sequence[_Entry], seconds: float) -> None:
        try:
            acks = await publish_together(self._js, [entry.what for entry in entries], seconds)
        except Unreachable as lost:
            # INVARIANT: a batch without an answer is taken for done or undone by none of its appends
            # (test_a_batch_without_an_answer_is_made_sure_of_entry_by_entry).
            for entry in entries:
                if not entry.told.done():
                    entry.told.set_exception(Unreachable(str(lost)))
        else:
            if acks is None:
                self._go_alone(entries)
            else:
                self.batches += 1
                for entry, ack in zip(entries, acks, strict=True):
                    if not entry.told.done():
                        entry.told.set_result(ack)
        finally:
            self._batch = None
            self._later(lambda: self._turn(seconds))


def _is_alone(entry: _Entry) -> bool:
    told = entry.told
    return told.done() and not told.cancelled() and told.exception() is None and told.result() is None


async def publish_together(js: JetStream, group: Sequence[Publish], seconds: float) -> list[Ack] | None:
    """The ack of each, in order, or None where the batch was refused and nothing of it is stored.

    Raises :class:`Unreachable`: then all of it may be stored or nothing.
    """
    name = secrets.token_hex(12)
    for number, one in enumerate(group[:-1], start=1):
        await js.hand_over(one.subject, one.payload, one.headers | {BATCH_ID: name, BATCH_SEQUENCE: str(number)})
    last = group[-1]
    closing = {BATCH_ID: name, BATCH_SEQUENCE: str(len(group)), BATCH_COMMIT: "1"}
    ack = await js.publish(last.subject, last.payload, last.headers | closing, seconds)
    if ack.error is not None:
        return None
    if ack.count != len(group) or ack.batch != name:
        raise Unreachable(f"a batch of {len(group)} was acknowledged as one of {ack.count}")
    # The messages of a batch stand next to one another in the stream.
    return [Ack(ack.stream, ack.seq - len(group) + number) for number in range(1, len(group) + 1)]
