"""The few requests of JetStream that the ledger, the refusals and the index need, with exactly their answers.

Requests go to the API of the account the connection is in. Reads are leader reads: they use ``STREAM.MSG.GET``, never
``DIRECT.GET``, which a follower may answer. Where a consumer is used (long reads), the caller checks the content.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, NoReturn

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout

from remit_broker.adapters.errors import ConfigError
from remit_broker.ports import at_once

API: Final = "$JS.API"
EXPECT_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence"
EXPECT_STREAM: Final = "Nats-Expected-Stream"
WRONG_LAST_SEQUENCE: Final = 10071
IN_FLIGHT: Final = 10164
NO_MESSAGE: Final = 10037
NO_STREAM: Final = 10059
OLDEST_SERVER: Final = (2, 14, 4)
"""Older servers lose or reorder acknowledged messages in ways that this ledger does not detect."""

_ABSENT: Final = ("mirror", "sources", "republish", "subject_transform", "subject_delete_marker_ttl")
"""Settings by which messages come from or go to somewhere else, whatever their value."""

_CONSUMER_IDLE: Final = 30 * 10**9
_ACK = re.compile(r"\$JS\.ACK\.(?:[^.]+\.[^.]+\.)?[^.]+\.[^.]+\.\d+\.(\d+)\.(\d+)\.\d+\.\d+(?:\.[^.]+)?")


class Unreachable(Exception):  # noqa: N818
    """No answer: the request may or may not have been carried out."""


class ApiError(Exception):
    """JetStream answered with an error. ``code`` is its ``err_code``."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"JetStream error {code}: {text}")
        self.code = code


class Message(NamedTuple):
    """A stored message; ``seq`` is its sequence in the stream."""

    seq: int
    subject: str
    data: bytes


class _Fault(msgspec.Struct, frozen=True):
    code: int = 0
    err_code: int = 0
    description: str = ""


class Ack(msgspec.Struct, frozen=True):
    """The answer to a publish; ``batch`` and ``count`` where it committed a batch, whose last message is at ``seq``."""

    stream: str = ""
    seq: int = 0
    error: _Fault | None = None
    batch: str = ""
    count: int = 0


class _Stored(msgspec.Struct, frozen=True):
    subject: str
    seq: int
    data: str = ""


class _Got(msgspec.Struct, frozen=True):
    message: _Stored | None = None
    error: _Fault | None = None


_ack = msgspec.json.Decoder(Ack).decode
_got = msgspec.json.Decoder(_Got).decode
_json = msgspec.json.Decoder().decode
_encode = msgspec.json.encode


