"""Streams, consumers and their API as one NATS server or a cluster of them was seen to behave, its faults included.

A publish is proposed, checked against what is expected, committed after a while and acknowledged. In a *cluster* a second
proposal for a subject that has one under way is answered 10164, and a change of leader drops a suffix of what is under way
while the rest is committed without an acknowledgement. A *power cut* takes back the end of what was committed.
"""

from __future__ import annotations

import base64
import json
import random
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from tests.simulation.loop import SimulatedLoop
from tests.simulation.nats_server import NatsServer, Peer, header, matches
from tests.simulation.network import SERVER

WRONG_LAST = 10071
IN_FLIGHT = 10164
NO_MESSAGE = 10037
NO_STREAM = 10059
NO_CONSUMER = 10014
FULL = 10077
NOT_AVAILABLE = 10008
STREAM_EXISTS = 10058

LEDGER = "LEDGER"
EPOCH_NS = 1_800_000_000 * 10**9


class Kept(NamedTuple):
    """A stored message."""

    seq: int
    subject: str
    headers: bytes
    data: bytes
    at: float


class Proposal(NamedTuple):
    """A publish under way. ``expected`` is the last sequence of its subject that it demands, None: any."""

    subject: str
    reply: str
    headers: bytes
    data: bytes
    expected: int | None
    peer: Peer | None


class Faults:
    """How unkind the store is. Rates are probabilities per message, times are seconds."""

    def __init__(self) -> None:
        self.lost_acks = self.late_acks = self.slow_commits = 0.0
        self.late = 2.0
        self.slow = 0.5
        self.commit = 0.0004


