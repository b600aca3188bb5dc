"""The verdict of the chaos suite sees what crosses from one tenant to another, and what nobody was asked about."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.people import CAREFUL
from tests.chaos.stream import Stored
from tests.chaos.verdict import borders, pending, unapproved

Json = dict[str, Any]


def stored(seq: int, kind: str, tenant: str = "default", txn: str = "t1", subject: str = "", **fields: Any) -> Stored:
    record = {"kind": kind, "tenant": tenant, "txn": txn, "hop": f"h{seq}", **fields}
    return Stored(seq, float(seq), {"record": record}, subject or f"ledger.{tenant}.{txn}")


def refused(seq: int, tenant: str, subject: str) -> Stored:
    return stored(seq, "hop.refused", tenant, "t1", subject)


LEDGER = [
    stored(1, "txn.opened"),
    stored(2, "txn.opened", "acme", "t2"),
    stored(3, "hop.opened", resource=CAREFUL, approval="h9"),
]


def test_what_stays_where_it_belongs_is_no_violation() -> None:
    events = [
        {"what": "dispatched", "txn": "t2", "tenant": "acme", "at": 3.0},
        {"what": "crossed", "txn": "t1", "tenant": "acme", "frames": ["error"], "at": 4.0},
        {"what": "decided", "txn": "t1", "tenant": "default", "by": "default", "at": 5.0},
    ]
    assert borders(LEDGER, [refused(1, "acme", "refusals.acme")], events) == [] and unapproved(LEDGER) == []


@pytest.mark.parametrize(
    ("rule", "entries", "refusals", "events"),
    [
        ("tenant.subject", [stored(4, "hop.closed", "acme", "t2", "ledger.default.t2")], [], []),
        ("tenant.subject", [], [refused(1, "acme", "refusals.default")], []),
        ("tenant.record", [stored(4, "hop.closed", "acme", "t1")], [], []),
        ("tenant.dispatched", [], [], [{"what": "dispatched", "txn": "t1", "tenant": "acme"}]),
        ("tenant.acked", [], [], [{"what": "acked", "txn": "t2", "tenant": "default"}]),
        (
            "tenant.crossed",
            [],
            [],
            [{"what": "crossed", "txn": "t1", "tenant": "acme", "frames": ["accepted", "result"]}],
        ),
        ("tenant.crossed", [], [], [{"what": "decided", "txn": "t1", "tenant": "default", "by": "acme"}]),
    ],
)
def test_each_way_across_is_found(rule: str, entries: list[Stored], refusals: list[Stored], events: list[Json]) -> None:
    assert {one.rule for one in borders([*LEDGER, *entries], refusals, events)} == {rule}


def test_a_call_that_nobody_was_asked_about_is_found() -> None:
    plain = stored(4, "hop.opened", resource="mcp/files/read", approval=None)
    resumed = stored(3, "hop.resumed", approval=None)
    assert unapproved([*LEDGER, plain]) == []
    assert [one.rule for one in unapproved([*LEDGER, resumed])] == ["approval.none"]
    assert [one.rule for one in unapproved([stored(5, "hop.opened", resource=CAREFUL, approval=None)])] == [
        "approval.none"
    ]


def test_what_waited_when_something_died_is_counted_until_it_was_settled_or_expired() -> None:
    entries = [
        stored(1, "approval.requested", id="a", exp=9), stored(2, "approval.requested", id="b", exp=4),
        stored(3, "approval.decided", id="a", settled=False), stored(6, "approval.decided", id="a", settled=True),
    ]  # fmt: skip
    died = [{"what": what, "at": at} for what, at in (("death", 2.5), ("freeze", 5.0), ("death", 7.0), ("heard", 2.5))]
    assert pending(entries, died) == 3
