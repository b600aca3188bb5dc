"""What must never happen, watched at every step from outside: from what is stored, and from what is published.

Nothing here calls the broker's code. The ledger is judged by the checker that the chaos suite uses too
(:mod:`tests.support.ledger_checker`); beside it stands what only somebody who sees every message can know: whether a replica
could know that a record is stored when it acted on it.
"""

from __future__ import annotations

import collections
import hashlib
from typing import Any

import msgspec

from tests.simulation.borders import Borders, tenant_of
from tests.simulation.caps import CALL, Caps, OverAllTasks
from tests.simulation.consent import Consent
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.nats_server import Peer
from tests.simulation.replicas import BRINGS
from tests.simulation.seeded import EPOCH
from tests.simulation.streams import Kept, Stream
from tests.support.ledger_books import Books, Violation
from tests.support.ledger_checker import Checker, claims_of

LEDGER = "LEDGER"
REVOCATION_SECONDS = 2.0
SLACK = 0.25
"""Seconds that a message which was sent in time may still take."""
STOPPED = ("dispatch.cancelled", "paused", "grant.revoked", "revoked.agent", "revoked.user", "revoked.tool")
"""Rules by which a hop ends whose callee is asked to stop."""


class _Call(msgspec.Struct):
    txn: str = ""
    hop: str = ""
    resource: str = ""
    args: msgspec.Raw = msgspec.Raw(b"{}")
    resumed: dict[str, Any] | None = None


_call = msgspec.json.Decoder(_Call).decode
_json = msgspec.json.Decoder().decode


