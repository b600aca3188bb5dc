"""Did the broker keep its promises? A checker that shares no code with it: plain JSON in, violations out.

Give it the ledger as the stream has it, and what the outside saw; then ask :meth:`Checker.finish`::

    checker = Checker(caps={("user", "ann", "month"): {"calls": 100}})
    for seq, stored, payload in stream:            # in the order of the stream
        checker.entry({"at": seq, "stored": stored, **json.loads(payload)})
    for event in sorted(events, key=itemgetter("at")):
        checker.event(event)
    assert not checker.finish(refusals=refusals, accounts=rows)

It may also be fed while things happen (a simulation asks ``checker.violations`` at each step): an event is judged by the
entries that were given before it.

**An entry** is a message of the stream ``LEDGER``: ``record``, ``grant`` (or absent), ``at`` its stream sequence (or absent), and
``stored``, when the stream took it, in the same Unix seconds as events (or absent: then only order is judged, not time).

**An event** is what somebody outside the broker saw, with ``at`` in Unix seconds and ``what``:

- ``dispatched``: a callee took a call. ``txn``, ``hop``, ``grant`` (the token it got), ``deadline`` (Unix ms). ``message`` names the
  publish where the bus itself may deliver one twice: the same call in the same message counts once. What a callee got past
  the deadline it drops, as the contract says, and that is only counted.
- ``heard``: a caller got a frame. ``frame`` (as it came), ``call`` (its own name for the call), and, to find the hop, ``hop`` or
  ``link`` (the traceparent it sent). ``txn``.
- ``acked``: something is known to be durable. ``hash`` of a record, or ``txn`` and ``kind`` and perhaps ``hop``.
- ``seen``: a reader saw the record with ``hash`` at ``seq`` of the stream.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.support.ledger_books import CALL, WHOLE, Books, Json, Violation, plus, sealed

__all__ = ["Checker", "Violation", "claims_of"]

Cap = Mapping[str, int]
CapKey = tuple[str, str, str]
"""(kind, name, window) as in ``[caps]``: ``("user", "ann", "day")``. Name ``default`` is for who has none of their own."""
_FINAL = ("result", "error", "input_required")
_UNKNOWN = ("LEDGER_UNAVAILABLE", "CANCELLED", "INTERNAL")
_MINTS = ("txn.opened", "hop.opened", "grant.renewed", "hop.resumed")


class Checker:
    """``caps`` are the limits over all txns; ``keys`` maps key ids to raw Ed25519 public keys: with them signatures are checked.

    ``skew`` is how far, in seconds, the clock of an observer may be behind that of the stream.
    """

    def __init__(
        self, caps: Mapping[CapKey, Cap] | None = None, keys: Mapping[str, bytes] | None = None, skew: float = 0.0
    ) -> None:
        self.counts: Counter[str] = Counter()
        """How often what was seen: kinds of records, ``dispatched``, ``dispatched.late``, ``heard.<frame>``, ``orphans``."""
        self._caps, self._keys, self._skew = dict(caps or {}), keys, skew
        self._books: dict[tuple[str, str], Books] = {}
        self._found: list[Violation] = []
        self._entries: dict[str, Json] = {}
        self._by_place: dict[tuple[str, str, str], Json] = {}
        self._by_link: dict[str, str] = {}
        self._by_seq: dict[int, str] = {}
        self._last_at = 0
        self._jtis: set[str] = set()
        self._ceilings: dict[str, set[str]] = {}
        """By txn and hop: which labels may reach its holder, by its newest grant."""
        self._taken: dict[str, Any] = {}
        self._ended: set[str] = set()
        self._results: dict[str, Json] = {}

    @property
    def violations(self) -> list[Violation]:
        """What was found so far."""
        return [*self._found, *(one for books in self._books.values() for one in books.found)]

    def books(self) -> list[Books]:
        """The txns, for whoever wants to look further."""
        return list(self._books.values())

    def _say(self, rule: str, where: str, why: str) -> None:
        self._found.append(Violation(rule, where, why))

    # The ledger

    def entry(self, entry: Json) -> None:
        """The next message of the stream."""
        record = entry["record"]
        key = (str(record.get("tenant")), str(record.get("txn")))
        self._books.setdefault(key, Books(key)).add(record)
        kind, hop = str(record.get("kind")), str(record.get("hop"))
        self.counts[kind] += 1
        self._entries[str(record.get("hash"))] = entry
        # A hop may park and be resumed again and again: what was told of it came after the first time.
        self._by_place.setdefault((key[1], hop, kind), entry)
        if link := record.get("link"):
            self._by_link[link] = hop
        if (at := entry.get("at")) is not None:
            if at <= self._last_at:
                self._say("chain.order", f"{key[1]}#{record.get('seq')}", f"stream sequence {at} after {self._last_at}")
            self._last_at = at
            self._by_seq[at] = str(record.get("hash"))
        if kind == "hop.closed" and record.get("outcome") == "unknown":
            self.counts["orphans"] += 1
        self._grant_of(entry)

    def _grant_of(self, entry: Json) -> None:
        record, token = entry["record"], entry.get("grant")
        where = f"{record.get('txn')}#{record.get('seq')}"
        if (token is not None) != (record.get("kind") in _MINTS):
            return self._say("grant.unbound", where, f"{record.get('kind')} with{'' if token else 'out'} a grant")
        if token is None:
            return None
        try:
            claims = claims_of(token)
        except ValueError as error:
            return self._say("grant.unbound", where, f"not a token: {error}")
        if self._keys is not None and not _signed(token, self._keys):
            self._say("grant.unsigned", where, "no known key signed it")
        holder = record.get("agent") or str(record.get("resource", "//")).split("/")[1] or claims.get("aud")
        wanted = {"rec": record.get("hash"), "jti": record.get("jti"), "exp": record.get("exp"), "aud": holder}
        if record.get("budget") is not None and record.get("kind") != "hop.resumed":
            wanted["budget"] = record["budget"]
        for name, value in wanted.items():
            if claims.get(name) != value:
                self._say("grant.unbound", where, f"its grant says {name} {claims.get(name)!r}, the record {value!r}")
        self._no_wider(where, str(record.get("kind")), claims)
        if claims.get("jti") in self._jtis:
            self._say("grant.unbound", where, f"{claims['jti']} was minted before")
        self._jtis.add(str(claims.get("jti")))
        return None

    def _no_wider(self, where: str, kind: str, claims: Json) -> None:
        """What goes on after it waited for an input may be told no more than before."""
        hop = str(claims.get("jti")).rpartition(".")[0]
        labels, before = set(claims.get("labels") or ()), self._ceilings.get(hop)
        if kind == "hop.resumed" and before is not None and "*" not in before and not labels <= before:
            self._say("grant.wider", where, f"it goes on with the ceiling {sorted(labels)}, and had {sorted(before)}")
        self._ceilings[hop] = labels

    # What the outside saw

    def event(self, event: Json) -> None:
        """The next thing somebody saw."""
        what = event["what"]
        known = {"dispatched": self._dispatched, "heard": self._heard, "acked": self._acked, "seen": self._saw}
        known[what](event)

    def _dispatched(self, event: Json) -> None:
        claims = claims_of(event["grant"])
        where, jti = f"{event['txn']}.{event['hop']}", str(claims.get("jti"))
        if event["at"] * 1000 >= event["deadline"]:
            self.counts["dispatched.late"] += 1
            return
        if event.get("message") is None or self._taken.get(jti) != event["message"]:
            if jti in self._taken:
                self._say("dispatch.twice", where, f"{jti} was dispatched before")
            self.counts["dispatched"] += 1
        self._taken[jti] = event.get("message")
        if not jti.startswith(f"{where}."):
            self._say("dispatch.foreign-grant", where, f"with the grant {jti}")
        intent = self._entries.get(str(claims.get("rec")))
        if intent is None or intent["record"]["kind"] not in ("hop.opened", "hop.resumed"):
            return self._say("dispatch.without-intent", where, "the ledger has no record that its grant names")
        if (intent["record"]["txn"], intent["record"]["hop"]) != (event["txn"], event["hop"]):
            self._say("dispatch.foreign-grant", where, "its grant names the record of another hop")
        stored = intent.get("stored")
        if stored is not None and event["at"] + self._skew < stored:
            self._say("dispatch.before-intent", where, f"{stored - event['at']:.6f} s before its record was stored")
        return None

    def _heard(self, event: Json) -> None:
        frame, txn = event["frame"], event["txn"]
        kind = frame["frame"]
        self.counts[f"heard.{kind}"] += 1
        hop = event.get("hop") or self._by_link.get(event.get("link") or "")
        where = f"{txn}.{hop}"
        if kind == "accepted":
            self._must_be(where, (txn, frame["hop"], "hop.opened"), "accepted")
        if kind not in _FINAL:
            return
        if event["call"] in self._ended:
            self._say("result.twice", where, f"the call {event['call']} ended before")
        self._ended.add(event["call"])
        if kind == "input_required":
            self._must_be(where, (txn, str(hop), "hop.parked"), "released", event)
        elif self._unheard(frame, txn, hop):
            self._must_be(where, (txn, str(hop), "hop.parked"), "told to wait again", event)
        elif kind == "result" or (frame.get("cost") is not None and hop):
            closing = self._must_be(where, (txn, str(hop), "hop.closed"), "released", event)
            if closing is not None:
                self._as_closed(where, frame, closing["record"])

    def _unheard(self, frame: Json, txn: str, hop: str | None) -> bool:
        """Nobody heard the input of a hop that was to go on: nothing happened, and it waits for another attempt."""
        return (
            frame["frame"] == "error"
            and frame["error"].get("effect") == "none"
            and (txn, str(hop), "hop.resumed") in self._by_place
        )

    def _as_closed(self, where: str, frame: Json, closing: Json) -> None:
        """What was released is what the record says."""
        ended = closing.get("outcome")
        if frame["frame"] == "result" and ended != ("failed" if frame.get("failed") else "ok"):
            self._say("result.without-close", where, f"a result was released, its record says {ended}")
        if frame.get("cost") is not None and frame["cost"] != closing.get("spent"):
            self._say(
                "result.without-close", where, f"released at {frame['cost']}, its record says {closing.get('spent')}"
            )

    def _must_be(self, where: str, place: tuple[str, str, str], said: str, event: Json | None = None) -> Json | None:
        """The entry at ``place``, which somebody outside knows to be durable."""
        entry = self._by_place.get(place)
        if entry is None:
            rule = "ack.lost" if event is None else "result.without-close"
            self._say(rule, where, f"it was {said}, and there is no {place[2]}")
            return None
        stored = entry.get("stored")
        if event is not None and stored is not None and event["at"] + self._skew < stored:
            self._say("result.before-close", where, f"{stored - event['at']:.6f} s before its record was stored")
        return entry

    def _acked(self, event: Json) -> None:
        if "hash" in event:
            if event["hash"] not in self._entries:
                self._say(
                    "ack.lost", str(event.get("txn")), f"the record {event['hash']} was acknowledged and is not there"
                )
            return
        places = [(txn, hop, kind) for txn, hop, kind in self._by_place if (txn, kind) == (event["txn"], event["kind"])]
        if not any(event.get("hop") in (None, hop) for _, hop, _ in places):
            self._say(
                "ack.lost", event["txn"], f"{event['kind']} of {event.get('hop')} was acknowledged and is not there"
            )

    def _saw(self, event: Json) -> None:
        found = self._by_seq.get(event["seq"])
        if found != event["hash"]:
            self._say("ack.lost", f"stream {event['seq']}", f"it held {event['hash']}, now {found}")

    # The end

    def finish(
        self, *, refusals: Iterable[Json] = (), accounts: Iterable[Json] = (), settled: bool = True
    ) -> list[Violation]:
        """All violations. ``refusals`` are records, ``accounts`` rows as ``/api/budgets`` gives them; one with a
        ``tenant`` is that tenant's, else the default one's.

        ``settled`` says that everything had the time to end: then no hop may be open; one that waits for an input may be parked.
        """
        for refusal in refusals:
            self.counts["hop.refused"] += refusal.get("count", 1)
            self._refusal(refusal)
        if settled:
            self._all_closed()
        used = self._used()
        for key, amount in sorted(used.items()):
            self._capped(key, amount)
        for row in accounts:
            self._row(row, used)
        return self.violations

    def _refusal(self, refusal: Json) -> None:
        where = f"refusal {refusal.get('hop')}"
        if refusal.get("hash") != sealed({**refusal, "cause": ""}):
            self._say("refusal.hash", where, "its hash is not that of its content")
        if (refusal.get("txn"), refusal.get("hop"), "hop.opened") in self._by_place:
            # Where nobody could know in time whether the intent was stored, the call is refused and the scan closes the hop.
            self.counts["refused.unknown"] += 1
            if refusal.get("code") not in _UNKNOWN:
                self._say("refusal.opened", where, f"refused with {refusal.get('code')}, and it is a hop")

    def _all_closed(self) -> None:
        for books in self._books.values():
            for account in books.accounts.values():
                if account.state == "parked" and not books.closed:
                    self.counts["parked"] += 1
                elif account.parent is not None and account.state != "closed":
                    self._say("hop.left-open", f"{books.key[1]}.{account.hop}", f"it is {account.state} in the end")

    def _used(self) -> Counter[tuple[CapKey, str, str]]:
        """At least what each account has used, by (account, tenant and window, unit): each hop by itself, when it was opened."""
        used: Counter[tuple[CapKey, str, str]] = Counter()
        for books in self._books.values():
            running: dict[str, Json] = {}
            for record in books.records:
                kind, hop = record.get("kind"), str(record.get("hop"))
                if kind == "hop.opened":
                    running[hop] = record
                elif kind == "hop.resumed" and hop in books.accounts:
                    opened = next(one for one in books.records if one.get("hop") == hop)
                    running[hop] = {**opened, "budget": record["budget"], "at": record["at"]}
                elif kind in ("hop.closed", "hop.parked") and hop in running:
                    self._count(used, books, running.pop(hop), record)
        return used

    def _count(self, used: Counter[tuple[CapKey, str, str]], books: Books, opened: Json, closed: Json) -> None:
        kind, name, _ = opened["resource"].split("/", 2)
        known = closed.get("outcome") not in WHOLE
        # Of an agent whose end is unknown its price is counted, which no record names: at least its one call.
        cost = plus(CALL, closed["cost"]) if known else opened["budget"] if kind == "mcp" else CALL
        whose = {"user": books.user, "agent": opened["caller"] if kind == "mcp" else name, "tenant": books.key[0]}
        if kind == "mcp":
            whose["tool"] = opened["resource"]
        for (what, who, window), cap in self._caps.items():
            mine = whose.get(what)
            own = (what, mine, window) in self._caps
            if mine is not None and (who == mine or (who == "default" and not own)):
                for unit in cap:
                    used[(what, mine, window), f"{books.key[0]} {_window(window, opened['at'])}", unit] += cost[unit]

    def _capped(self, key: tuple[CapKey, str, str], amount: int) -> None:
        (kind, name, window), which, unit = key
        cap = self._caps.get((kind, name, window)) or self._caps[kind, "default", window]
        if amount > cap[unit]:
            self._say("account.overspent", f"{kind} {name} {which}", f"{amount} {unit} of {cap[unit]}")

    def _row(self, row: Json, used: Counter[tuple[CapKey, str, str]]) -> None:
        """What an account says of itself: never over its cap, never less than what the ledger says was used."""
        which, tenant = _window(row["window"], row["ends"], before=True), row.get("tenant", "default")
        for unit, cap in row["cap"].items():
            taken = row["spent"][unit] + row["held"][unit] + row["leased"][unit]
            where = f"{row['kind']} {row['name']} {which}"
            if taken > cap:
                self._say("account.overspent", where, f"{taken} {unit} of {cap} are taken")
            mine = used[(row["kind"], row["name"], row["window"]), f"{tenant} {which}", unit]
            if mine > taken:
                self._say("account.forgotten", where, f"the ledger says {mine} {unit}, the account {taken}")


def claims_of(token: str) -> Json:
    """The claims of a compact JWS, believed without a look at its signature. Raises ValueError."""
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("it has not three parts")
    claims: Json = json.loads(_decoded(parts[1]))
    return claims


def _signed(token: str, keys: Mapping[str, bytes]) -> bool:
    head, body, signature = token.split(".")
    try:
        key = Ed25519PublicKey.from_public_bytes(keys[json.loads(_decoded(head))["kid"]])
        key.verify(_decoded(signature), f"{head}.{body}".encode())
    except (InvalidSignature, KeyError, ValueError):
        return False
    return True


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _window(window: str, at: str, *, before: bool = False) -> str:
    """The window that an RFC 3339 time is in; with ``before``, the one that ends at it."""
    moment = datetime.fromisoformat(at.replace("Z", "+00:00")).astimezone(UTC)
    if before:
        moment = datetime.fromtimestamp(moment.timestamp() - 0.001, UTC)
    length = {"month": 7, "day": 10, "hour": 13, "minute": 16}[window]
    return f"{window} {moment.isoformat()[:length]}"
