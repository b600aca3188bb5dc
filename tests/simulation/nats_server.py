"""A NATS server in memory, as far as the broker and the SDK use one: accounts, subjects, queue groups, no responders.

It speaks the client protocol over :mod:`tests.simulation.network`, so that the client library is the real one. What is kept is
in :mod:`tests.simulation.jetstream`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Final

from tests.simulation.loop import SimulatedLoop
from tests.simulation.network import SERVER, Network, Wire

VERSION: Final = "2.15.1"
MAX_PAYLOAD: Final = 1024 * 1024
NO_RESPONDERS: Final = b"NATS/1.0 503\r\n\r\n"

Who = tuple[str, str]
"""(account, user) of a connection."""


class Unanswered(Exception):  # noqa: N818
    """Nobody is there to say who a connection is: the server waits, and gives up."""


Watch = Callable[["Peer", str, str, bytes], None]
"""Told of every message that a client published: who, subject, reply, payload."""


class Subscription:
    """One interest of one connection."""

    __slots__ = ("left", "peer", "queue", "sid", "tokens")

    def __init__(self, peer: Peer, subject: str, queue: str, sid: str) -> None:
        self.peer, self.queue, self.sid = peer, queue, sid
        self.tokens = subject.split(".")
        self.left = -1


def matches(pattern: list[str], subject: list[str]) -> bool:
    """Whether a subject fits a pattern with ``*`` and ``>``."""
    if len(pattern) > len(subject):
        return False
    for index, token in enumerate(pattern):
        if token == ">":
            return True
        if token not in ("*", subject[index]):
            return False
    return len(pattern) == len(subject)


class Account:
    """Subscriptions of one account, found by their first token."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._first: dict[str, list[Subscription]] = {}
        self._exact: dict[str, list[Subscription]] = {}
        self.waiting: dict[str, Callable[[], None]] = {}
        """By subject: who wants to know that somebody listens there at last."""

    def add(self, subscription: Subscription) -> None:
        self._place(subscription).append(subscription)
        if (told := self.waiting.get(".".join(subscription.tokens))) is not None:
            told()

    def remove(self, subscription: Subscription) -> None:
        place = self._place(subscription)
        if subscription in place:
            place.remove(subscription)

    def _place(self, subscription: Subscription) -> list[Subscription]:
        tokens = subscription.tokens
        if "*" in tokens or ">" in tokens:
            return self._first.setdefault(tokens[0], [])
        return self._exact.setdefault(".".join(tokens), [])

    def interested(self, subject: str) -> list[Subscription]:
        """Who hears a message, queue groups not yet drawn."""
        tokens = subject.split(".")
        found = list(self._exact.get(subject, ()))
        for first in (tokens[0], ">", "*"):
            found += [one for one in self._first.get(first, ()) if matches(one.tokens, tokens)]
        return found