class Checks:
    """The observer of one run. ``violations`` has what was broken, in order; ``totals`` counts what happened."""

    def __init__(self, loop: SimulatedLoop, caps: Caps) -> None:
        self.loop = loop
        self.violations: list[tuple[float, Violation]] = []
        self.totals: collections.Counter[str] = collections.Counter()
        self.trace: list[tuple[float, str]] = []
        self.checker = Checker(caps)
        self.stored: dict[int, tuple[tuple[str, str], dict[str, Any]]] = {}
        self.strict = True
        """Whether nothing that was acknowledged may be lost: false after a power cut."""
        self.looked: set[Process] = set()
        """Replicas that have had their connection back since a power cut, and so were bound to look."""
        self.revoked: dict[tuple[str, str], float] = {}
        """What is revoked, by (kind, name), since when."""
        self.disturbed: dict[str, float] = {}
        """Until when a replica was frozen or cut off: what it had sent by then may come late."""
        self._lost_hops: set[str] = set()
        self._digest = hashlib.blake2b(digest_size=16)
        self._found = 0
        self.opened: dict[str, int] = {}
        self._closed: dict[str, int] = {}
        self._knows: dict[Process, set[int]] = {}
        self._knew: dict[Process, set[int]] = {}
        """Of what a power cut took, by its numbers, who knew of it."""
        self._dispatched: collections.Counter[tuple[str, int]] = collections.Counter()
        self._n: collections.Counter[str] = collections.Counter()
        self._began: collections.Counter[tuple[str, int]] = collections.Counter()
        self._hop_of: dict[str, tuple[str, str]] = {}
        self._requests: collections.Counter[tuple[str, str]] = collections.Counter()
        self._services: collections.Counter[tuple[str, str]] = collections.Counter()
        self._opens: collections.Counter[tuple[str, str]] = collections.Counter()
        self._refused: collections.Counter[tuple[str, str]] = collections.Counter()
        self.about: dict[str, dict[str, Any]] = {}
        """Each hop as it was opened, with what a resumption has changed."""
        self.grace = 0.0
        self.exact = False
        """Whether nothing goes wrong in this run: then what is done at best is done."""
        self.timely = True
        """Whether all clocks are right."""
        self._lost_at = -1.0
        self._lost_seqs: dict[int, str] = {}
        """The messages that a power cut took, and the hash of each one's record."""
        self._lost_to: set[Process] = set()
        """Replicas that knew of something that was lost."""
        self._stored_at: dict[int, float] = {}
        self._working: dict[str, float] = {}
        self._stop_by: dict[str, float] = {}
        self._asked: dict[str, str] = {}
        self._floor: dict[str, tuple[int, int]] = {}
        """By hop: the sequence of its last resumption, and the number of the first grant that counts since."""
        self.refusals: list[dict[str, Any]] = []
        self.consent, self.borders, self.caps = Consent(self), Borders(self), OverAllTasks(self, caps)
        self._heard: dict[tuple[str, str], frozenset[str]] = {}
        """Labels of what a principal has heard in a txn, by what was published."""

    # What is told

    def say(self, *words: Any) -> None:
        """Something happened: for the trace, and for the digest of the run."""
        line = " ".join(map(str, words))
        self._digest.update(f"{self.loop.now:.9f} {line}\n".encode())
        self.trace.append((self.loop.now, line))

    @property
    def digest(self) -> str:
        """Of everything that happened so far."""
        return self._digest.hexdigest()

    def broken(self, rule: str, where: str, why: str) -> None:
        """A promise was not kept."""
        self.violations.append((self.loop.now, Violation(rule, where, why)))
        self.say("VIOLATION", rule, where, why)

    def told(self, what: str, *about: Any) -> None:
        """From the people: what their skills do, and what came of their calls."""
        self.say(what, *about)
        if what == "began":
            hop, n, _ = about
            self._began[hop, n] += 1
            if self._began[hop, n] > 1 and n:
                self.broken("hop.worked-twice", hop, f"its callee began it {self._began[hop, n]} times")
            if n:
                self._working[hop] = self.loop.now
                self._in_time(hop)
        elif what == "ended":
            self._working.pop(about[0], None)
            if self.exact and self._stop_by.get(about[0], self.loop.now) < self.loop.now:
                self.broken("cancel.unheard", about[0], "its callee worked on a second after it was cancelled")
        elif what == "answered":
            self.totals[f"answer {about[1]}"] += 1

    def _in_time(self, hop: str) -> None:
        seq = self.opened.get(hop)
        if seq is None or not self.timely:
            return
        late = self.loop.now + EPOCH - self.about[hop]["deadline"] / 1000
        if late > SLACK:
            self.broken("use.after-deadline", hop, f"its callee began it {late:.2f} s after its deadline")

    def _look(self) -> None:
        """What the checker has found since the last time."""
        found = self.checker.violations
        if not self.strict:
            # What was appended on a lost prefix is a broken chain; what counts now is that nothing is dispatched on it.
            self._found = len(found)
        for one in found[self._found :] if len(found) > self._found else ():
            # What was reported beyond a hold may exceed a cap once; here it is judged by what was held (OverAllTasks.dispatched).
            if one.rule != "account.overspent":
                self.broken(*one)
        self._found = len(found)

    def books(self, key: tuple[str, str]) -> Books:
        return self.checker._books[key]

    # What is stored

    def stored_in(self, stream: Stream, kept: Kept) -> None:
        """The server has committed a message."""
        self._digest.update(kept.data)
        if stream.name == LEDGER:
            entry = _json(kept.data)
            self.borders.stored(kept.subject, entry["record"])
            _, tenant, txn = kept.subject.split(".", 2)
            self.checker.entry({"at": kept.seq if self.strict else None, "stored": kept.at, **entry})
            self._look()
            self._record((tenant, txn), kept.seq, entry["record"])
        elif stream.name == "REFUSALS":
            record = _json(kept.data)["record"]
            self.borders.stored(kept.subject, record)
            self.refusals.append(record)
            if record["code"] == "INTERNAL":
                self.broken("fault", record["hop"], f"refused by {record['rule']}: {record['cause']}")
            self._refused[record["tenant"], record["caller"]] += record["count"]
            self.totals[f"refused {record['code']}"] += record["count"]
            self.say("refused", record["caller"], record["resource"], record["code"], record["rule"], record["count"])

    def _record(self, key: tuple[str, str], seq: int, record: dict[str, Any]) -> None:
        if self._lost_seqs.get(seq) == record["hash"]:
            # Its writer had no answer and has appended it again, where it was: nobody has lost anything by it.
            del self._lost_seqs[seq]
            self._count_losers()
        self.stored[seq] = (key, record)
        self._stored_at[seq] = self.loop.now
        kind, hop = record["kind"], record["hop"]
        self.totals[kind] += 1
        more = record.get("outcome", "") or record.get("resource", "")
        self.say("stored", seq, f"{key[1][:4]}#{record['seq']}", kind, hop, more, "by", record["by"])
        if kind == "hop.opened":
            self.opened[hop] = seq
            self.about[hop] = record
            self._opens[key[0], record["caller"]] += 1
        elif kind == "hop.closed":
            self._closed[hop] = seq
            self.caps.ended(hop, record)
            self._closed_rightly(hop, record)
        elif kind == "hop.parked":
            self.caps.ended(hop, record)
            self.caps.parked(hop)
        elif kind == "hop.resumed":
            self.opened[hop] = seq
            self.about[hop] = {
                **self.about[hop],
                "budget": record["budget"],
                "exp": record["exp"],
                "deadline": record["deadline"],
            }
            self._opens[key[0], self.about[hop]["caller"]] += 1
            self._n[hop] += 1
            self._floor[hop] = seq, int(record["jti"].rsplit(".", 1)[1])
        self.consent.stored(self.books(key), record, self.about.get(hop, record))

    def _closed_rightly(self, hop: str, record: dict[str, Any]) -> None:
        if self.timely and record["outcome"] == "unknown" and record["rule"] == "close.abandoned":
            until = self.about[hop]
            due = until["exp"] if "silent" in record["reason"] else until["deadline"] / 1000
            early = due + self.grace - EPOCH - self.loop.now
            if early > 0.05:
                self.broken(
                    "scan.early", hop, f"it was closed {early:.2f} s before its deadline and the grace were over"
                )
        if hop in self._working and record["rule"] in STOPPED:
            self._stop_by[hop] = self.loop.now + 1.0

    def rolled_back(self, lost: list[Kept]) -> None:
        """A power cut: what the ledger holds now is all that counts."""
        if not lost:
            return
        self.strict = False
        self.looked.clear()
        self._lost_at = self.loop.now
        for kept in lost:
            _, record = self.stored.pop(kept.seq)
            self._lost_seqs.setdefault(kept.seq, record["hash"])
            self.say("lost", kept.seq, record["kind"], record["hop"])
            self.totals["records lost"] += 1
            if record["kind"] == "hop.opened":
                self._lost_hops.add(record["hop"])
                self.opened.pop(record["hop"], None)
            elif record["kind"] == "hop.closed":
                self._closed.pop(record["hop"], None)
        gone = {kept.seq for kept in lost}
        for process, seqs in self._knows.items():
            # Their numbers are given out again: whoever knows of the next message 2 has not known of this one.
            self._knew.setdefault(process, set()).update(seqs & gone)
            seqs -= gone
        self._count_losers()
        self.checker = Checker(self.caps.caps)
        for _, record in self.stored.values():
            self.checker._books.setdefault(
                (record["tenant"], record["txn"]), Books((record["tenant"], record["txn"]))
            ).add(record)
        self._found = len(self.checker.violations)

    def _count_losers(self) -> None:
        self._lost_to = {process for process, seqs in self._knew.items() if seqs & self._lost_seqs.keys()}

    def knows(self, process: Process | None, seq: int) -> None:
        """The server has told a replica that a message of the ledger is stored."""
        if process is not None:
            late = seq in self._lost_seqs and seq not in self.stored
            (self._knew if late else self._knows).setdefault(process, set()).add(seq)

    # What is published

    def published(self, peer: Peer, subject: str, reply: str, data: bytes) -> None:
        """A message of a client has reached the server."""
        head = subject.split(".", 1)[0]
        if head == "svc":
            self._dispatch(peer, data)
        elif head == "req":
            caller, _, kind = subject.split(".")[1:4]
            if reply and (token := _json(data).get("grant")):
                self._asked[reply] = token
            tenant = tenant_of(peer.who[0]) if peer.who is not None else ""
            (self._services if kind == "remit" else self._requests)[tenant, caller] += 1
        elif head.startswith("_INBOX_") and peer.who is not None and peer.who[1] == "broker":
            self._answer(peer, subject, data)

    def _dispatch(self, peer: Peer, data: bytes) -> None:
        call, process = _call(data), peer.wire.process
        who = process.name if process is not None else "?"
        self.say("dispatch", call.hop, call.resource, "by", who)
        self.totals["dispatches"] += 1
        seq = self.opened.get(call.hop)
        if seq is None:
            if call.hop not in self._lost_hops:
                self.broken("dispatch.without-intent", call.hop, f"{who} sent it, the ledger has no record of it")
            elif process in self.looked:
                self.broken("dispatch.on-lost-prefix", call.hop, f"{who} sent it after its record was lost")
            return
        if process is not None and seq not in self._knows.get(process, ()):
            self.broken("dispatch.without-ack", call.hop, f"{who} sent it and could not know that {seq} is stored")
        if process in self._lost_to and self._stored_at[seq] > self._lost_at:
            self.broken("dispatch.after-loss", call.hop, f"{who} knew of records that are lost, and goes on")
        turn = (call.hop, self._n[call.hop])
        self._dispatched[turn] += 1
        if self._dispatched[turn] > (2 if call.resumed else 1):
            self.broken("hop.dispatched-twice", call.hop, f"{who} sent it again")
        key, record = self.stored[seq][0], self.about[call.hop]
        if peer.who is not None:
            self.borders.sent("dispatch", peer.who[0], call.txn, call.hop)
        intent = self.stored[seq][1]
        self.consent.dispatched(intent, record["resource"], bytes(call.args))
        self.caps.dispatched(call.hop, record, key)
        self._not_revoked(call, key, who)

    def _answer(self, peer: Peer, subject: str, data: bytes) -> None:
        frame, process = _json(data), peer.wire.process
        kind = frame.get("frame")
        if kind == "accepted":
            self._hop_of[subject] = (frame["txn"], frame["hop"])
            self._by_a_grant_that_counts(subject, frame["hop"])
        txn, hop = self._hop_of.get(subject, ("", ""))
        if peer.who is not None:
            self.borders.sent("answer", peer.who[0], txn, hop)
        if hop and kind in ("progress", "event", "part", "result", "input_required"):
            self._labelled(txn, hop, kind)
        if kind == "result" and hop:
            self.totals["releases"] += 1
            seq = self._closed.get(hop, -1)
            if (
                process is not None
                and seq not in self._knows.get(process, ())
                and hop not in self._lost_hops
                and self.strict
            ):
                self.broken(
                    "result.without-ack", hop, f"a result was released that {process.name} could not know to be closed"
                )
        self.say(
            kind, hop, frame.get("error", {}).get("code", "") if kind == "error" else "", "to", subject.split(".")[0]
        )
        if self.strict and (hop or kind == "error"):
            self.checker.event(
                {"what": "heard", "at": self.loop.now, "frame": frame, "call": subject, "txn": txn, "hop": hop or None}
            )
            self._look()

    def _labelled(self, txn: str, hop: str, kind: str) -> None:
        """What is released is known to have come to its caller: what the callee's source brings, and whatever it heard itself."""
        about = self.about.get(hop)
        if about is None or not self.strict:
            return
        callee = about["resource"].split("/")[1]
        brought = BRINGS.get(about["resource"], frozenset()) | self._heard.get((txn, callee), frozenset())
        key = (about["tenant"], txn)
        if missing := brought - self.books(key).known(about["caller"]):
            self.broken("labels.late", hop, f"a {kind} was released, {about['caller']} is not known to have {missing}")
        self._heard[txn, about["caller"]] = self._heard.get((txn, about["caller"]), frozenset()) | brought
        if brought:
            self.totals["labelled frames"] += 1

    def _by_a_grant_that_counts(self, subject: str, hop: str) -> None:
        """What was opened with a grant from before a resumption must have been opened before it."""
        token, about = self._asked.get(subject), self.about.get(hop)
        if token is None or about is None or about["parent"] not in self._floor:
            return
        seq, n = self._floor[about["parent"]]
        used = int(str(claims_of(token).get("jti", "..0")).rsplit(".", 1)[1])
        if used < n and self.opened[hop] > seq:
            self.broken("grant.superseded", hop, f"opened with grant {used} of its parent, which was resumed with {n}")

    # Revocations

    def _not_revoked(self, call: _Call, key: tuple[str, str], who: str) -> None:
        account = self.books(key).accounts.get(call.hop)
        if account is None or not self.revoked:
            return
        # What is revoked by name in a run is so in the default tenant.
        names: set[tuple[str, str]] = set()
        if key[0] == "default":
            names = {("agent", above.holder) for above in account.upwards()}
            names |= {("user", self.books(key).user), ("tool", call.resource)}
        names.add(("all", "everything"))
        for what in sorted(names):
            since = self.revoked.get(what)
            if since is None or self.loop.now - since < REVOCATION_SECONDS + SLACK:
                continue
            if self.disturbed.get(who, -1e9) + SLACK > self.loop.now:
                continue  # it stood still with the message in its hands
            self.broken(
                "use.after-revoke", call.hop, f"{what} was revoked {self.loop.now - since:.2f} s before, {who} sent it"
            )

    def deadline_of(self, hop: str) -> float:
        """Until when a hop may run, in Unix seconds."""
        seq = self.opened.get(hop)
        return float("inf") if seq is None else float(self.about[hop]["deadline"]) / 1000

    # At the end

    def open_hops(self) -> list[str]:
        """Hops that nobody has closed."""
        return [
            hop for books in self.checker.books() for hop, account in books.accounts.items()
            if account.parent is not None and account.state == "open"
        ]  # fmt: skip

    def waiting(self) -> list[tuple[str, str]]:
        """Txns in which a hop waits for an input."""
        return [
            books.key for books in self.checker.books()
            if any(account.state == "parked" for account in books.accounts.values())
        ]  # fmt: skip

    def counted_once(self, *, exactly: bool) -> None:
        """Each request became at most one hop or one refusal; ``exactly``: one of them."""
        for caller in sorted(self._requests):
            requests, services = self._requests[caller], self._services[caller]
            # Where nobody could know in time whether its intent is stored, a call is refused and is a hop all the same; or it only
            # asked for an approval. A refusal that stands for several names one of their hops.
            mine = [one for one in self.refusals if (one["tenant"], one["caller"]) == caller]
            least = sum(one["hop"] in self.opened for one in mine)
            most = sum(
                one["count"] if one["rule"] == "ledger.unreachable" else one["hop"] in self.opened for one in mine
            )
            ended = self._opens[caller] + self._refused[caller]
            who, became = (
                " ".join(caller),
                f"{requests} requests became {ended} hops and refusals, {least} to {most} both",
            )
            if ended - most > requests + services:
                self.broken("refusal.counted-twice", who, became)
            if exactly and ended - least < requests:
                self.broken("refusal.uncounted", who, became)

    def compare(self, key: tuple[str, str], nodes: Any) -> None:
        """What a replica makes of a txn is what the books say."""
        for hop, account in self.books(key).accounts.items():
            node = nodes.get(hop)
            theirs = None if node is None else {
                name: {unit: getattr(getattr(node, name), unit) for unit in CALL} for name in ("limit", "spent", "held", "overrun")
            }  # fmt: skip
            ours = {"limit": account.limit, "spent": account.spent, "held": account.held, "overrun": account.overrun}
            if theirs != ours:
                self.broken("fold.differs", hop, f"a replica says {theirs}, the books {ours}")
                return

    def finish(self, *, settled: bool) -> None:
        """What can only be judged in the end."""
        if self.strict:
            self.checker.finish(refusals=self.refusals, settled=settled)
            self._look()