class Stream:
    """One stream. What happens to it is counted in ``counts`` of the :class:`JetStreams`."""

    def __init__(self, owner: JetStreams, config: dict[str, Any]) -> None:
        self.owner, self.config = owner, config
        self.name: str = config["name"]
        self.patterns = [subject.split(".") for subject in config["subjects"]]
        self.messages: dict[int, Kept] = {}
        self.of_subject: dict[str, list[int]] = {}
        self.last_seq = 0
        self.bytes = 0
        self.leading = True
        self.under_way: deque[Proposal] = deque()
        self.consumers: dict[str, Consumer] = {}
        self.ready_at = 0.0
        self.term = 0

    def takes(self, tokens: list[str]) -> bool:
        return any(matches(pattern, tokens) for pattern in self.patterns)

    def last_of(self, subject: str) -> Kept | None:
        seqs = self.of_subject.get(subject)
        return self.messages[seqs[-1]] if seqs else None

    # Publishing

    def propose(self, proposal: Proposal) -> None:
        """A publish has arrived."""
        owner = self.owner
        if not self.leading:
            return
        if (stream := header(proposal.headers, "Nats-Expected-Stream")) and stream != self.name:
            owner.refuse(self, proposal, 10060, "expected stream does not match")
            return
        if owner.clustered and proposal.expected is not None:
            if any(other.subject == proposal.subject for other in self.under_way):
                owner.counts["10164"] += 1
                owner.refuse(self, proposal, IN_FLIGHT, "expected last sequence per subject is in flight")
                return
            if not self._expected(proposal):
                return
        self.under_way.append(proposal)
        faults = owner.faults
        seconds = owner.rng.expovariate(1.0) * faults.commit
        if owner.rng.random() < faults.slow_commits:
            owner.counts["slow commits"] += 1
            seconds += owner.rng.random() * faults.slow
        self.ready_at = max(self.ready_at, owner.loop.now + seconds)
        owner.loop.call_at(self.ready_at, self._commit, self.term, context=SERVER)

    def _expected(self, proposal: Proposal) -> bool:
        if proposal.expected is None:
            return True
        last = self.last_of(proposal.subject)
        found = last.seq if last else 0
        if found == proposal.expected:
            return True
        self.owner.counts["10071"] += 1
        self.owner.refuse(self, proposal, WRONG_LAST, f"wrong last sequence: {found}")
        return False

    def _commit(self, term: int) -> None:
        if term != self.term or not self.under_way:
            return  # another leader has decided about it
        proposal = self.under_way.popleft()
        if not self._expected(proposal):
            return
        limit = self.config.get("max_bytes", -1)
        if self.config.get("discard") == "new" and 0 < limit < self.bytes + _size(
            proposal.subject, proposal.headers, proposal.data
        ):
            self.owner.refuse(self, proposal, FULL, "maximum bytes exceeded")
            return
        seq = self.store(proposal)
        self.owner.acknowledge(self, proposal, seq)

    def store(self, proposal: Proposal) -> int:
        """Append, and tell everybody who follows."""
        if header(proposal.headers, "Nats-Rollup") == "sub":
            for seq in list(self.of_subject.get(proposal.subject, ())):
                self._drop(seq)
        self.last_seq += 1
        kept = Kept(self.last_seq, proposal.subject, proposal.headers, proposal.data, self.owner.loop.now)
        self.messages[kept.seq] = kept
        seqs = self.of_subject.setdefault(kept.subject, [])
        seqs.append(kept.seq)
        self.bytes += _size(kept.subject, kept.headers, kept.data)
        per_subject = self.config.get("max_msgs_per_subject", -1)
        while 0 < per_subject < len(seqs):
            self._drop(seqs[0])
        limit = self.config.get("max_bytes", -1)
        while 0 < limit < self.bytes and self.config.get("discard") == "old":
            self._drop(next(iter(self.messages)))
        for told in self.owner.on_stored:
            told(self, kept)
        for consumer in list(self.consumers.values()):
            consumer.wake()
        return kept.seq

    def _drop(self, seq: int) -> None:
        kept = self.messages.pop(seq)
        self.of_subject[kept.subject].remove(seq)
        self.bytes -= _size(kept.subject, kept.headers, kept.data)

    # Faults

    def lead_no_more(self) -> None:
        """The leader is gone: a part of what was under way survives it, in order, and will be committed unacknowledged."""
        self.leading = False
        self.term += 1
        survivors = self.owner.rng.randint(0, len(self.under_way))
        self.owner.counts["dropped proposals"] += len(self.under_way) - survivors
        self.under_way = deque(proposal._replace(reply="") for proposal in list(self.under_way)[:survivors])

    def lead_again(self) -> None:
        """Another leader: it commits what survived, then takes new messages."""
        survivors, self.under_way = self.under_way, deque()
        for proposal in survivors:
            last = self.last_of(proposal.subject)
            if proposal.expected in (None, last.seq if last else 0):
                self.owner.counts["committed unacknowledged"] += 1
                self.store(proposal)
        self.leading = True
        self.owner.advise(self.name)

    def roll_back(self, count: int) -> list[Kept]:
        """A power cut: the last ``count`` messages were never on the disk, and their numbers are given out again."""
        lost = []
        for _ in range(count):
            if self.last_seq == 0:
                break
            kept = self.messages.get(self.last_seq)
            if kept is not None:
                self._drop(kept.seq)
                lost.append(kept)
            self.last_seq -= 1
        return lost

    def info(self) -> dict[str, Any]:
        return {
            "type": "io.nats.jetstream.api.v1.stream_info_response",
            "config": self.config,
            "created": "2027-01-15T08:00:00Z",
            "ts": self.owner.clock(),
            "state": {
                "messages": len(self.messages), "bytes": self.bytes, "first_seq": next(iter(self.messages), self.last_seq + 1),
                "last_seq": self.last_seq, "consumer_count": len(self.consumers), "num_subjects": len(self.of_subject),
            },
            "cluster": {"leader": "SIMULATED"},
        }  # fmt: skip


class Pull:
    """A request for messages that waits."""

    def __init__(self, reply: str, batch: int, beat: float) -> None:
        self.reply, self.left, self.beat = reply, batch, beat
        self.over = False


