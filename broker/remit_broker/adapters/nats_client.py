"""nats-py, made lean where every message passes, and hardened against what an agent may put on the wire.

The NATS server passes subjects and headers on as bytes: whatever holds no space, tab or line end is a subject to it. nats-py
2.16 ends its reading, and with it everything the broker hears, at the first message whose subject, reply or header it cannot
decode; and it takes other white space (vertical tab, form feed) for the space between two fields, which makes one message
look like another subscription's, or the whole connection like a broken one. Each could be sent by any agent, again and again.
So what arrives is read by :mod:`remit_broker.adapters.nats_wire`.

What is published in one turn of the event loop is written at its end, in one piece. Connecting, authentication, reconnecting
and all that happens rarely is the library's own (docs/adr/0011).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import Any, Final, cast

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport
from nats.errors import ProtocolError, UnexpectedEOF

from remit_broker.adapters.nats_wire import Reading
from remit_broker.ports import at_once
from remit_schemas.pongs import Hearing

log = logging.getLogger("remit")

_NO_SUBJECT = re.compile(r"\s").search
_HIGH: Final = 512 * 1024
"""Bytes handed to the connection after which a publisher waits until the server has taken them."""

_LAST_WORDS: Final = 2.0
"""Seconds that a connection which is closed has to get rid of what was published."""


class HardenedClient(Hearing, Client):
    """The surface of nats-py's client, with its inner loop replaced."""

    def __init__(self) -> None:
        super().__init__()
        self._due = False
        self._unread = 0

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Hand a message to the connection. It is written when this turn of the event loop ends."""
        size = len(payload)
        if (
            self._status != Client.CONNECTED
            or size > self._max_payload
            or not subject
            or _NO_SUBJECT(subject)
            or _NO_SUBJECT(reply)
        ):
            # Buffered, or refused with the library's own words.
            await super().publish(subject, payload, reply, headers)
            return
        if headers is None:
            command = b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), size, payload)
        else:
            # INVARIANT: the library's own headers, which are members of an enumeration, go out by their value
            # (test_what_is_to_be_created_once_is_created_once): else a compare-and-set of its key-value store compares nothing.
            lines = [f"{str.__str__(name)}: {value}\r\n" for name, value in headers.items()]
            block = "".join(("NATS/1.0\r\n", *lines, "\r\n"))
            if block.count("\n") != len(headers) + 2:
                await super().publish(subject, payload, reply, headers)
                return
            head = block.encode()
            command = b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
                subject.encode(), reply.encode(), len(head), len(head) + size, head, payload,
            )  # fmt: skip
        stats = self.stats
        stats["out_msgs"] += 1
        stats["out_bytes"] += size
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._write_out)
        self._unread += len(command)
        if self._unread > _HIGH:
            await self._keep_up()

    def _write_out(self) -> None:
        """Write what is pending, in one piece."""
        self._due = False
        if self._status == Client.CONNECTED and self._pending and self._transport:
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            # A connection that has just ended takes nothing more; what was meant for it must not be sent late.
            with contextlib.suppress(RuntimeError, OSError):
                self._transport.write(b"".join(pending) if len(pending) > 1 else pending[0])

    async def _keep_up(self) -> None:
        """Wait while the connection holds more than it should: what is published is never kept without end."""
        self._unread = 0
        self._write_out()
        if isinstance(self._transport, TcpTransport):
            try:
                await self._transport.drain()  # type: ignore[no-untyped-call]
            except OSError as error:
                await self._process_op_err(error)

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        # nats-py writes its PING past what is still pending: then the answer would say nothing of that.
        self._write_out()
        await super()._send_ping(future)

    @at_once
    async def _request_sub_callback(self, msg: Msg) -> None:
        await super()._request_sub_callback(msg)

    async def _read_loop(self) -> None:
        """Have the connection's bytes read where they arrive; do here what has to be awaited."""
        transport = self._transport
        if not isinstance(transport, TcpTransport):
            await super()._read_loop()
            return
        reading = None
        try:
            reading = await self._take_over(transport)
            while not (self.is_closed or self.is_reconnecting):
                task = await reading.later.get()
                if isinstance(task, Exception):
                    await self._lost(task)
                    break
                await task()
        except asyncio.CancelledError:
            pass
        except Exception as error:
            log.error("the NATS connection cannot be read: %r", error, exc_info=error)
            await self._process_op_err(ProtocolError())
        finally:
            if reading is not None:
                reading.stop()

    async def _take_over(self, transport: TcpTransport) -> Reading:
        """From here on the connection's bytes go to a :class:`Reading`, those that the set-up left over first."""
        reader, writer = transport._io_reader, transport._io_writer
        if reader is None or writer is None:
            raise ProtocolError
        wire = writer.transport
        reading = Reading(self, cast("asyncio.Protocol", wire.get_protocol()), self._answer_ping)
        wire.set_protocol(reading)
        gone = reader.at_eof()
        reader.feed_eof()
        left = await reader.read()
        if left:
            reading.data_received(left)
        if gone:
            reading.eof_received()
        return reading

    def _answer_ping(self) -> None:
        self._pending.append(b"PONG\r\n")
        self._pending_data_size += len(self._pending[-1])
        self._write_out()

    async def _attempt_reconnect(self) -> None:
        # INVARIANT: a connection that stalled is given up (test_a_connection_that_stalled_with_data_in_it_is_given_up_and_made_anew).
        # nats-py closes it and waits until it has got rid of its data, which it never does where the other side is silent.
        self._abort()
        await super()._attempt_reconnect()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        last = asyncio.get_running_loop().call_later(_LAST_WORDS, self._abort)
        try:
            await super()._close(status, do_cbs)
        finally:
            last.cancel()

    def _abort(self) -> None:
        if isinstance(self._transport, TcpTransport) and self._transport._io_writer is not None:
            self._transport._io_writer.transport.abort()

    async def _lost(self, why: Exception) -> None:
        if isinstance(why, UnexpectedEOF):
            await self._error_cb(why)
        await self._process_op_err(why)
