"""Time stamps: now and then a checkpoint of the log goes to a time-stamping authority (RFC 3161), and its answer is kept beside it.

Unlike a witness such an authority sees a hash alone, and knows nothing of the log: it says when there was such a checkpoint, not that
it is consistent with an earlier one.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

import httpx

from remit_broker.adapters import jetstream_ledger
from remit_broker.adapters.outbound import Forbidden, Outbound
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.core.stamps import answers, ask
from remit_broker.ports import Clock, Observer

SECONDS: Final = 10.0
"""Between two looks whether a stamp is due."""
QUERY: Final = "application/timestamp-query"


class Timestamping:
    """Has the newest checkpoint of the ledger stamped by ``url``, at most every ``every`` seconds."""

    def __init__(
        self, url: str, every: float, outbound: Outbound, index: SqliteIndex, clock: Clock, observer: Observer
    ) -> None:  # fmt: skip
        self._url, self._every, self._outbound = url, every, outbound
        self._index, self._clock, self._observer = index, clock, observer
        self._size, self._at = 0, float("-inf")
        self.stamped = self.failed = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.once()
            except Exception as error:  # whatever one round ends with, the next one begins
                self._observer.fault("timestamp", error)
            await asyncio.sleep(SECONDS)

    async def once(self) -> None:
        """Have the newest checkpoint stamped, if there is a newer one than the last and it is time."""
        sealed = await self._index.proofs.newest(jetstream_ledger.STREAM)
        if sealed is None or sealed.size <= self._size or self._clock.monotonic() < self._at + self._every:
            return
        nonce = secrets.randbits(63)
        try:
            answer = await self._outbound.send("POST", self._url, {"Content-Type": QUERY}, ask(sealed.note, nonce))
            if answer.status != 200:
                raise ValueError(f"it answered {answer.status}")
            answers(answer.body, sealed.note, nonce)
        except (Forbidden, OSError, TimeoutError, httpx.HTTPError, ValueError) as error:
            self.failed += 1
            why = f"the time-stamping authority did not stamp {sealed.size}: {type(error).__name__}: {error}"
            self._observer.fault("timestamp", RuntimeError(why))
            return
        await self._index.stamped(sealed.size, self._url, answer.body)
        self._size, self._at = sealed.size, self._clock.monotonic()
        self.stamped += 1
