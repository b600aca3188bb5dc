"""The whole ledger, record by record: is each as it was sealed, in its place, allowed by what stood before it, and signed for?

What is read is judged by the same fold that the broker asks before it appends (:mod:`remit_broker.core.fold`). A finding names the
place: the sequence in the stream, the txn and the number of the record in it. One bad record does not hide the next txn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from remit_broker.core.audit_log import LEDGER, REFUSALS, LogAudit
from remit_broker.core.fold import Corrupt, Fold, apply
from remit_broker.core.sealing import refusal_leaf
from remit_schemas.canonical import loads
from remit_schemas.errors import Refusal
from remit_schemas.grant import parse, verify
from remit_schemas.keys import KeySet
from remit_schemas.records import MAX_ENTRY, HopRefused, hash_of, parse_entry

CHECKS: Final = ("stream", "records", "grants", "witness", "index", "tree", "checkpoints", "refusals", "since")
"""What is checked, in the order in which it is told."""
MINTS: Final = frozenset({"txn.opened", "hop.opened", "hop.resumed", "grant.renewed"})
MOST: Final = 1000
"""Findings that are kept; all are counted."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong. ``stream`` is the sequence in its stream (0: none), ``record`` the number in its txn (None: unknown)."""

    check: str
    stream: int
    txn: str = ""
    record: int | None = None
    why: str

    @property
    def where(self) -> str:
        """The place, for people."""
        parts = [f"stream {self.stream}"] if self.stream else []
        parts += [f"txn {self.txn}"] if self.txn else []
        parts += [f"record {self.record}"] if self.record is not None else []
        return ", ".join(parts) or "the whole"


class Report(msgspec.Struct, frozen=True):
    """What an audit found. ``checks`` are ``{check, ok, where}``, as of evidence; ``bad`` the findings."""

    verified: bool
    records: int
    txns: int
    open_txns: int
    refusals: int
    checks: list[dict[str, Any]]
    bad: list[Finding]


