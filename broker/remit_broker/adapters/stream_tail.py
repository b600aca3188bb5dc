"""Follow a stream from a sequence on, for as long as it is wanted: what a projection reads.

The consumer is ephemeral and unacknowledged; the position is the reader's own. A lost connection, a restarted server or
a consumer that went away are survived by making another one from where the reader is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, cast

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from remit_broker.adapters.jetstream import API, ApiError, JetStream, Message, Unreachable, consumer, stream_seq
from remit_broker.ports import at_once

_BEAT: Final = 5.0
_BATCH: Final = 512
_EXPIRES: Final = 60.0
_LINGER: Final = 0.1
"""How long, in seconds, the first message of a group waits for more where nobody waits for it."""
_GO_ON: Final = frozenset({"404", "408"})
"""Statuses that end a pull but not the consumer: nothing there, and expired."""


class Regressed(Exception):  # noqa: N818
    """The stream ends before what was read of it, or lacks a message in the middle."""


async def made_certain(look: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Look until nothing is found to be lost, for at most ``seconds``: on a cluster an old leader may answer with less.

    Raises :class:`Regressed`.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while True:
        try:
            return await look()
        except Regressed:
            if loop.time() >= until:
                raise
        await asyncio.sleep(0.25)


class StreamTail:
    """One reader of one stream. ``whole`` says that no message of the stream may be missing, ``certain`` for how many seconds
    what looks like a loss is looked at again.

    Messages come in groups, since what is done with a group costs little more than what is done with one. While ``hurry``
    is set, somebody waits for the next one, and no message waits for more; nor does what was there before the reader.
    """

    def __init__(
        self,
        nc: Client,
        stream: str,
        subjects: str,
        *,
        whole: bool,
        hurry: asyncio.Event | None = None,
        certain: float = 0.0,
    ) -> None:
        self._nc = nc
        self._js = JetStream(nc)
        self._stream = stream
        self._subjects = subjects
        self._whole = whole
        self._certain = certain
        self._hurry = hurry or asyncio.Event()
        self._arrived: asyncio.Queue[Msg] = asyncio.Queue()
        self._newest: Message | None = None
        self._there = 0

    async def batches(self, after: int) -> AsyncIterator[list[Message]]:
        """All messages after ``after``, as they come, in groups of what is there. Raises :class:`Regressed`."""
        pause = 0.05
        while True:
            try:
                async for arrived in self._consume(after):
                    batch = await self._complete(after, arrived) if self._whole else arrived
                    self._newest = batch[-1]
                    after = self._newest.seq
                    pause = 0.05
                    yield batch
            except (Unreachable, ApiError, NatsError):
                pause = min(pause * 2, 2.0)
            await asyncio.sleep(pause)

    async def _complete(self, after: int, arrived: list[Message]) -> list[Message]:
        """What arrived, with what was lost on its way from a consumer that nobody acknowledges anything to.

        INVARIANT: only what the stream itself does not have counts as lost (test_what_is_lost_on_its_way_is_asked_for).
        """
        batch: list[Message] = []
        for message in arrived:
            for seq in range(after + 1, message.seq):
                batch.append(await self._asked_for(seq, message.seq))
                if message.seq - seq > _BATCH:
                    raise Unreachable(f"{message.seq - seq} messages did not arrive")
            batch.append(message)
            after = message.seq
        return batch

    async def _asked_for(self, seq: int, following: int) -> Message:
        found: Message | None = None

        async def look() -> None:
            nonlocal found
            found = await self._js.at(self._stream, seq)
            if found is None:
                raise Regressed(f"message {seq} of {self._stream} is missing, {following} comes next")

        await made_certain(look, self._certain)
        return cast("Message", found)

    async def _consume(self, after: int) -> AsyncIterator[list[Message]]:
        """From one consumer, until it goes away."""
        await made_certain(lambda: self._still_there(after), self._certain)
        inbox = self._nc.new_inbox()
        name = inbox.rsplit(".", 1)[-1]
        self._arrived = asyncio.Queue()
        subscription = await self._nc.subscribe(inbox, cb=self._arrive)
        try:
            await self._js.api(f"CONSUMER.CREATE.{self._stream}.{name}.{self._subjects}", self._request(name, after))
            async for batch in self._pulled(name, inbox, after):
                if fresh := [message for message in batch if message.seq > after]:
                    after = fresh[-1].seq
                    yield fresh
        finally:
            await self._leave(subscription, name)

    @at_once
    async def _arrive(self, msg: Msg) -> None:
        self._arrived.put_nowait(msg)

    async def _still_there(self, after: int) -> None:
        """Before reading on: what was read is where it was. (A consumer would wait in silence for a lost end.)"""
        last = (await self._js.state(self._stream))["last_seq"]
        self._there = last
        if last < after:
            raise Regressed(f"{self._stream} ends at {last}, it was read up to {after}")
        if self._whole and self._newest is not None and await self._js.at(self._stream, after) != self._newest:
            raise Regressed(f"message {after} of {self._stream} is not the one that was read")

    def _request(self, name: str, after: int) -> dict[str, Any]:
        request = consumer(self._stream, name, self._subjects, after, "")
        del request["config"]["deliver_subject"]
        return request

    async def _pulled(self, name: str, inbox: str, after: int) -> AsyncIterator[list[Message]]:
        connection = self._js.reconnects
        wanted = 0
        heard = asyncio.get_running_loop().time()
        while True:
            if wanted <= 0:
                await self._pull(name, inbox)
                wanted = _BATCH
            arrived = await self._next(linger=after >= self._there)
            now = asyncio.get_running_loop().time()
            if self._js.reconnects != connection or (not arrived and now - heard > 2.5 * _BEAT):
                return
            heard = now if arrived else heard
            batch, ended, sent = _sort(arrived)
            after = batch[-1].seq if batch else after
            wanted = 0 if ended else wanted - len(batch)
            if batch:
                yield batch
            # INVARIANT: what went astray is noticed though nothing comes after it
            # (test_the_last_message_is_not_lost_though_nothing_follows_it).
            if sent > after or (ended and ended not in _GO_ON):
                return

    async def _next(self, *, linger: bool) -> list[Msg]:
        """What has arrived, and with ``linger`` what comes soon after it.

        Empty after a second of silence, so that a new connection is noticed.
        """
        try:
            async with asyncio.timeout(1.0):
                arrived = [await self._arrived.get()]
        except TimeoutError:
            return []
        if linger and not self._hurry.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER):
                    await self._hurry.wait()
        while not self._arrived.empty():
            arrived.append(self._arrived.get_nowait())
        return arrived

    async def _pull(self, name: str, inbox: str) -> None:
        body = {"batch": _BATCH, "expires": int(_EXPIRES * 1e9), "idle_heartbeat": int(_BEAT * 1e9)}
        subject = f"{API}.CONSUMER.MSG.NEXT.{self._stream}.{name}"
        await self._nc.publish(subject, msgspec.json.encode(body), reply=inbox)

    async def _leave(self, subscription: Subscription, name: str) -> None:
        with contextlib.suppress(NatsError):
            await subscription.unsubscribe()
            await self._nc.publish(f"{API}.CONSUMER.DELETE.{self._stream}.{name}")


def _sort(arrived: list[Msg]) -> tuple[list[Message], str, int]:
    """The messages among what arrived, the status that ended the pull, if one did, and up to where the server says that it has sent."""
    batch: list[Message] = []
    ended, sent = "", 0
    for msg in arrived:
        seq = stream_seq(msg.reply)
        if seq is not None:
            batch.append(Message(seq, msg.subject, msg.data))
        elif msg.headers and (status := msg.headers.get("Status", "")) != "100":
            ended = status
        elif msg.headers and (said := msg.headers.get("Nats-Last-Stream", "")).isdecimal():
            sent = int(said)
    return batch, ended, sent