class Consumer:
    """A reader's position in a stream: pushed to a subject, or pulled in batches. Ephemeral, unacknowledged."""

    def __init__(self, stream: Stream, name: str, config: dict[str, Any]) -> None:
        self.stream, self.name, self.config = stream, name, config
        self.filter = (config.get("filter_subject") or ">").split(".")
        self.deliver: str = config.get("deliver_subject") or ""
        self.delivered = 0
        self.pulls: deque[Pull] = deque()
        self.gone = False
        self.beat = (config.get("idle_heartbeat") or 0) / 1e9
        self._only: set[int] | None = None
        policy = config.get("deliver_policy", "all")
        if policy == "by_start_sequence":
            self.next = max(1, int(config.get("opt_start_seq") or 1))
        elif policy == "new":
            self.next = stream.last_seq + 1
        elif policy == "last_per_subject":
            self._only = {seqs[-1] for subject, seqs in stream.of_subject.items() if seqs and self._fits(subject)}
            self.next = 1
            self._upto = stream.last_seq
        else:
            self.next = 1
        self._quiet_since = stream.owner.loop.now
        self._interest_at = stream.owner.loop.now
        if self.deliver:
            stream.owner.account.waiting[self.deliver] = self.wake
        if self.beat and self.deliver:
            stream.owner.loop.call_later(self.beat, self._idle, context=SERVER)
        # The answer to whoever made it goes first.
        stream.owner.loop.call_later(0.001, self.wake, context=SERVER)

    def _fits(self, subject: str) -> bool:
        return matches(self.filter, subject.split("."))

    def _wanted(self, kept: Kept) -> bool:
        if self._only is not None and kept.seq <= self._upto:
            return kept.seq in self._only
        return self._fits(kept.subject)

    def pending(self) -> int:
        """Messages that are there and were not delivered yet."""
        messages = self.stream.messages
        if self.next > self.stream.last_seq:
            return 0
        return sum(
            1 for seq in range(self.next, self.stream.last_seq + 1) if seq in messages and self._wanted(messages[seq])
        )

    def _peek(self) -> Kept | None:
        messages, last = self.stream.messages, self.stream.last_seq
        while self.next <= last:
            kept = messages.get(self.next)
            if kept is not None and self._wanted(kept):
                return kept
            self.next += 1
        return None

    def wake(self) -> None:
        """Deliver what there is to whom wants it."""
        if self.gone or not self.stream.leading:
            return
        owner = self.stream.owner
        while (kept := self._peek()) is not None:
            if self.deliver:
                if not owner.account.interested(self.deliver):
                    self._abandoned()
                    return
                target = self.deliver
            else:
                while self.pulls and self.pulls[0].over:
                    self.pulls.popleft()
                if not self.pulls:
                    return
                pull = self.pulls[0]
                target = pull.reply
                pull.left -= 1
                if not pull.left:
                    pull.over = True
                    self.pulls.popleft()
            self._interest_at = self._quiet_since = owner.loop.now
            self.next = kept.seq + 1
            self.delivered += 1
            stamp = EPOCH_NS + int(kept.at * 1e9)
            back = f"$JS.ACK.{self.stream.name}.{self.name}.1.{kept.seq}.{self.delivered}.{stamp}.{self.pending()}"
            seen = kept.seq if self.deliver and self.stream.name == LEDGER else 0
            owner.send(target, kept.subject, back, kept.headers, kept.data, seen)

    def _abandoned(self) -> None:
        limit = (self.config.get("inactive_threshold") or 5e9) / 1e9
        if self.stream.owner.loop.now - self._interest_at > limit:
            self.remove()

    def remove(self) -> None:
        """It is gone."""
        self.gone = True
        self.stream.consumers.pop(self.name, None)
        self.stream.owner.account.waiting.pop(self.deliver, None)

    def _idle(self) -> None:
        """A heartbeat while there is nothing to say."""
        owner = self.stream.owner
        if self.gone:
            return
        if not owner.account.interested(self.deliver):
            self._abandoned()
        elif owner.loop.now - self._quiet_since >= self.beat * 0.99 and self.stream.leading:
            head = f"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: {self.delivered}\r\nNats-Last-Stream: {self.next - 1}\r\n\r\n"
            owner.send(self.deliver, self.deliver, "", head.encode(), b"")
        if not self.gone:
            owner.loop.call_later(self.beat, self._idle, context=SERVER)

    def pull(self, request: dict[str, Any], reply: str) -> None:
        """A client asks for a batch."""
        pull = Pull(reply, int(request.get("batch", 1)), request.get("idle_heartbeat", 0) / 1e9)
        self.pulls.append(pull)
        loop = self.stream.owner.loop
        if request.get("no_wait"):
            self.wake()
            self._expire(pull, b"NATS/1.0 404 No Messages\r\n\r\n")
            return
        if expires := request.get("expires", 0) / 1e9:
            loop.call_later(expires, self._expire, pull, b"NATS/1.0 408 Request Timeout\r\n\r\n", context=SERVER)
        if pull.beat:
            loop.call_later(pull.beat, self._pull_beat, pull, context=SERVER)
        self.wake()

    def _expire(self, pull: Pull, status: bytes) -> None:
        if not pull.over and not self.gone:
            pull.over = True
            self.stream.owner.send(pull.reply, pull.reply, "", status, b"")

    def _pull_beat(self, pull: Pull) -> None:
        if pull.over or self.gone:
            return
        if self.stream.leading:
            self.stream.owner.send(pull.reply, pull.reply, "", b"NATS/1.0 100 Idle Heartbeat\r\n\r\n", b"")
        self.stream.owner.loop.call_later(pull.beat, self._pull_beat, pull, context=SERVER)

    def info(self) -> dict[str, Any]:
        return {
            "type": "io.nats.jetstream.api.v1.consumer_info_response",
            "stream_name": self.stream.name,
            "name": self.name,
            "created": "2027-01-15T08:00:00Z",
            "config": {"ack_policy": "none", **self.config, "name": self.name},
            "delivered": {"consumer_seq": self.delivered, "stream_seq": self.next - 1},
            "ack_floor": {"consumer_seq": 0, "stream_seq": 0},
            "num_ack_pending": 0, "num_redelivered": 0, "num_waiting": len(self.pulls), "num_pending": self.pending(),
            "push_bound": bool(self.deliver),
        }  # fmt: skip


