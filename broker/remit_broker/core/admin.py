"""What operators did, as one chain of sealed records: nothing is forgotten, and a change to what was written shows.

A record is sealed like those of a txn: ``hash`` is the lower-case hex SHA-256 of the canonical JSON (RFC 8785) of the record
without it, ``prev`` the hash before it, 64 zeros at ``seq`` 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from remit_broker.core.revocations import Entry, State, What
from remit_schemas.canonical import canonical, digest
from remit_schemas.records import GENESIS

VERSION = 1


class AdminRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Something was revoked or reinstated, observed or enforced, excepted or no longer, held or erased: what, by whom, why. ``at`` is
    RFC 3339 UTC, as the replica had it that did so. ``detail``, where there is one, is JSON; empty, it is not written.
    """

    v: int = VERSION
    tenant: str
    seq: int
    at: str
    kind: State
    what: What
    name: str
    who: str
    why: str
    prev: str
    hash: str = ""
    detail: str = ""

    def tells_of(self, entry: Entry) -> bool:
        """Whether this is the record of ``entry``."""
        mine = (self.tenant, self.what, self.name, self.kind, self.at, self.who, self.why, self.detail)
        said = (entry.tenant, entry.kind, entry.name, entry.state, entry.at, entry.who, entry.why, entry.detail)
        return mine == said


def follow(last: AdminRecord | None, tenant: str, entry: Entry) -> AdminRecord:
    """The sealed record of ``entry`` after ``last``."""
    record = AdminRecord(
        tenant=tenant,
        seq=0 if last is None else last.seq + 1,
        at=entry.at,
        kind=entry.state,
        what=entry.kind,
        name=entry.name,
        who=entry.who,
        why=entry.why,
        prev=GENESIS if last is None else last.hash,
        detail=entry.detail,
    )
    return msgspec.structs.replace(record, hash=_hash(record))


def broken(records: Sequence[AdminRecord]) -> str | None:
    """Where the chain does not hold and why, or None.

    INVARIANT: a record that was changed, left out or moved is found (test_a_changed_record_of_an_operator_is_found).
    """
    prev = GENESIS
    for number, record in enumerate(records):
        if record.v != VERSION:
            return f"#{number}: version {record.v} is unknown"
        if (record.seq, record.prev) != (number, prev):
            return f"#{number}: it does not follow the record before it"
        if record.hash != _hash(record):
            return f"#{number}: it was changed after it was sealed"
        prev = record.hash
    return None


def untold(entries: Sequence[Entry], records: Sequence[AdminRecord]) -> list[Entry]:
    """Entries that the last record about the same thing does not tell of."""
    last = {(record.what, record.name): record for record in records}
    return [
        entry for entry in entries if (told := last.get((entry.kind, entry.name))) is None or not told.tells_of(entry)
    ]


def plain(record: AdminRecord) -> dict[str, Any]:
    """The record as it is stored and hashed: what has no detail is as it was before there were any."""
    raw: dict[str, Any] = msgspec.to_builtins(record)
    if not record.detail:
        del raw["detail"]
    return raw


def _hash(record: AdminRecord) -> str:
    raw = plain(record)
    del raw["hash"]
    return digest(canonical(raw))
