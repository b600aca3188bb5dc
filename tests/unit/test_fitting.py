"""What ends a hop fits into its record, whatever was found in the answer and however many policies decided."""

from __future__ import annotations

from typing import Any

import pytest

from remit_broker.core.findings import ABRIDGED, MAX_KINDS, MAX_PLACES, MAX_POINTER, pointer, summary
from remit_broker.core.fitting import fitting
from remit_schemas.budget import ZERO
from remit_schemas.records import Decision, Finding, HopClosed, HopParked, encode_entry, seal

WIDE = "🦀" * 60
LABELS = tuple(f"customer:{number:02}{'x' * 53}" for number in range(32))
DEEP = [(f"secret.kind_{number}_{'k' * 30}", f"/{WIDE[:38]}{number}") for number in range(300)]
REDACTED = tuple(f"/{number:02}{'r' * 157}" for number in range(32))
COMMON: dict[str, Any] = {
    "tenant": "default", "txn": "1" * 32, "seq": 5, "at": "2026-11-26T12:00:00.000Z", "hop": "2" * 16, "prev": "0" * 64,
    "by": "replica", "cost": ZERO, "spent": ZERO, "overrun": ZERO,
}  # fmt: skip


def closed(**fields: Any) -> HopClosed:
    return HopClosed(**COMMON, outcome="refused", effect="happened", ms=1, **fields)


def test_what_ends_a_hop_fits_into_its_record_whatever_was_found() -> None:
    """The most findings at the longest places, the most labels, the longest texts and hundreds of policies, at once."""
    most: dict[str, Any] = {
        "findings": summary(DEEP), "labels": LABELS, "reason": "\x07" * 1024,
        "decision": Decision("deny", tuple(f"policy-{number}-{'p' * 50}" for number in range(400)), "f" * 64),
    }  # fmt: skip
    record = fitting(closed(**most, lowered=LABELS, rule="\x07" * 256, result_digest="d" * 64, redacted=REDACTED))
    encode_entry(seal(record), None)
    assert [one.kind for one in record.findings] == ["secret.other", ABRIDGED]
    assert record.findings[-1].count == len(most["findings"])
    assert record.labels == LABELS, "labels are never cut: what follows is decided by them"
    assert record.decision is not None and record.decision.rules[-1] == "… and 384 more"
    encode_entry(
        seal(fitting(HopParked(**COMMON, request_digest="d" * 64, request_size=1, connection="", **most))), None
    )


def test_what_has_room_is_told_in_full() -> None:
    record = closed(findings=(Finding("pii.email", "/a", 2),), labels=LABELS, reason="no")
    assert fitting(record) == record


def test_findings_lose_their_places_before_their_kinds() -> None:
    found = tuple(Finding(f"secret.kind_{number}", f"/{'x' * 150}{number}", 2) for number in range(90))
    record = fitting(closed(findings=found))
    assert {one.kind for one in record.findings} == {*(one.kind for one in found), ABRIDGED}
    assert {one.where for one in record.findings} == {""}
    encode_entry(seal(record), None)


@pytest.mark.parametrize("name", [WIDE, "\x00" * 40, '"' * 100, "\\" * 100])
def test_a_place_is_bounded_in_what_it_takes_in_a_record(name: str) -> None:
    assert pointer(["a", name]) == "/a"
    found = summary((f"pii.k{number}", pointer(["a", name[:20]])) for number in range(300))
    assert len(found) <= MAX_PLACES + MAX_KINDS + 1
    assert all(len(one.where.encode()) <= MAX_POINTER for one in found)
