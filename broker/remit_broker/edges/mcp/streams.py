"""Streams of a session towards its client, which a client whose connection broke takes up again where it was (``Last-Event-ID``).

2025-11-25, Transports, "Resumability and redelivery": the ids of events are a cursor within one stream. A stream here is what answers
one request, or the one on which a client listens (number 0). What was sent is kept for a while, since that it was sent does not
mean that it came. Ids are looked up in the session of whoever asks, so those of another's are of no use.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

from remit_broker.edges.mcp.wire import QUIET, STILL_HERE, event

MESSAGES: Final = 1024
"""Messages of one stream that are kept, and of a stream that nobody reads those that wait; of more, the oldest go."""
BYTES: Final = 1024 * 1024
"""Bytes of all streams of a session that have ended, and of one that nobody reads. Always kept is the last message of each."""
ENDED: Final = 32
"""Streams of a session that have ended and may still be taken up."""
RETRY: Final = 1000
"""Milliseconds after which a client that was cut off comes back."""
SOON: Final = 0.5
"""Seconds after which a request that has no answer yet is answered with a stream, so that it can be taken up."""

_ID: Final = re.compile(r"([0-9]{1,15})-([0-9]{1,15})")


class Stream:
    """Messages to a client, each with an id. With ``primes`` it begins with an id and nothing else, for clients that know that."""

    def __init__(self, number: int, *, most: int = MESSAGES, named: bool = True, primes: bool = False) -> None:
        """``named`` is whether its messages have ids at all."""
        self.number, self._named, self._primes = number, named, named and primes
        self.over = False
        self.size = 0
        self._kept: deque[bytes] = deque()
        self._most = most
        self._gone = 0
        """How many messages were there before the first that is kept."""
        self._sent = 0
        self._readers = 0
        self._read = False
        self._grew = asyncio.Event()

    @property
    def listened(self) -> bool:
        """Whether somebody reads it."""
        return self._read

    async def tell(self, message: dict[str, Any]) -> None:
        """Add a message."""
        self.put(message)

    def put(self, message: dict[str, Any]) -> None:
        """Add a message; of too many the oldest go, unless they are about to be sent."""
        data = event(message, self._name(self._gone + len(self._kept) + 1) if self._named else "")
        self._kept.append(data)
        self.size += len(data)
        while len(self._kept) > 1 and (len(self._kept) > self._most or (self.size > BYTES and self._may_go())):
            self.size -= len(self._kept.popleft())
            self._gone += 1
        self._grew.set()

    def _may_go(self) -> bool:
        return not self._read or self._sent > self._gone

    def close(self) -> None:
        """Nothing more comes."""
        self.over = True
        self._grew.set()
        if self._readers:
            self._let_go()

    def _let_go(self) -> None:
        """What has ended, and is too large to be kept for somebody who may not come back."""
        if self.over and not self._read and self.size > BYTES:
            self._gone += len(self._kept)
            self._kept.clear()
            self.size = 0

    def has(self, at: int) -> bool:
        """Whether everything after message ``at`` is still here."""
        return self._gone <= at <= self._gone + len(self._kept)

    async def begun(self, seconds: float) -> None:
        """Wait for the first message, or the end, or for so long."""
        if not self._kept and not self.over:
            await self._more(seconds)

    async def read(self, after: int | None = None) -> AsyncIterator[bytes]:
        """Messages ``after`` that one, or those that nobody was sent, until it ends. Whoever read it before reads no more."""
        self._readers += 1
        mine, at = self._readers, self._sent if after is None else after
        self._read = True
        self._grew.set()
        head = self._prime(at)
        try:
            while mine == self._readers:
                at = max(at, self._gone)
                said = b"".join(list(self._kept)[at - self._gone :])
                at = self._gone + len(self._kept)
                self._sent = max(self._sent, at)
                if head or said:
                    yield head + said
                    head = b""
                elif self.over:
                    return
                elif not await self._more(QUIET) and mine == self._readers:
                    yield STILL_HERE
        finally:
            if mine == self._readers:
                self._read = False
                self._let_go()

    async def _more(self, seconds: float) -> bool:
        self._grew.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._grew.wait()
                return True
        return False

    def _prime(self, at: int) -> bytes:
        """An id to begin with, so that a connection that breaks before the first message can be taken up too."""
        if not self._primes:
            return b": listening\n\n" if self._named and self.number == 0 else b""
        return f"id: {self._name(at)}\nretry: {RETRY}\ndata: \n\n".encode()

    def _name(self, at: int) -> str:
        return f"{self.number}-{at}"


class Streams:
    """Those of one session. ``outbox`` is the one on which its client listens."""

    def __init__(self, *, outbox: int, named: bool, primes: bool) -> None:
        self.outbox = Stream(0, most=outbox, named=named, primes=primes)
        self._primes, self._count = primes, 0
        self._all: dict[int, Stream] = {0: self.outbox}

    def open(self) -> Stream:
        """A stream for the answer of one request."""
        self._make_room()
        self._count += 1
        stream = self._all[self._count] = Stream(self._count, primes=self._primes)
        return stream

    def drop(self, stream: Stream) -> None:
        """It was not needed: its request was answered otherwise."""
        self._all.pop(stream.number, None)

    def find(self, last: str) -> tuple[Stream, int] | None:
        """The stream of an event, and its place there; None where this session has no such event, or not any more.

        INVARIANT: the id of an event is of use in its own session alone, for what comes after it on its own stream
        (test_an_event_of_another_session_is_not_there, test_a_stream_that_is_taken_up_has_nothing_of_another).
        """
        found = _ID.fullmatch(last)
        stream = self._all.get(int(found[1])) if found is not None else None
        if found is None or stream is None or not stream.has(int(found[2])):
            return None
        return stream, int(found[2])

    def _make_room(self) -> None:
        # INVARIANT: what is kept for clients that may come back is bounded (test_what_is_kept_of_streams_is_bounded).
        ended = [one for one in self._all.values() if one.number and one.over and not one.listened]
        size = sum(one.size for one in ended)
        while ended and (size > BYTES or len(ended) >= ENDED):
            first = ended.pop(0)
            size -= first.size
            self.drop(first)
