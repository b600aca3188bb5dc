"""One stream as a NATS server or a cluster of them was seen to keep it, its faults included.

A publish is proposed, checked against what is expected, committed after a while and acknowledged. In a *cluster* a second
proposal for a subject that has one under way is answered 10164, and a change of leader drops a suffix of what is under way
while the rest is committed without an acknowledgement. A *power cut* takes back the end of what was committed.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.simulation.nats_server import Peer, header, matches
from tests.simulation.network import SERVER

if TYPE_CHECKING:
    from tests.simulation.consumers import Consumer
    from tests.simulation.jetstream import JetStreams

LEDGER = "LEDGER"
WRONG_LAST = 10071
IN_FLIGHT = 10164
WRONG_STREAM = 10060
FULL = 10077


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


Group = list[Proposal]


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
        self.under_way: deque[Group] = deque()
        self.consumers: dict[str, Consumer] = {}
        self.ready_at = 0.0
        self.term = 0

    def takes(self, tokens: list[str]) -> bool:
        return any(matches(pattern, tokens) for pattern in self.patterns)

    def last_of(self, subject: str) -> Kept | None:
        seqs = self.of_subject.get(subject)
        return self.messages[seqs[-1]] if seqs else None

    # Publishing

    def propose(self, group: Group) -> None:
        """A publish has arrived, or the last one of a batch, which is stored whole or not at all."""
        owner, last = self.owner, group[-1]
        if not self.leading:
            return
        if (stream := header(last.headers, "Nats-Expected-Stream")) and stream != self.name:
            owner.refuse(self, last, WRONG_STREAM, "expected stream does not match")
            return
        if owner.clustered:
            under_way = {one.subject for other in self.under_way for one in other}
            if any(one.expected is not None and one.subject in under_way for one in group):
                owner.counts["10164"] += 1
                owner.refuse(self, last, IN_FLIGHT, "expected last sequence per subject is in flight")
                return
            if not self._expected(group):
                return
        self.under_way.append(group)
        faults = owner.faults
        seconds = owner.rng.expovariate(1.0) * faults.commit
        if owner.rng.random() < faults.slow_commits:
            owner.counts["slow commits"] += 1
            seconds += owner.rng.random() * faults.slow
        self.ready_at = max(self.ready_at, owner.loop.now + seconds)
        owner.loop.call_at(self.ready_at, self._commit, self.term, context=SERVER)

    def _expected(self, group: Group) -> bool:
        for one in group:
            last = self.last_of(one.subject)
            found = last.seq if last else 0
            if one.expected not in (None, found):
                self.owner.counts["10071"] += 1
                self.owner.refuse(self, group[-1], WRONG_LAST, f"wrong last sequence: {found}")
                return False
        return True

    def _commit(self, term: int) -> None:
        if term != self.term or not self.under_way:
            return  # another leader has decided about it
        group = self.under_way.popleft()
        if not self._expected(group):
            return
        limit = self.config.get("max_bytes", -1)
        size = sum(_size(one.subject, one.headers, one.data) for one in group)
        if self.config.get("discard") == "new" and 0 < limit < self.bytes + size:
            self.owner.refuse(self, group[-1], FULL, "maximum bytes exceeded")
            return
        self.owner.acknowledge(self, group, max(self.store(one) for one in group))

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
        self.under_way = deque([one._replace(reply="") for one in group] for group in list(self.under_way)[:survivors])

    def lead_again(self) -> None:
        """Another leader: it commits what survived, then takes new messages."""
        survivors, self.under_way = self.under_way, deque()
        for group in survivors:
            if self._expected(group):
                self.owner.counts["committed unacknowledged"] += 1
                for one in group:
                    self.store(one)
        self.leading = True
        self.owner.advise(self.name)
        for consumer in list(self.consumers.values()):
            consumer.wake()

    def kept(self) -> Any:
        """What is on the disk, to be put back by :meth:`restore`."""
        of_subject = {subject: list(seqs) for subject, seqs in self.of_subject.items()}
        return dict(self.messages), of_subject, self.last_seq, self.bytes

    def restore(self, kept: Any) -> None:
        """An old copy of the disk."""
        self.messages, self.of_subject, self.last_seq, self.bytes = kept

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


def _size(subject: str, headers: bytes, data: bytes) -> int:
    return len(subject) + len(headers) + len(data) + 22
