"""The vault, as plain values: which contents a task has, where each one lies, and who has asked that they stay or go. Pure.

A record holds no content, only a commitment to it: ``HMAC-SHA-256(salt, content)``, whose salt is itself
``HMAC-SHA-256(key of the txn, content)``. The content with its salt opens that one commitment and says nothing of any other.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from remit_broker.core.admin import AdminRecord
from remit_schemas.base64url import decode, encode

Kind = Literal["arguments", "results"]
"""What is kept for how long is said for each of these."""
RELEASED: Final = "released_digest"
"""What the caller was given, where policy replaced something in what came: that itself is kept nowhere."""

FIELDS: Final[Mapping[str, tuple[tuple[str, Kind], ...]]] = {
    "hop.opened": (("args_digest", "arguments"),),
    "hop.resumed": (("input_digest", "arguments"),),
    "hop.parked": (("request_digest", "results"), (RELEASED, "results")),
    "hop.closed": (("result_digest", "results"), (RELEASED, "results")),
}
"""By the kind of a record, its commitments to contents, and what those are."""
SALT: Final = 32
MAX_TEXT: Final = 32 * 1024 * 1024


class Slot(NamedTuple):
    """Where one content lies: of whose task, and under which commitment."""

    tenant: str
    user: str
    kind: Kind
    txn: str
    hop: str
    digest: str


class Content(NamedTuple):
    """A commitment of a record, and where its content would lie."""

    seq: int
    field: str
    slot: Slot
    replaced: bool
    """Whether policy replaced something in it: then it was kept nowhere."""


class Standing(NamedTuple):
    """What the chain of operators' acts says, by user: who may not be erased, who is being erased, who was."""

    holds: dict[str, AdminRecord]
    erasing: dict[str, AdminRecord]
    erased: dict[str, AdminRecord]


def contents(records: Sequence[Mapping[str, Any]]) -> list[Content]:
    """All commitments of the records of one txn, in order; ``records`` begins with the first."""
    tenant, user, txn = records[0]["tenant"], records[0]["user"], records[0]["txn"]
    found = []
    for record in records:
        for field, kind in FIELDS.get(record["kind"], ()):
            if digest := record.get(field):
                replaced = kind == "results" and field != RELEASED and bool(record.get("redacted"))
                slot = Slot(tenant, user, kind, txn, record["hop"], digest)
                found.append(Content(record["seq"], field, slot, replaced))
    return found


def commitments(record: Mapping[str, Any]) -> list[str]:
    """The names of a record's commitments to contents."""
    return [field for field, _ in FIELDS.get(record["kind"], ()) if record.get(field)]


def standing(records: Iterable[AdminRecord]) -> Standing:
    """What was last said of each user."""
    found = Standing({}, {}, {})
    for record in records:
        if record.what == "hold":
            found.holds.pop(record.name, None)
            if record.kind == "held":
                found.holds[record.name] = record
        elif record.what == "erasure":
            found.erasing.pop(record.name, None)
            if record.kind == "erasing":
                found.erasing[record.name] = record
            elif record.kind == "erased":
                found.erased[record.name] = record
    return found


def disclosure(content: Content, text: bytes, salt: bytes) -> dict[str, Any]:
    """As it stands in an evidence file: the canonical JSON (RFC 8785) that was committed to, as text, and the salt that opens it."""
    return {"record": content.seq, "field": content.field, "salt": encode(salt), "text": text.decode()}


def opens(told: Any, records: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    """The record and the field that a disclosure opens. Raises ``ValueError``, in words, where it opens none."""
    if not isinstance(told, dict) or set(told) != {"record", "field", "salt", "text"}:
        raise ValueError("it is not of the form that disclosures have")
    number, field, salt, text = told["record"], told["field"], told["salt"], told["text"]
    if type(number) is not int or not 0 <= number < len(records):
        raise ValueError("it names no record of the file")
    record = records[number]
    if field not in commitments(record):
        raise ValueError(f"record {number} has no commitment of that name")
    try:
        key, data = decode(salt.encode()), text.encode()
    except (ValueError, AttributeError, TypeError):
        raise ValueError("its salt or its text is none") from None
    # INVARIANT: nothing opens a commitment but what was committed to (test_a_forged_disclosure_is_refused).
    if len(key) != SALT or not hmac.compare_digest(hmac.new(key, data, "sha256").hexdigest(), record[field]):
        raise ValueError(f"it is not what record {number} commits to")
    return number, field