class Audit:
    """Give it every message of both streams in order, and what the index says; then ask for the :meth:`report`.

    A fold is kept for every txn that is open, and 32 bytes for every one that was closed.
    """

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys
        self.log = LogAudit(LEDGER, keys, self.say)
        """The tree over the ledger."""
        self.refused = LogAudit(REFUSALS, keys, self.say)
        """The tree over the refusals, as the index has it: the stream discards its oldest."""
        self._folds: dict[tuple[str, str], Fold] = {}
        self._ended: set[tuple[str, bytes]] = set()
        self._broken: set[tuple[str, str]] = set()
        self._next = 1
        self._next_refusal = 0
        self._counts: dict[str, int] = dict.fromkeys(CHECKS, 0)
        self._bad: list[Finding] = []
        self._notes: dict[str, str] = {}
        self.records = self.txns = self.grants = self.refusals = 0

    @property
    def last(self) -> int:
        """The sequence of the last message of the ledger that was given."""
        return self._next - 1

    def say(self, check: str, stream: int, why: str, about: Mapping[str, Any] | None = None) -> None:
        """Something is wrong, with the record ``about`` where it is one."""
        self._counts[check] += 1
        if len(self._bad) < MOST:
            txn, number = (about or {}).get("txn"), (about or {}).get("seq")
            place = number if isinstance(number, int) else None
            self._bad.append(Finding(check=check, stream=stream, txn=str(txn or ""), record=place, why=why))

    def note(self, check: str, text: str) -> None:
        """How far a check reached, where that is not what one would think."""
        self._notes[check] = text

    def entry(self, at: int, subject: str, data: bytes) -> dict[str, Any] | None:
        """The next message of the ledger. Its record, where it can be read."""
        if at != self._next:
            gone = f"message {self._next} is" if at == self._next + 1 else f"messages {self._next} to {at - 1} are"
            self.say("stream", self._next, f"{gone} missing")
            self.log.gap(at - self._next)
        self._next = at + 1
        self.records += 1
        try:
            entry = parse_entry(data)
        except (Refusal, ValueError) as error:
            self.say("records", at, f"not a ledger entry: {error}", {"txn": subject.rpartition(".")[2]})
            self.log.record(None, data)
            return None
        self.log.record(entry.record, data)
        self._follow(at, subject, entry.record)
        self._signed(at, entry.record, entry.grant)
        return entry.record

    def end(self, last: int) -> None:
        """The ledger's last sequence is ``last``."""
        if self._next <= last:
            self.say("stream", self._next, f"messages {self._next} to {last} are missing")
            self._next = last + 1

    def _follow(self, at: int, subject: str, record: dict[str, Any]) -> None:
        _, tenant, txn = [*subject.split(".", 2), "", ""][:3]
        key = (tenant, txn)
        if key in self._broken:
            return  # what follows a bad record was said with it
        fold = self._folds.get(key)
        # A hash is compared first: a changed record is called changed, not whatever its new content would mean.
        where = {"txn": txn, "seq": record.get("seq")}
        if (key[0], _bytes(txn)) in self._ended:
            self.say("records", at, "the txn is closed, nothing may follow", where)
            return
        try:
            if (record.get("tenant"), record.get("txn")) != key:
                raise Corrupt(txn, f"it is of txn {record.get('txn')}, its subject says {txn}")
            if record.get("hash") != hash_of(record):
                raise Corrupt(txn, "its hash is not that of its content: it was changed")
            self._step(key, apply(fold, record))
        except (Corrupt, ValueError, TypeError, RecursionError) as bad:
            self._broken.add(key)
            self._folds.pop(key, None)
            self.say("records", at, bad.why if isinstance(bad, Corrupt) else str(bad), where)

    def _step(self, key: tuple[str, str], fold: Fold) -> None:
        if fold.seq == 0:
            self.txns += 1
        if fold.state == "closed":
            self._folds.pop(key, None)
            self._ended.add((key[0], _bytes(key[1])))
        else:
            self._folds[key] = fold

    def _signed(self, at: int, record: Mapping[str, Any], token: str | None) -> None:
        if (token is not None) != (record.get("kind") in MINTS):
            self.say(
                "grants", at, "the grant that it minted is missing" if token is None else "it mints no grant", record
            )
            return
        if token is None:
            return
        try:
            unverified = parse(token)
            claims = unverified.claims
            grant = verify(unverified, self._keys, issuer=claims.iss, audience=claims.aud, now=claims.iat)
        except Refusal as bad:
            self.say("grants", at, f"its grant: {bad.body.message} ({bad.body.rule})", record)
            return
        self.grants += 1
        if other := _other(msgspec.to_builtins(grant.claims), record):
            self.say("grants", at, f"its grant has another {other} than the record", record)

    def witness(self, seq: int, sealed: str, found: str | None) -> None:
        """What the index remembers of message ``seq`` of the ledger, and the hash that stands there now (None: nothing does)."""
        if found is None:
            self.say("witness", seq, f"the index has seen the ledger up to {seq}, it ends at {self.last}")
        elif found != sealed:
            self.say("witness", seq, f"sealed by {found}, the index has seen {sealed}")

    def indexed(self, at: int, record: dict[str, Any] | None, row: dict[str, Any] | None) -> None:
        """A message of the ledger beside the row that the index has of it; None where there is none."""
        if record is None:
            self.say("index", at, "the index has a record here that the ledger has not", row)
        elif row is None:
            if (record.get("tenant"), record.get("txn")) not in self._broken:
                self.say("index", at, "the index has passed here and has no such record", record)
        elif row != record:
            self.say("index", at, "the index has another record here", record)

    def refusal(self, at: int, data: bytes, kept: bytes | None = None) -> None:
        """The next message of the refusals, of which the oldest may have gone; ``kept`` is the leaf that the index has of it."""
        if self._next_refusal and at != self._next_refusal:
            self.say("refusals", self._next_refusal, f"what stood before {at} is missing")
        self._next_refusal = at + 1
        self.refusals += 1
        if kept not in (None, refusal_leaf(data)):
            self.say("tree", at, "what the tree of refusals has of this message is not what stands there")
        try:
            raw = loads(data, max_bytes=MAX_ENTRY)["record"]
            msgspec.convert(raw, HopRefused)
            if raw["hash"] != hash_of({**raw, "cause": ""}):
                raise ValueError("its hash is not that of its content: it was changed")
        except (Refusal, ValueError, TypeError, KeyError, RecursionError) as error:
            self.say("refusals", at, str(error))

    def report(self) -> Report:
        """Everything that was found."""
        said = {
            "stream": f"{self.records} messages without a gap",
            "records": f"{self.records} records of {self.txns} txns: hash chains and accounts",
            "grants": f"{self.grants} grants: signatures, and the records that they name",
            "witness": "the ledger holds what the index has seen last",
            "index": "every record in the index is the one in the ledger",
            "tree": f"the tree over {self.log.size} records is the one that the index has",
            "checkpoints": f"{self.log.checkpoints + self.refused.checkpoints} checkpoints: signatures and roots",
            "refusals": f"{self.refusals} refusals as they were sealed; that these are all is not proved",
            **self._notes,
        }
        checks: list[dict[str, Any]] = []
        for check in CHECKS:
            if check not in said and not self._counts[check]:
                continue
            first = next((bad for bad in self._bad if bad.check == check), None)
            more = f" (and {self._counts[check] - 1} more)" if self._counts[check] > 1 else ""
            where = said.get(check, "") if first is None else f"{first.where}: {first.why}{more}"
            checks.append({"check": check, "ok": first is None, "where": where})
        well = not any(self._counts.values())
        return Report(well, self.records, self.txns, len(self._folds), self.refusals, checks, self._bad)


def _bytes(txn: str) -> bytes:
    try:
        return bytes.fromhex(txn)
    except ValueError:
        return txn.encode()


def _other(claims: dict[str, Any], record: Mapping[str, Any]) -> str:
    """The first claim that is not what the record says, or nothing. A record says of a grant what is new with it."""
    resource = record.get("resource")
    said = {
        "rec": record.get("hash"),
        "jti": record.get("jti"),
        "txn": record.get("txn"),
        "tenant": record.get("tenant"),
        "exp": record.get("exp"),
    }
    if record.get("kind") in ("txn.opened", "hop.opened"):
        said |= {
            "budget": record.get("budget"),
            "max_depth": record.get("max_depth"),
            "depth": record.get("depth", 0),
            "aud": record.get("agent") or str(resource).split("/")[1],
        }
    return next((name for name, value in said.items() if claims.get(name) != value), "")