class Peer:
    """The server's side of one client connection."""

    def __init__(self, server: NatsServer, wire: Wire, cid: int) -> None:
        self.server, self.wire, self.cid = server, wire, cid
        self.who: Who | None = None
        self.name = ""
        self.account: Account | None = None
        self.nonce = ""
        self.closed = self.mute = False
        self._buffer = b""
        self._subscriptions: dict[str, Subscription] = {}

    def received(self, data: bytes) -> None:
        """Parse what can be parsed."""
        if self.closed or self.server.hold(self, data):
            return
        buffer = self._buffer + data if self._buffer else data
        at = 0
        while not self.closed:
            end = buffer.find(b"\r\n", at)
            if end < 0:
                break
            line = buffer[at:end]
            verb = line[:4].upper()
            if verb in (b"PUB ", b"HPUB"):
                parts = line.split()
                size = int(parts[-1])
                if len(buffer) < end + 4 + size:
                    break
                self._publish(verb == b"HPUB", parts, buffer[end + 2 : end + 2 + size])
                at = end + 4 + size
                continue
            at = end + 2
            if verb == b"PING" and not self.mute:
                self.wire.send(b"PONG\r\n")
            elif verb == b"SUB ":
                self._subscribe(line.decode().split())
            elif verb == b"UNSU":
                self._unsubscribe(line.decode().split())
            elif verb == b"CONN":
                self._connect(json.loads(line[8:]))
        self._buffer = buffer[at:]

    def _connect(self, options: dict[str, Any]) -> None:
        self.name = options.get("name", "")
        try:
            who = self.server.authenticate(options)
        except Unanswered:
            self.mute = True
            self.server.loop.call_later(2.0, self.end, context=SERVER)
            return
        if who is None:
            self.wire.send(b"-ERR 'Authorization Violation'\r\n")
            # The client reads the error before the end: close from our side a moment later.
            self.server.loop.call_later(0.01, self.end, context=SERVER)
            return
        self.who, self.account = who, self.server.account(who[0])
        self.server.announce(self, "CONNECT")
        for told in self.server.on_connected:
            told(self)

    def _subscribe(self, parts: list[str]) -> None:
        if self.account is None or self.mute:
            return
        subject, sid = parts[1], parts[-1]
        queue = parts[2] if len(parts) == 4 else ""
        self._subscriptions[sid] = one = Subscription(self, subject, queue, sid)
        self.account.add(one)

    def _unsubscribe(self, parts: list[str]) -> None:
        one = self._subscriptions.get(parts[1])
        if one is None or self.account is None:
            return
        if len(parts) > 2 and int(parts[2]) > 0:
            one.left = int(parts[2])
            return
        del self._subscriptions[parts[1]]
        self.account.remove(one)

    def _publish(self, with_headers: bool, parts: list[bytes], body: bytes) -> None:
        if self.account is None:
            return
        subject = parts[1].decode()
        reply = parts[2].decode() if len(parts) == (5 if with_headers else 4) else ""
        cut = int(parts[-2]) if with_headers else 0
        self.server.published(self, subject, reply, body[:cut], body[cut:])

    def deliver(self, one: Subscription, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        """One message to this client."""
        back = f" {reply}" if reply else ""
        if headers:
            head = f"HMSG {subject} {one.sid}{back} {len(headers)} {len(headers) + len(data)}\r\n"
        else:
            head = f"MSG {subject} {one.sid}{back} {len(data)}\r\n"
        if one.left > 0:
            one.left -= 1
            if not one.left:
                self._unsubscribe(["UNSUB", one.sid])
        self.wire.send(head.encode() + headers + data + b"\r\n")

    def lost(self) -> None:
        """The connection has ended."""
        if self.closed:
            return
        self.closed = True
        if self.account is not None:
            for one in self._subscriptions.values():
                self.account.remove(one)
        self._subscriptions.clear()
        if self.server.peers.pop(self.cid, None) is not None:
            self.server.announce(self, "DISCONNECT")

    def end(self) -> None:
        """Cut the client off."""
        self.lost()
        self.wire.cut()


class NatsServer:
    """One server, or a cluster seen from outside. ``authorize`` says who a connection is, by its options; None: refused."""

    def __init__(self, loop: SimulatedLoop, rng: random.Random, network: Network, host: str = "nats") -> None:
        self.loop, self.rng, self.network, self.host = loop, rng, network, host
        self.id = "SIMULATED"
        self.peers: dict[int, Peer] = {}
        self.accounts: dict[str, Account] = {}
        self.up = True
        self._held: list[tuple[Peer, bytes]] | None = None
        self.duplicates = 0.0
        """The probability that a dispatch is delivered twice, as when routes of a cluster change."""
        self.connections = 0
        self.authorize: Callable[[dict[str, Any]], Who | None] = lambda options: ("CORE", options.get("name", ""))
        self.watchers: list[Watch] = []
        self.on_connected: list[Callable[[Peer], None]] = []
        self.services: dict[tuple[str, str], Callable[[Peer | None, str, str, bytes, bytes], bool]] = {}
        """By (account, first token): what answers messages inside the server. True: it has taken the message."""
        self.services["SYS", "$SYS"] = self._system
        network.hosts[host] = self.accept

    def account(self, name: str) -> Account:
        return self.accounts.setdefault(name, Account(name))

    def accept(self, wire: Wire) -> Peer | None:
        """A new connection."""
        if not self.up:
            return None
        self.connections += 1
        peer = Peer(self, wire, self.connections)
        peer.nonce = f"{self.rng.getrandbits(64):016x}"
        self.peers[peer.cid] = peer
        info = {
            "server_id": self.id, "server_name": self.host, "version": VERSION, "proto": 1, "headers": True,
            "max_payload": MAX_PAYLOAD, "client_id": peer.cid, "nonce": peer.nonce, "auth_required": True, "jetstream": True,
        }  # fmt: skip
        wire.send(f"INFO {json.dumps(info)}\r\n".encode())
        return peer

    def announce(self, peer: Peer, what: str) -> None:
        """An event of the system account."""
        if peer.who is not None and self.up:
            event = {"server": {"id": self.id}, "client": {"id": peer.cid, "user": peer.who[1], "acc": peer.who[0]}}
            self.route(self.account("SYS"), f"$SYS.ACCOUNT.{peer.who[0]}.{what}", "", b"", json.dumps(event).encode())

    def _system(self, _: Peer | None, subject: str, reply: str, __: bytes, data: bytes) -> bool:
        """Who is connected, and ending a connection."""
        answer: dict[str, Any] = {"server": {"id": self.id}, "data": {}}
        if subject == "$SYS.REQ.SERVER.PING.CONNZ":
            account = json.loads(data)["acc"]
            answer["data"]["connections"] = [
                {"cid": peer.cid, "authorized_user": peer.who[1], "account": account}
                for peer in self.peers.values()
                if peer.who is not None and peer.who[0] == account
            ]
        elif subject.endswith(".KICK"):
            peer = self.peers.get(json.loads(data)["cid"])
            if peer is not None:
                peer.end()
        else:
            return False
        self.route(self.account("SYS"), reply, "", b"", json.dumps(answer).encode())
        return True

    def authenticate(self, options: dict[str, Any]) -> Who | None:
        return self.authorize(options)

    def published(self, peer: Peer, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        """A client's message."""
        assert peer.account is not None
        for watch in self.watchers:
            watch(peer, subject, reply, data)
        self.route(peer.account, subject, reply, headers, data, peer)

    def route(
        self, account: Account, subject: str, reply: str, headers: bytes, data: bytes, peer: Peer | None = None
    ) -> bool:
        """To everybody who is interested. Whether there was anybody."""
        service = self.services.get((account.name, subject.split(".", 1)[0]))
        heard = service is not None and service(peer, subject, reply, headers, data)
        groups: dict[str, list[Subscription]] = {}
        for one in account.interested(subject):
            if one.queue:
                groups.setdefault(one.queue, []).append(one)
            else:
                one.peer.deliver(one, subject, reply, headers, data)
                heard = True
        for group in groups.values():
            one = group[0] if len(group) == 1 else group[self.rng.randrange(len(group))]
            one.peer.deliver(one, subject, reply, headers, data)
            if self.duplicates and subject.startswith("svc.") and self.rng.random() < self.duplicates:
                one.peer.deliver(one, subject, reply, headers, data)
            heard = True
        if not heard and reply and peer is not None:
            for one in account.interested(reply):
                if one.peer is peer:
                    peer.deliver(one, reply, "", NO_RESPONDERS, b"")
        return heard

    def freeze(self) -> None:
        """Stand still: what clients say waits."""
        self._held = []

    def thaw(self) -> None:
        """Go on."""
        held, self._held = self._held or [], None
        for peer, data in held:
            peer.received(data)

    def hold(self, peer: Peer, data: bytes) -> bool:
        """Whether the server stands still, and so reads nothing."""
        if self._held is None:
            return False
        self._held.append((peer, data))
        return True

    def stop(self) -> None:
        """The server's process ends: every connection with it."""
        self.up = False
        for peer in list(self.peers.values()):
            peer.end()

    def start(self) -> None:
        """It is back."""
        self.up = True


def header(headers: bytes, name: str) -> str | None:
    """One header of a message."""
    if not headers:
        return None
    mark = f"\r\n{name}:".encode()
    at = headers.find(mark)
    if at < 0:
        return None
    return headers[at + len(mark) : headers.find(b"\r\n", at + len(mark))].decode().strip()