class JetStreams:
    """JetStream of one account of a simulated server."""

    def __init__(self, server: NatsServer, account: str, rng: random.Random, *, clustered: bool = False) -> None:
        self.server, self.rng, self.clustered = server, rng, clustered
        self.loop: SimulatedLoop = server.loop
        self.account = server.account(account)
        self.streams: dict[str, Stream] = {}
        self.faults = Faults()
        self.counts: dict[str, int] = dict.fromkeys(
            ("10071", "10164", "slow commits", "dropped proposals", "committed unacknowledged", "lost acks", "late acks",
             "leader changes", "power cuts", "restarts"), 0,
        )  # fmt: skip
        self.on_stored: list[Callable[[Stream, Kept], None]] = []
        self.api_up = True
        self.life = 0
        self._shown = 0
        self._names = 0
        self._first: dict[str, list[Stream]] = {}
        server.services[account, "$JS"] = self._asked

    # Messages

    def _takes(self, peer: Peer | None, subject: str, reply: str, headers: bytes, data: bytes) -> bool:
        """A publish on a subject that some stream keeps."""
        tokens = subject.split(".")
        taken = False
        for stream in self._first.get(tokens[0], ()):
            if stream.takes(tokens):
                if not stream.leading and self.rng.random() < 0.5:
                    continue  # nobody listens: the server says so
                wanted = header(headers, "Nats-Expected-Last-Subject-Sequence")
                stream.propose(Proposal(subject, reply, headers, data, None if wanted is None else int(wanted), peer))
                taken = True
        return taken

    def acknowledge(self, stream: Stream, proposal: Proposal, seq: int) -> None:
        if not proposal.reply:
            return
        faults, rng = self.faults, self.rng
        if rng.random() < faults.lost_acks:
            self.counts["lost acks"] += 1
            return
        seen = seq if stream.name == LEDGER else 0
        body = msgspec.json.encode({"stream": stream.name, "seq": seq})
        if rng.random() < faults.late_acks:
            self.counts["late acks"] += 1
            seconds = rng.random() * faults.late
            self._later(seconds, proposal.reply, body, seen)
        else:
            self.send(proposal.reply, proposal.reply, "", b"", body, seen)

    def refuse(self, stream: Stream, proposal: Proposal, code: int, text: str) -> None:
        error = {"code": 400, "err_code": code, "description": text}
        body = msgspec.json.encode({"error": error, "stream": stream.name, "seq": 0})
        if proposal.reply:
            self.send(proposal.reply, proposal.reply, "", b"", body)

    def send(self, to: str, subject: str, reply: str, headers: bytes, data: bytes, seen: int = 0) -> None:
        """A message of the server's own, to whoever listens at ``to`` (a delivery names the subject it was stored under).

        ``seen`` is the sequence in the ledger that whoever gets it knows to be stored.
        """
        self.server.network.saying = seen
        for one in self.account.interested(to):
            one.peer.deliver(one, subject, reply, headers, data)
        self.server.network.saying = 0

    def clock(self) -> str:
        """What the server's own clock says."""
        now = datetime.fromtimestamp(EPOCH_NS / 1e9 + self.loop.now, UTC)
        return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _later(self, seconds: float, reply: str, body: bytes, seen: int) -> None:
        """An answer that takes a while, and is lost with the server."""
        self.loop.call_later(seconds, self._answered, self.life, reply, body, seen, context=SERVER)

    def _answered(self, life: int, reply: str, body: bytes, seen: int) -> None:
        if life == self.life:
            self.send(reply, reply, "", b"", body, seen)

    def advise(self, stream: str) -> None:
        self.server.route(self.account, f"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{stream}", "", b"", b"{}")

    # The API

    def _asked(self, peer: Peer | None, subject: str, reply: str, headers: bytes, data: bytes) -> bool:
        if not subject.startswith("$JS.API."):
            return subject.startswith("$JS.ACK") or subject.startswith("$JS.FC")
        if not self.api_up:
            return self.rng.random() < 0.5
        words = subject.split(".")[2:]
        try:
            self._shown = 0
            answer = self._answer(words, json.loads(data) if data else {}, reply)
        except Wrong as wrong:
            answer = {
                "type": "error",
                "error": {"code": wrong.status, "err_code": wrong.code, "description": wrong.text},
            }
        except Silent:
            return True
        except Absent:
            return False
        if answer is not None and reply:
            body = json.dumps(answer).encode()
            self._later(self.rng.expovariate(1.0) * 0.0001, reply, body, self._shown)
        return True

    def _stream(self, name: str) -> Stream:
        if name not in self.streams:
            raise Wrong(404, NO_STREAM, "stream not found")
        return self.streams[name]

    def _led(self, name: str) -> Stream:
        stream = self._stream(name)
        if not stream.leading:
            raise Silent if self.rng.random() < 0.5 else Absent
        return stream

    def _answer(self, words: list[str], body: dict[str, Any], reply: str) -> dict[str, Any] | None:
        match words:
            case ["STREAM", "INFO", name]:
                return self._led(name).info()
            case ["STREAM", "CREATE", name]:
                return self._create(name, body)
            case ["STREAM", "UPDATE", name]:
                stream = self._stream(name)
                for key in ("deny_delete", "deny_purge"):
                    if stream.config.get(key) and not body.get(key):
                        raise Wrong(500, 10052, f"stream configuration update can not cancel {key}")
                stream.config = {**stream.config, **body}
                return stream.info()
            case ["STREAM", "MSG", "GET", name]:
                return self._get(self._led(name), body)
            case ["STREAM", "MSG", "DELETE", name] | ["STREAM", "PURGE", name]:
                stream = self._led(name)
                if stream.config.get("deny_delete") or stream.config.get("deny_purge"):
                    raise Wrong(500, 10057, "message delete not permitted")
                stream._drop(int(body["seq"]))
                return {"success": True}
            case ["CONSUMER", "CREATE", name, *rest]:
                return self._consumer(self._led(name), rest[0] if rest else "", body)
            case ["CONSUMER", "DURABLE", "CREATE", name, consumer]:
                return self._consumer(self._led(name), consumer, body)
            case ["CONSUMER", "INFO", name, consumer]:
                return self._found(name, consumer).info()
            case ["CONSUMER", "DELETE", name, consumer]:
                self._found(name, consumer).remove()
                return {"success": True}
            case ["CONSUMER", "MSG", "NEXT", name, consumer]:
                self._found(name, consumer).pull(body, reply)
                return None
            case ["DIRECT", "GET", name, *subject]:
                self._direct(self._led(name), {"last_by_subj": ".".join(subject)} if subject else body, reply)
                return None
            case ["INFO"]:
                return {"type": "io.nats.jetstream.api.v1.account_info_response", "streams": len(self.streams)}
        raise Wrong(500, 10999, f"not simulated: {'.'.join(words)}")

    def _create(self, name: str, config: dict[str, Any]) -> dict[str, Any]:
        if name in self.streams:
            known = self.streams[name]
            if any(known.config.get(key) != value for key, value in config.items()):
                raise Wrong(400, STREAM_EXISTS, "stream name already in use with a different configuration")
            return known.info()
        if config.get("allow_rollup_hdrs") and config.get("deny_purge"):
            raise Wrong(500, 10052, "roll-ups require the purge permission")
        if config.get("max_msgs_per_subject", -1) == 0:
            config["max_msgs_per_subject"] = -1
        self.streams[name] = stream = Stream(self, config)
        for first in {pattern[0] for pattern in stream.patterns}:
            self._first.setdefault(first, []).append(stream)
            self.server.services[self.account.name, first] = self._takes
        return stream.info() | {"did_create": True}

    def _get(self, stream: Stream, body: dict[str, Any]) -> dict[str, Any]:
        kept = self._lookup(stream, body)
        if kept is None:
            raise Wrong(404, NO_MESSAGE, "no message found")
        self._shown = kept.seq if stream.name == LEDGER else 0
        found: dict[str, Any] = {
            "subject": kept.subject, "seq": kept.seq, "data": base64.b64encode(kept.data).decode(),
            "time": "2027-01-15T08:00:00Z",
        }  # fmt: skip
        if kept.headers:
            found["hdrs"] = base64.b64encode(kept.headers).decode()
        return {"type": "io.nats.jetstream.api.v1.stream_msg_get_response", "message": found}

    def _lookup(self, stream: Stream, body: dict[str, Any]) -> Kept | None:
        if (subject := body.get("last_by_subj")) is not None:
            pattern = subject.split(".")
            if "*" in pattern or ">" in pattern:
                seqs = [seqs[-1] for of, seqs in stream.of_subject.items() if seqs and matches(pattern, of.split("."))]
                return stream.messages[max(seqs)] if seqs else None
            return stream.last_of(subject)
        if (subject := body.get("next_by_subj")) is not None:
            pattern = subject.split(".")
            start = int(body.get("seq") or 1)
            if "*" not in pattern and ">" not in pattern:
                return next((stream.messages[seq] for seq in stream.of_subject.get(subject, ()) if seq >= start), None)
            return next(
                (k for seq, k in stream.messages.items() if seq >= start and matches(pattern, k.subject.split("."))),
                None,
            )
        return stream.messages.get(int(body["seq"]))

    def _direct(self, stream: Stream, body: dict[str, Any], reply: str) -> None:
        kept = self._lookup(stream, body)
        if kept is None:
            self.send(reply, reply, "", b"NATS/1.0 404 Message Not Found\r\n\r\n", b"")
            return
        extra = kept.headers[len("NATS/1.0\r\n") : -2].decode() if kept.headers else ""
        head = (
            f"NATS/1.0\r\n{extra}Nats-Stream: {stream.name}\r\nNats-Subject: {kept.subject}\r\nNats-Sequence: {kept.seq}\r\n"
            "Nats-Time-Stamp: 2027-01-15T08:00:00Z\r\n\r\n"
        )
        self.send(reply, reply, "", head.encode(), kept.data)

    def _consumer(self, stream: Stream, name: str, body: dict[str, Any]) -> dict[str, Any]:
        config = body["config"]
        if not name:
            self._names += 1
            name = config.get("name") or f"c{self._names}"
        if (old := stream.consumers.get(name)) is not None:
            old.remove()
        stream.consumers[name] = consumer = Consumer(stream, name, config)
        return consumer.info()

    def _found(self, name: str, consumer: str) -> Consumer:
        stream = self._led(name)
        if consumer not in stream.consumers:
            raise Wrong(404, NO_CONSUMER, "consumer not found")
        return stream.consumers[consumer]

    # Faults

    def change_leader(self, names: list[str], seconds: float) -> None:
        """These streams have no leader for ``seconds``."""
        self.counts["leader changes"] += 1
        streams = [self.streams[name] for name in names if name in self.streams and self.streams[name].leading]
        for stream in streams:
            stream.lead_no_more()
            # Ephemeral consumers live in one server's memory; some die with it.
            for consumer in list(stream.consumers.values()):
                if self.rng.random() < 0.3:
                    consumer.remove()
            self.loop.call_later(seconds, stream.lead_again, context=SERVER)

    def crash(self, lose: dict[str, int]) -> dict[str, list[Kept]]:
        """The server dies: what was not committed is gone, consumers too; with ``lose``, so many messages of a stream also."""
        self.counts["power cuts" if lose else "restarts"] += 1
        self.life += 1
        lost = {}
        for name, stream in self.streams.items():
            stream.under_way.clear()
            stream.term += 1
            stream.ready_at = 0.0
            for consumer in list(stream.consumers.values()):
                consumer.remove()
            if name in lose:
                lost[name] = stream.roll_back(lose[name])
        return lost


class Wrong(Exception):  # noqa: N818 - an answer, not a fault
    """An error answer of the API."""

    def __init__(self, status: int, code: int, text: str) -> None:
        super().__init__(text)
        self.status, self.code, self.text = status, code, text


class Silent(Exception):  # noqa: N818
    """No answer at all."""


class Absent(Exception):  # noqa: N818
    """Nobody listens."""


def _size(subject: str, headers: bytes, data: bytes) -> int:
    return len(subject) + len(headers) + len(data) + 22
