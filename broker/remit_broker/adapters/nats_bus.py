"""The agents' side of the bus, for one tenant: answers, dispatches, and the frames that come back to this replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nats.aio.client import Client
from nats.aio.msg import Msg

from remit_schemas import subjects
from remit_schemas.envelope import MAX_ENVELOPE, Dispatch, Error, Event, Frame, Progress, Result, encode
from remit_schemas.errors import Code, ErrorBody, refusal
from remit_schemas.names import Resource

BACKLOG = 1024
"""Frames that may wait for one hop; a callee that sends faster than its caller is served loses progress, never its end."""


class FrameQueue:
    """The frames of one callee for one hop, in the order the bus delivered them."""

    def __init__(self) -> None:
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue(BACKLOG)

    def put(self, frame: bytes | None) -> None:
        """Add a frame; when full, the oldest goes, so that the final one always fits."""
        if self._frames.full():
            self._frames.get_nowait()
        self._frames.put_nowait(frame)

    async def next(self, seconds: float) -> bytes | None:
        """The next frame; None when the server said that nobody listens. Raises TimeoutError."""
        if seconds <= 0:
            raise TimeoutError
        if not self._frames.empty():
            return self._frames.get_nowait()
        async with asyncio.timeout(seconds):
            return await self._frames.get()


class NatsBus:
    """One replica on one tenant's account."""

    def __init__(self, nc: Client, replica: str) -> None:
        self.replica = replica
        self._nc = nc
        self._open: dict[tuple[str, str, str], FrameQueue] = {}

    async def start(self) -> None:
        """Listen for the frames of callees: one subscription for every hop of this replica."""
        await self._nc.subscribe(f"res.*.{self.replica}.*.*", cb=self._on_frame, pending_msgs_limit=-1)

    async def _on_frame(self, message: Msg) -> None:
        at = subjects.parse_reply(message.subject)
        if at is None:
            return
        # INVARIANT: a frame counts only from the callee it was dispatched to; the NATS server vouches for that part of
        # the subject (test_answering_anothers_hop_changes_nothing).
        queue = self._open.get((at.principal, at.txn, at.hop))
        if queue is not None:
            nobody = message.headers is not None and message.headers.get("Status") == "503" and not message.data
            queue.put(None if nobody else message.data)

    @asynccontextmanager
    async def channel(self, callee: str, txn: str, hop: str) -> AsyncIterator[FrameQueue]:
        """Listen to ``callee``'s frames for a hop."""
        key, queue = (callee, txn, hop), FrameQueue()
        self._open[key] = queue
        try:
            yield queue
        finally:
            del self._open[key]

    async def dispatch(self, resource: Resource, callee: str, dispatch: Dispatch) -> None:
        """Hand a governed call to its callee, once. Refuses TOO_LARGE or TARGET_UNAVAILABLE before anything is sent."""
        data = encode(dispatch)
        if len(data) > MAX_ENVELOPE:
            raise refusal(
                Code.TOO_LARGE, f"the call has {len(data)} bytes, at most {MAX_ENVELOPE} fit", rule="dispatch.size",
                ask="send a reference instead of the content",
            )  # fmt: skip
        if not self._nc.is_connected:
            # Never into the client's reconnect buffer: it would be sent late.
            raise refusal(
                Code.TARGET_UNAVAILABLE, "the bus is not connected", rule="dispatch.bus", ask="call again shortly",
                retry_after=1.0,
            )  # fmt: skip
        await self._nc.publish(
            subjects.service(resource.kind, resource.name, resource.op),
            data,
            reply=subjects.reply(callee, self.replica, dispatch.txn, dispatch.hop),
        )

    async def answer(self, reply: str, frame: Frame) -> None:
        """Publish one frame to a caller's inbox; a final frame that is too large becomes an error that says so."""
        data = encode(frame)
        if len(data) > MAX_ENVELOPE:
            if isinstance(frame, Progress | Event):
                return
            data = encode(Error(error=_too_large(len(data)), cost=frame.cost if isinstance(frame, Result) else None))
        if self._nc.is_connected:
            await self._nc.publish(reply, data)


def _too_large(size: int) -> ErrorBody:
    return refusal(
        Code.RESULT_INVALID, f"the answer has {size} bytes, at most {MAX_ENVELOPE} fit", rule="answer.size",
        ask="ask for less, or for a reference", effect="happened",
    ).body  # fmt: skip
