"""The records of what operators did: a stream that refuses deletes, appended to by compare-and-set like the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from nats.aio.client import Client

from remit_broker.adapters.jetstream import (
    EXPECT_STREAM,
    EXPECT_SUBJECT,
    IN_FLIGHT,
    WRONG_LAST_SEQUENCE,
    ApiError,
    JetStream,
    Message,
    Unreachable,
)
from remit_broker.core.admin import AdminRecord, follow, plain, untold
from remit_broker.core.revocations import Entry
from remit_schemas.errors import Code, Refusal, refusal

STREAM: Final = "ADMIN"
ACCESSES: Final = "ACCESS"
"""The stream of another such chain: who read the records."""
SECONDS: Final = 5.0
"""How long one append may take."""

_decode = msgspec.json.Decoder(AdminRecord).decode


class AdminStream:
    """The chain of one tenant's administrative records (port ``AdminLog``)."""

    def __init__(self, js: JetStream, tenant: str, stream: str = STREAM) -> None:
        self._js, self._tenant, self._stream, self._subject = js, tenant, stream, f"{stream.lower()}.{tenant}"

    @classmethod
    async def start(cls, nc: Client, tenant: str, replicas: int, stream: str = STREAM) -> AdminStream:
        """Make or check the stream. Raises :class:`~remit_broker.adapters.errors.ConfigError`."""
        js = JetStream(nc)
        await js.ensure(_settings(stream, replicas))
        return cls(js, tenant, stream)

    async def append(self, entry: Entry) -> AdminRecord:
        """Append the record of ``entry``; durable when it returns. Refuses LEDGER_UNAVAILABLE: then it may be there or not."""
        try:
            async with asyncio.timeout(SECONDS):
                return await self._append(entry)
        except (Unreachable, ApiError, TimeoutError, msgspec.MsgspecError) as error:
            raise _unavailable(error) from None

    async def history(self) -> list[AdminRecord]:
        """All records, oldest first. Refuses LEDGER_UNAVAILABLE where they cannot be read."""
        try:
            last = await self._js.last(self._stream, self._subject)
            if last is None:
                return []
            return [_decode(found.data) for found in await self._js.read(self._stream, self._subject, 0, last.seq)]
        except (Unreachable, ApiError, msgspec.MsgspecError) as error:
            raise _unavailable(error) from None

    async def catch_up(self, entries: Sequence[Entry]) -> None:
        """Record what is in force and was never recorded: a replica died in between, or it is older than this stream."""
        for entry in untold(entries, await self.history()):
            await self.append(entry)

    async def _append(self, entry: Entry) -> AdminRecord:
        while True:
            last = await self._js.last(self._stream, self._subject)
            record = follow(None if last is None else _decode(last.data), self._tenant, entry)
            if await self._stored(record, last):
                return record

    async def _stored(self, record: AdminRecord, after: Message | None) -> bool:
        """Whether ``record`` is what follows ``after`` now; where there was no answer, the stream is asked."""
        at = after.seq if after else 0
        headers = {EXPECT_STREAM: self._stream, EXPECT_SUBJECT: str(at)}
        for _ in range(8):
            try:
                ack = await self._js.publish(self._subject, msgspec.json.encode(plain(record)), headers)
            except Unreachable:
                await asyncio.sleep(0.05)
                continue  # the same bytes at the same place: stored once at most
            if ack.error is None:
                return True
            if ack.error.err_code == IN_FLIGHT:
                await asyncio.sleep(0.01)
                continue
            if ack.error.err_code != WRONG_LAST_SEQUENCE:
                raise ApiError(ack.error.err_code, ack.error.description)
            found = await self._js.next(self._stream, self._subject, at + 1)
            return found is not None and _decode(found.data) == record
        raise Unreachable("no answer to an append")


def _unavailable(error: BaseException) -> Refusal:
    return refusal(
        Code.LEDGER_UNAVAILABLE, "the records of what operators did cannot be written or read", rule="admin.stream",
        ask="try again", retry_after=1.0, cause=repr(error),
    )  # fmt: skip


def _settings(stream: str, replicas: int) -> dict[str, Any]:
    return {
        "name": stream,
        "subjects": [f"{stream.lower()}.*"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": replicas,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": False,
        "no_ack": False,
        "sealed": False,
    }
