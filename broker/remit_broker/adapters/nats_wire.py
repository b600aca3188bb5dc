"""What the NATS server sends, read without a task in between: bytes in, messages handed over at once.

nats-py reads a stream in one task, takes it apart by regular expressions and hands every message to a queue and a task of its
subscription. Here the connection's bytes arrive in :meth:`Reading.data_received` and a message is at its callback in the
same turn of the event loop. What needs waiting (an INFO, an error, the end) goes to the client's reading task, in order.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, cast

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ProtocolError, SlowConsumerError, UnexpectedEOF

MAX_LINE: Final = 1024 * 1024
"""Longest line of the protocol in bytes: an INFO of a large cluster; a subject has at most 4 KiB of it."""

_STATUS: Final = b"NATS/1.0 "
_HEAD: Final = b"NATS/1.0\r\n"

Later = Callable[[], Awaitable[None]]


class Reading(asyncio.Protocol):
    """One connection's inbound half, from the moment it is set up.

    ``stream`` is the protocol that set it up: it still hears of what concerns writing and of the end. ``later`` takes what
    has to be awaited.
    """

    def __init__(self, client: Client, stream: asyncio.Protocol, pong: Callable[[], None]) -> None:
        self._client = client
        self._stream = stream
        self._pong = pong
        self._rest = bytearray()
        self._need = 0
        self._ended = False
        self.later: asyncio.Queue[Later | Exception] = asyncio.Queue()

    def stop(self) -> None:
        """Hand over nothing more."""
        self._ended = True

    def data_received(self, data: bytes) -> None:
        """Read all whole messages there are and keep the rest."""
        if self._ended:
            return
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return
            data = bytes(self._rest)
            self._rest.clear()
        try:
            read = self._read(data)
        except (ProtocolError, ValueError) as bad:
            self._end(bad if isinstance(bad, ProtocolError) else ProtocolError())
            return
        if read < len(data):
            self._rest += data[read:]

    def eof_received(self) -> None:
        """The server ends the connection."""
        self._stream.eof_received()
        self._end(UnexpectedEOF())

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stream.connection_lost(exc)
        self._end(exc or UnexpectedEOF())

    def pause_writing(self) -> None:
        """The server does not keep up: whoever waits in ``drain`` goes on waiting."""
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self._stream.resume_writing()

    def _end(self, why: Exception) -> None:
        if not self._ended:
            self._ended = True
            self.later.put_nowait(why)

    def _read(self, data: bytes) -> int:
        """How much of ``data`` was read: whole lines and whole messages. Raises ProtocolError or ValueError."""
        at, end = 0, len(data)
        self._need = 0
        while at < end and not self._ended:
            stop = data.find(b"\r\n", at)
            if stop < 0:
                if end - at > MAX_LINE:
                    raise ProtocolError
                break
            # INVARIANT: the fields of a line end at a space, since the server sends nothing else, and no other white space in
            # a subject is taken for one (test_no_bytes_on_the_wire_cut_the_broker_off).
            op, *fields = data[at:stop].split(b" ")
            if op == b"MSG":
                size, header = _number(fields[-1]), 0
                given = fields[2] if len(fields) == 4 else b""
                expected = 3
            elif op == b"HMSG":
                size, header = _number(fields[-1]), _number(fields[-2])
                given = fields[2] if len(fields) == 5 else b""
                expected = 4
            else:
                self._line(op, data[at:stop])
                at = stop + 2
                continue
            if not expected <= len(fields) <= expected + 1 or header > size:
                raise ProtocolError
            begin = stop + 2
            after = begin + size + 2
            if after > end:
                self._need = after - at
                break
            body = begin + header
            self._message(_number(fields[1]), fields[0], given, data[body : after - 2], data[begin:body])
            at = after
        return at

    def _line(self, op: bytes, line: bytes) -> None:
        """What is no message. A PING is answered at once; the rest may have to be waited for."""
        client = self._client
        if op == b"PING":
            self._pong()
        elif op == b"PONG":
            self.later.put_nowait(client._process_pong)
        elif op == b"INFO":
            told = json.loads(line[5:])
            self.later.put_nowait(lambda: client._process_info(told))
        elif op == b"-ERR":
            said = line[5:].decode("utf-8", "replace").strip("'").lower()
            self.later.put_nowait(lambda: client._process_err(f"'{said}'"))
        elif op != b"+OK":
            raise ProtocolError

    def _message(self, sid: int, subject: bytes, reply: bytes, data: bytes, header: bytes) -> None:
        client = self._client
        size = len(data)
        client.stats["in_msgs"] += 1
        client.stats["in_bytes"] += size
        subscription = client._subs.get(sid)
        if subscription is None:
            return
        if subscription._jsi is not None:
            # A consumer of the library's own keeps order and answers flow control, which it does by waiting.
            self.later.put_nowait(lambda: client._process_msg(sid, subject, reply, data, header))
            return
        subscription._received += 1
        if 0 < subscription._max_msgs <= subscription._received:
            client._subs.pop(sid, None)
        try:
            message = Msg(client, subject.decode(), reply.decode(), data, read_headers(header) if header else None)
        except UnicodeDecodeError:
            # No name, kind or inbox of this bus is anything but ASCII.
            return
        callback = subscription._cb
        if callback is not None and getattr(callback, "at_once", False):
            self._call(callback, message)
        else:
            self._queue(subscription, message, size)

    def _call(self, callback: Callable[[Msg], Awaitable[None]], message: Msg) -> None:
        """Run a callback that never waits."""
        work = cast("Coroutine[Any, Any, None]", callback(message))
        try:
            work.send(None)
        except StopIteration:
            return
        except Exception as error:
            self._report(error)
        else:
            work.close()
            self._report(RuntimeError(f"{callback!r} waits, and is said not to"))

    def _queue(self, subscription: Subscription, message: Msg, size: int) -> None:
        """To the task of a subscription, or to whoever waits for the one answer."""
        if subscription._future is not None:
            if not subscription._future.done():
                subscription._future.set_result(message)
            return
        if 0 < subscription._pending_bytes_limit <= subscription._pending_size + size:
            self._report(_slow(message, subscription))
            return
        try:
            subscription._pending_queue.put_nowait(message)
        except asyncio.QueueFull:
            self._report(_slow(message, subscription))
        else:
            subscription._pending_size += size

    def _report(self, error: Exception) -> None:
        self.later.put_nowait(lambda: self._client._error_cb(error))


def read_headers(block: bytes) -> dict[str, str] | None:
    """The headers of a message; None where there are none that can be read.

    Headers of agents mean nothing to the broker, so those that cannot be read are as good as none.
    """
    found: dict[str, str] = {}
    if block.startswith(_STATUS):
        line, _, block = block.partition(b"\r\n")
        status, _, description = line[len(_STATUS) :].partition(b" ")
        try:
            # Status and description only where the server itself says something: no answer there, the end of a pull.
            if status.isdigit():
                found["Status"] = status.decode()
            if description:
                found["Description"] = description.strip().decode()
        except UnicodeDecodeError:
            return None
    elif block.startswith(_HEAD):
        block = block[len(_HEAD) :]
    else:
        return None
    # As the library's client reads them (test_headers_are_read_as_the_library_reads_them), at half the cost.
    for line in block.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon and name.isascii() and (key := name.strip().decode()).split() == [key]:
            found[key] = value.strip().decode("utf-8", "replace")
    return found or None


def _number(field: bytes) -> int:
    """Raises ValueError for anything but digits, which ``int`` alone does not."""
    if not field.isdigit():
        raise ValueError
    return int(field)


def _slow(message: Msg, subscription: Subscription) -> SlowConsumerError:
    return SlowConsumerError(subject=message.subject, reply=message.reply, sid=subscription._id, sub=subscription)