class JetStream:
    """One connection's view of JetStream. ``timeout`` is in seconds, for one request and its answer."""

    def __init__(self, nc: Client, *, timeout: float = 2.0) -> None:
        self._nc = nc
        self._timeout = timeout
        self._acks = Acks(nc)

    @property
    def reconnects(self) -> int:
        """How often the connection was made again: a server may have restarted in between."""
        return self._nc.stats["reconnects"]

    def require_version(self) -> None:
        """Raises :class:`ConfigError` for a server older than :data:`OLDEST_SERVER`."""
        found = self._nc.connected_server_version
        if (found.major, found.minor, found.patch) < OLDEST_SERVER:
            wanted = ".".join(map(str, OLDEST_SERVER))
            raise ConfigError(f"nats-server {found} is too old for the ledger", f"use {wanted} or newer")

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str], seconds: float | None = None) -> Ack:
        """Publish and wait for the ack, an error's included. Raises :class:`Unreachable`: then it may be stored or not.

        Nothing is handed to a connection that is down: it would be sent whenever the connection comes back.
        """
        if not self._nc.is_connected:
            raise Unreachable("not connected to the NATS server")
        try:
            reply = await self._acks.publish(subject, payload, headers, self._timeout if seconds is None else seconds)
        except (NatsError, OSError) as error:
            raise Unreachable(str(error) or type(error).__name__) from None
        try:
            return _ack(reply)
        except msgspec.DecodeError as error:
            raise Unreachable(f"not an ack: {error}") from None

    async def hand_over(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """Publish without waiting for an answer, which comes with that of a later publish. Raises :class:`Unreachable`."""
        if not self._nc.is_connected:
            raise Unreachable("not connected to the NATS server")
        try:
            await self._nc.publish(subject, payload, headers=headers)
        except (NatsError, OSError) as error:
            raise Unreachable(str(error) or type(error).__name__) from None

    async def api(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One request to the API. Raises :class:`Unreachable` or :class:`ApiError`."""
        reply = await self._request(f"{API}.{subject}", b"" if body is None else _encode(body), None, None)
        answer: dict[str, Any] = _json(reply.data)
        if error := answer.get("error"):
            raise ApiError(error.get("err_code", 0), error.get("description", ""))
        return answer

    async def last(self, stream: str, subject: str) -> Message | None:
        """The newest message of ``subject``."""
        return await self._get(stream, {"last_by_subj": subject})

    async def at(self, stream: str, seq: int) -> Message | None:
        """The message at ``seq`` of the stream."""
        return await self._get(stream, {"seq": seq})

    async def next(self, stream: str, subject: str, seq: int) -> Message | None:
        """The first message of ``subject`` at or after ``seq`` of the stream."""
        return await self._get(stream, {"seq": seq, "next_by_subj": subject})

    async def state(self, stream: str) -> dict[str, Any]:
        """The ``state`` of a stream: ``last_seq``, ``first_seq``, ``messages``, ``bytes`` …, and its ``max_bytes``."""
        info = await self.api(f"STREAM.INFO.{stream}")
        return {**info["state"], "max_bytes": info["config"].get("max_bytes", -1)}

    async def read(self, stream: str, subject: str, after: int, upto: int) -> list[Message]:
        """All messages of ``subject`` after ``after``, ``upto`` included, through a consumer of its own.

        A follower may serve it and lag: what was not received in time raises :class:`Unreachable`.
        """
        found: list[Message] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        @at_once
        async def receive(msg: Msg) -> None:
            seq = stream_seq(msg.reply)
            if seq is None or done.done():
                return
            found.append(Message(seq, msg.subject, msg.data))
            if seq >= upto:
                done.set_result(None)

        inbox = self._nc.new_inbox()
        subscription = await self._nc.subscribe(inbox, cb=receive)
        name = inbox.rsplit(".", 1)[-1]
        try:
            await self.api(f"CONSUMER.CREATE.{stream}.{name}.{subject}", consumer(stream, name, subject, after, inbox))
            async with asyncio.timeout(self._timeout):
                await done
        except TimeoutError:
            raise Unreachable(f"{subject} could not be read whole in {self._timeout} s") from None
        finally:
            with contextlib.suppress(NatsError):
                await subscription.unsubscribe()
                await self._nc.publish(f"{API}.CONSUMER.DELETE.{stream}.{name}")
        return found

    async def ensure(self, wanted: Mapping[str, Any], *, unequal_ok: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Make the stream, or check that the one there is set as ``wanted`` and return its description.

        Raises :class:`ConfigError` that names the first setting that differs.
        """
        name = wanted["name"]
        try:
            info = await self.api(f"STREAM.INFO.{name}")
        except ApiError as error:
            if error.code != NO_STREAM:
                raise
            info = await self.api(f"STREAM.CREATE.{name}", wanted)
        for key, value in wanted.items():
            found = info["config"].get(key, type(value)())
            if found != value and key not in unequal_ok:
                raise _wrong(name, key, found, repr(value))
        for key in _ABSENT:
            if found := info["config"].get(key):
                raise _wrong(name, key, found, "absent")
        return info

    async def _get(self, stream: str, body: Mapping[str, Any]) -> Message | None:
        reply = await self._request(f"{API}.STREAM.MSG.GET.{stream}", _encode(body), None, None)
        try:
            got = _got(reply.data)
        except msgspec.DecodeError as error:
            raise Unreachable(f"not an answer: {error}") from None
        if got.error is not None:
            if got.error.err_code == NO_MESSAGE:
                return None
            raise ApiError(got.error.err_code, got.error.description)
        if got.message is None:
            raise Unreachable("an empty answer")
        return Message(got.message.seq, got.message.subject, base64.b64decode(got.message.data))

    async def _request(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, seconds: float | None
    ) -> Msg:
        if not self._nc.is_connected:
            raise Unreachable("not connected to the NATS server")
        try:
            return await self._nc.request(
                subject, payload, timeout=self._timeout if seconds is None else seconds, headers=headers
            )
        except NatsTimeout:
            self._unreachable(f"no answer on {_short(subject)}")
        except NoRespondersError:
            self._unreachable(f"nobody answers {_short(subject)}: is JetStream on, and has the stream a leader?")
        except NatsError as error:
            self._unreachable(str(error) or type(error).__name__)
        except OSError as error:
            self._unreachable(str(error))

    @staticmethod
    def _unreachable(why: str) -> NoReturn:
        raise Unreachable(why) from None


class Acks:
    """Publishes whose answers come back over one subscription; each waits for its own, and all share one timer.

    ``Client.request`` does the same with an id drawn anew and a timer set for every request: a fifth of what a record costs.
    """

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._inbox = ""
        self._sent = 0
        self._starting = asyncio.Lock()
        self._waiting: dict[str, tuple[asyncio.Future[bytes], float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str], seconds: float) -> bytes:
        """The answer. Raises :class:`Unreachable` after ``seconds`` without one, or what the client raises."""
        if not self._inbox:
            await self._start()
        loop = asyncio.get_running_loop()
        self._sent += 1
        # Nobody else can publish to the inbox, whose name was drawn: the part that counts need not be unguessable.
        reply = f"{self._inbox}.{self._sent}"
        answer: asyncio.Future[bytes] = loop.create_future()
        due = loop.time() + seconds
        self._waiting[reply] = (answer, due)
        if self._timer is None or self._timer.when() > due:
            self._set_timer(loop, due)
        try:
            await self._nc.publish(subject, payload, reply=reply, headers=headers)
            return await answer
        finally:
            del self._waiting[reply]

    async def _start(self) -> None:
        async with self._starting:
            if not self._inbox:
                inbox = self._nc.new_inbox()
                await self._nc.subscribe(f"{inbox}.*", cb=self._answered, pending_msgs_limit=-1)
                self._inbox = inbox

    @at_once
    async def _answered(self, msg: Msg) -> None:
        waiting = self._waiting.get(msg.subject)
        if waiting is None or waiting[0].done():
            return
        if not msg.data and msg.headers and msg.headers.get("Status") == "503":
            why = "nobody answers: is JetStream on, and has the stream a leader?"
            waiting[0].set_exception(Unreachable(why))
        else:
            waiting[0].set_result(msg.data)

    def _set_timer(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(due, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for answer, due in self._waiting.values():
            if due <= now and not answer.done():
                answer.set_exception(Unreachable("no answer in time"))
        later = [due for answer, due in self._waiting.values() if not answer.done()]
        if later:
            self._set_timer(loop, min(later))


def consumer(stream: str, name: str, subject: str, after: int, inbox: str) -> dict[str, Any]:
    """The request for an ephemeral consumer that pushes all of ``subject`` after ``after`` to ``inbox``."""
    return {
        "stream_name": stream,
        "config": {
            "name": name,
            "deliver_subject": inbox,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after + 1,
            "ack_policy": "none",
            "filter_subject": subject,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _CONSUMER_IDLE,
        },
    }


def stream_seq(reply: str) -> int | None:
    """The stream sequence in the reply subject of a message that a consumer delivered."""
    match = _ACK.fullmatch(reply)
    return int(match[1]) if match else None


def delivered(reply: str) -> tuple[int, int] | None:
    """As :func:`stream_seq`, and how many messages that consumer has delivered with this one."""
    match = _ACK.fullmatch(reply)
    return (int(match[1]), int(match[2])) if match else None


def _wrong(stream: str, key: str, found: object, wanted: str) -> ConfigError:
    return ConfigError(
        f"the stream {stream} has {key} = {found!r}; it must be {wanted}",
        "set it so, or let the broker make the stream",
    )


def _short(subject: str) -> str:
    return subject if len(subject) <= 48 else f"{subject[:45]}..."
