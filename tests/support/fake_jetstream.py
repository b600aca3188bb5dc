"""A stream in memory that fails on request: for the append protocol, one fault at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from remit_broker.adapters.jetstream import EXPECT_SUBJECT, WRONG_LAST_SEQUENCE, Ack, JetStream, Message, Unreachable
from remit_broker.adapters.jetstream import _Fault as Fault

Trouble = Callable[["FakeJetStream", Callable[[], Ack]], Ack]
"""What happens to one publish: gets the stream and the publish itself, which it may carry out, or not."""


class FakeJetStream(JetStream):
    """Compare-and-set as the server does it. ``troubles`` befall the next publishes, in order."""

    def __init__(self) -> None:
        self.stored: dict[int, Message] = {}
        self.end = 0
        self.connections = 0
        self.troubles: list[Trouble] = []
        self.published = 0
        self.reads = 0

    @property
    def reconnects(self) -> int:
        return self.connections

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str], seconds: float | None = None) -> Ack:
        await asyncio.sleep(0)
        self.published += 1
        trouble = self.troubles.pop(0) if self.troubles else None

        def act() -> Ack:
            return self.store(subject, payload, int(headers[EXPECT_SUBJECT]))

        return trouble(self, act) if trouble else act()

    def store(self, subject: str, payload: bytes, expected: int) -> Ack:
        if (found := self._last(subject)) != expected:
            return Ack("LEDGER", 0, Fault(400, WRONG_LAST_SEQUENCE, f"wrong last sequence: {found}"))
        self.end += 1
        self.stored[self.end] = Message(self.end, subject, payload)
        return Ack("LEDGER", self.end)

    def _last(self, subject: str) -> int:
        return max((seq for seq, message in self.stored.items() if message.subject == subject), default=0)

    async def last(self, stream: str, subject: str) -> Message | None:
        self.reads += 1
        await asyncio.sleep(0)
        return self.stored.get(self._last(subject))

    async def at(self, stream: str, seq: int) -> Message | None:
        self.reads += 1
        await asyncio.sleep(0)
        return self.stored.get(seq)

    async def next(self, stream: str, subject: str, seq: int) -> Message | None:
        self.reads += 1
        found = [m for m in self.stored.values() if m.subject == subject and m.seq >= seq]
        return min(found, default=None)

    async def read(self, stream: str, subject: str, after: int, upto: int) -> list[Message]:
        self.reads += 1
        return sorted(m for m in self.stored.values() if m.subject == subject and after < m.seq <= upto)

    async def state(self, stream: str) -> dict[str, Any]:
        return {"last_seq": self.end, "bytes": sum(len(message.data) for message in self.stored.values())}


def ack_lost(_: FakeJetStream, act: Callable[[], Ack]) -> Ack:
    """The publish was carried out; its answer never came."""
    act()
    raise Unreachable("lost")


def never_sent(_: FakeJetStream, __: Callable[[], Ack]) -> Ack:
    """The publish never arrived."""
    raise Unreachable("lost")


def answers(code: int) -> Trouble:
    """The publish was answered with an error and not carried out."""
    return lambda _, __: Ack("LEDGER", 0, Fault(400, code, "error"))
