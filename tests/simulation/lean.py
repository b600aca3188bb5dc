"""A client of the simulated server without a wire: the same surface as nats-py's, as far as the adapters use it, and cheap.

Messages still take time, keep their order on one connection, are lost when it is cut and wait while its process stands still. What
is published while there is no connection is kept and sent late, as nats-py does.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from nats.errors import ConnectionClosedError, NoRespondersError
from nats.errors import TimeoutError as NatsTimeout

from tests.simulation.loop import PROCESS, Process
from tests.simulation.nats_server import NatsServer, Peer, Subscription, Who
from tests.simulation.network import SERVER

FLUSH = 10.0
"""Seconds that a flush waits, as in nats-py."""
Callback = Callable[[Any], Coroutine[Any, Any, None]]


class Version(NamedTuple):
    major: int = 2
    minor: int = 15
    patch: int = 1


class LeanMsg(NamedTuple):
    """A message as callbacks get it."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None


class LeanWire(NamedTuple):
    """What the server and the checks ask of a connection."""

    process: Process | None
    client: LeanClient

    def cut(self) -> None:
        self.client.cut_off()


class LeanPeer(Peer):
    """The server's side of it."""

    def deliver(self, one: Subscription, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        if one.left > 0:
            one.left -= 1
            if not one.left and self.account is not None:
                self.account.remove(one)
        self.wire.client.coming(one.sid, subject, reply, headers, data)  # type: ignore[attr-defined]


class LeanSubscription:
    """One interest; its messages are handed over one after the other."""

    def __init__(self, client: LeanClient, sid: str, subject: str, queue: str, cb: Callback) -> None:
        self.client, self.sid, self.subject, self.queue, self.cb = client, sid, subject, queue, cb
        self.inline = bool(getattr(cb, "at_once", False))
        self._waiting: deque[LeanMsg] = deque()
        self._working = False

    def hear(self, message: LeanMsg) -> None:
        if self.inline and not self._working:
            step = self.cb(message)
            try:
                step.send(None)
            except StopIteration:
                return
            raise RuntimeError("a callback that never waits has waited")
        self._waiting.append(message)
        if not self._working:
            self._working = True
            asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self.cb(self._waiting.popleft())
        finally:
            self._working = False

    async def unsubscribe(self) -> None:
        self.client.forget(self)


class LeanClient:
    """One connection that is kept for ever: cut, it is made again as soon as the server lets it."""

    is_closed = False
    max_payload = 1024 * 1024
    connected_server_version = Version()

    def __init__(self, server: NatsServer, who: Who, inbox: str) -> None:
        self.server, self.who = server, who
        self.stats = {"reconnects": 0}
        self.is_connected = False
        self._network, self._loop = server.network, server.loop
        self.process = PROCESS.get()
        self._context = contextvars.copy_context()
        self._inbox = inbox
        self._numbers = 0
        self._subscriptions: dict[str, LeanSubscription] = {}
        self._on_server: dict[str, Subscription] = {}
        self._peer: LeanPeer | None = None
        self._up_at = self._down_at = 0.0
        self._up: deque[tuple[LeanPeer, Callable[[], None]]] = deque()
        self._down: deque[tuple[Peer | None, str, LeanMsg, int]] = deque()
        self._held: list[Callable[[], None]] = []
        self._requests: dict[str, asyncio.Future[LeanMsg]] = {}
        if self.process is not None:
            self.process.kept.append(self)
            self.process.at_death.append(self._died)

    async def connect(self) -> LeanClient:
        """Connect at once; the server must be up."""
        self._network.wires.append(self)  # type: ignore[arg-type]
        self._join()
        await self.subscribe(f"{self._inbox}.r.*", cb=self._answered)
        return self

    def _join(self) -> None:
        server = self.server
        server.connections += 1
        self._peer = peer = LeanPeer(server, LeanWire(self.process, self), server.connections)  # type: ignore[arg-type]
        peer.who, peer.account = self.who, server.account(self.who[0])
        server.peers[peer.cid] = peer
        self.is_connected = True
        for told in server.on_connected:
            told(peer)
        self._on_server.clear()
        for one in self._subscriptions.values():
            self._announce(one)

    def _announce(self, one: LeanSubscription) -> None:
        peer = self._peer
        if peer is None or peer.account is None:
            return  # whoever wanted it died while this was on its way
        there = Subscription(peer, one.subject, one.queue, one.sid)
        self._on_server[one.sid] = there
        peer._subscriptions[one.sid] = there
        peer.account.add(there)

    @property
    def severed(self) -> bool:
        return self.process is not None and self.process.host in self._network.severed

    # Out

    def _send(self, work: Callable[[], None]) -> None:
        peer = self._peer
        if peer is None or self.severed:
            self._held.append(work)
            return
        self._up_at = max(self._up_at, self._loop.now + self._network.delay())
        self._up.append((peer, work))
        self._loop.call_at(self._up_at, self._arrive, context=SERVER)

    def _arrive(self) -> None:
        peer, work = self._up.popleft()
        if not peer.closed:
            work()

    def heal(self) -> None:
        """What waited goes on its way."""
        held, self._held = self._held, []
        for work in held:
            work() if work == self._schedule else self._send(work)

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        if self.process is not None and not self.process.alive:
            return
        block = b""
        if headers:
            block = "".join(
                ("NATS/1.0\r\n", *[f"{key}: {value}\r\n" for key, value in headers.items()], "\r\n")
            ).encode()

        def arrives() -> None:
            if self._peer is not None:
                self.server.published(self._peer, subject, reply, block, payload)

        self._send(arrives)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109 - as in nats-py
        headers: dict[str, str] | None = None,
    ) -> LeanMsg:
        self._numbers += 1
        reply = f"{self._inbox}.r.{self._numbers}"
        answer: asyncio.Future[LeanMsg] = asyncio.get_running_loop().create_future()
        self._requests[reply] = answer
        try:
            await self.publish(subject, payload, reply, headers)
            async with asyncio.timeout(timeout):
                message = await answer
        except TimeoutError:
            raise NatsTimeout from None
        finally:
            self._requests.pop(reply, None)
        if message.headers and message.headers.get("Status") == "503":
            raise NoRespondersError
        return message

    async def _answered(self, message: LeanMsg) -> None:
        answer = self._requests.get(message.subject)
        if answer is not None and not answer.done():
            answer.set_result(message)

    _answered.at_once = True  # type: ignore[attr-defined]

    # In

    async def subscribe(self, subject: str, queue: str = "", cb: Callback | None = None, **_: Any) -> LeanSubscription:
        assert cb is not None
        self._numbers += 1
        one = LeanSubscription(self, str(self._numbers), subject, queue, cb)
        self._subscriptions[one.sid] = one
        if self._peer is not None:
            self._send(
                lambda: (
                    self._announce(one) if one.sid in self._subscriptions and one.sid not in self._on_server else None
                )
            )
        return one

    def forget(self, one: LeanSubscription) -> None:
        self._subscriptions.pop(one.sid, None)
        there = self._on_server.pop(one.sid, None)
        if there is not None and there.peer.account is not None:
            there.peer.account.remove(there)

    def coming(self, sid: str, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        """The server sends a message."""
        message = LeanMsg(subject, reply, data, _parsed(headers))
        self._down.append((self._peer, sid, message, self._network.saying))
        if self.severed:
            self._held.append(self._schedule)
        else:
            self._schedule()

    def _schedule(self) -> None:
        self._down_at = max(self._down_at, self._loop.now + self._network.delay())
        self._loop.call_at(self._down_at, self._deliver, context=self._context)

    def _deliver(self) -> None:
        peer, sid, message, said = self._down.popleft()
        one = self._subscriptions.get(sid)
        if peer is not None and peer is self._peer and one is not None:
            if said:
                self._network.heard(self.process, said)
            one.hear(message)

    # The connection

    def cut_off(self) -> None:
        """The server's end is gone."""
        self._peer = None
        self._loop.call_later(self._network.delay(), self._notice, context=self._context)

    def _notice(self) -> None:
        if self._peer is None:
            self.is_connected = False
            self._loop.call_later(0.1, self._again, context=self._context)

    def _again(self) -> None:
        if self._peer is not None:
            return
        if not self.server.up or self.severed:
            self._loop.call_later(0.1, self._again, context=self._context)
            return
        self._join()
        self.stats["reconnects"] += 1
        self.heal()

    def _died(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            # What it had written may still arrive.
            self._loop.call_later(
                self._network.delay() if self._network.rng.random() < 0.5 else 0.0, peer.lost, context=SERVER
            )

    def new_inbox(self) -> str:
        self._numbers += 1
        return f"{self._inbox}.i{self._numbers}"

    async def flush(self, _: float = 0) -> None:
        if self._peer is None:
            raise ConnectionClosedError
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._send(lambda: None if done.done() else done.set_result(None))
        try:
            async with asyncio.timeout(FLUSH):
                await done
        except TimeoutError:
            raise NatsTimeout from None  # the connection was cut while this was on its way


def _parsed(headers: bytes) -> dict[str, str] | None:
    if not headers:
        return None
    lines = headers.decode().split("\r\n")
    first = lines[0].split(" ", 2)
    found = {} if len(first) < 2 else {"Status": first[1]}
    for line in lines[1:]:
        name, mark, value = line.partition(":")
        if mark:
            found[name] = value.strip()
    return found
