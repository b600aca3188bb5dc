"""JetStream of one account of the simulated server: its API, its key-value buckets, its faults."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from tests.simulation.consumers import EPOCH_NS, Consumer
from tests.simulation.loop import SimulatedLoop
from tests.simulation.nats_server import NatsServer, Peer, header, matches
from tests.simulation.network import SERVER
from tests.simulation.streams import LEDGER, Faults, Group, Kept, Proposal, Stream

NO_MESSAGE = 10037
NO_STREAM = 10059
NO_CONSUMER = 10014
STREAM_EXISTS = 10058


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
             "leader changes", "batches", "power cuts", "restarts"), 0,
        )  # fmt: skip
        self.on_stored: list[Callable[[Stream, Kept], None]] = []
        self.api_up = True
        self.life = 0
        self._shown = 0
        self._names = 0
        self._batches: dict[tuple[str, str], Group] = {}
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
                one = Proposal(subject, reply, headers, data, None if wanted is None else int(wanted), peer)
                taken = True
                if (batch := header(headers, "Nats-Batch-Id")) is None:
                    stream.propose([one])
                    continue
                group = self._batches.setdefault((stream.name, batch), [])
                group.append(one)
                if header(headers, "Nats-Batch-Commit") == "1":
                    self.counts["batches"] += 1
                    stream.propose(self._batches.pop((stream.name, batch)))
        return taken

    def acknowledge(self, stream: Stream, group: Group, seq: int) -> None:
        proposal = group[-1]
        if not proposal.reply:
            return
        faults, rng = self.faults, self.rng
        if rng.random() < faults.lost_acks:
            self.counts["lost acks"] += 1
            return
        seen = seq if stream.name == LEDGER else 0
        ack: dict[str, Any] = {"stream": stream.name, "seq": seq}
        if (batch := header(proposal.headers, "Nats-Batch-Id")) is not None:
            ack |= {"batch": batch, "count": len(group)}
        body = msgspec.json.encode(ack)
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
        self._batches.clear()
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
