"""Readers of a stream: pushed to a subject, or pulled in batches."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from tests.simulation.nats_server import matches
from tests.simulation.network import SERVER
from tests.simulation.streams import LEDGER, Kept

if TYPE_CHECKING:
    from tests.simulation.streams import Stream

EPOCH_NS = 1_800_000_000 * 10**9


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
            owner.send(self.deliver, self.deliver, "", self._beat_head(), b"")
        if not self.gone:
            owner.loop.call_later(self.beat, self._idle, context=SERVER)

    def _beat_head(self) -> bytes:
        """What a heartbeat says of what was sent: the real server's says it to a pull as well."""
        said = f"Nats-Last-Consumer: {self.delivered}\r\nNats-Last-Stream: {self.next - 1}"
        return f"NATS/1.0 100 Idle Heartbeat\r\n{said}\r\n\r\n".encode()

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
            self.stream.owner.send(pull.reply, pull.reply, "", self._beat_head(), b"")
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
