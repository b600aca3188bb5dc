"""Whatever is asked, said and tried in whatever order: an approval is used once, in time, for what was approved.

Two opinions that share no code: what the fold accepts, the independent books accept too; and of what was planted in a sequence, they
find what the fold would have refused.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit_broker.core.fold import Corrupt
from remit_broker.core.times import rfc3339, seconds_of
from remit_schemas.budget import Budget
from remit_schemas.records import Decision, Need, hash_of
from tests.support.ledger_books import Books
from tests.support.story import AT, TXN, Story, asking, closing, deciding, hop_id, opening, parking, resuming, revoking

START = int(seconds_of(AT))
IDS = ["c" * 16, "d" * 16]
ONE = Budget(0, 0, 1)

few = st.sampled_from
step = st.one_of(
    st.tuples(
        st.just("ask"), few(IDS), st.integers(0, 60), few(["d" * 64, "0" * 64]),
        few([(Need("r"),), (Need("r", count=2),), (Need("r", four_eyes=True),), (Need("r", role="x"), Need("s"))]),
    ),
    st.tuples(st.just("decide"), few(IDS), few(["ann", "eve", "kim"]), few(["approve", "approve", "deny"]), few([(), ("x",)])),
    st.tuples(st.just("use"), few([*IDS, "f" * 16]), few(["d" * 64, "0" * 64]), few(["rev", "rev", "rev2"]), few([(), ("l",)])),
    st.tuples(st.just("revoke")),
    st.tuples(st.just("wait"), st.integers(1, 40)),
)  # fmt: skip


def attempt(story: Story, now: int, number: int, tried: tuple[Any, ...]) -> None:
    """Add the record that ``tried`` stands for; raises :class:`Corrupt` where it cannot stand there."""
    fold, at = story.fold, rfc3339(now)
    match tried:
        case ("ask", name, seconds, digest, needs):
            parent = hop_id(0) if hop_id(0) in fold.nodes else None
            story.add(asking(fold, name, parent, at=at, exp=now + seconds, args_digest=digest, needs=needs))
        case ("decide", name, user, verdict, roles) if name in fold.requests:
            story.add(deciding(fold, name, user, at=at, verdict=verdict, roles=roles, exp=now + 20))
        case ("use", name, digest, revision, labels):
            decision = Decision("allow", ("default",), revision)
            changes = {"args_digest": digest, "decision": decision, "labels": labels, "approval": name, "at": at}
            asked = fold.requests.get(name)
            parent = asked.asked.hop if asked else None
            story.add(opening(fold, hop_id(number), parent, ONE, **changes))
        case ("revoke",):
            story.add(revoking(fold, hop_id(0)))


@settings(max_examples=300, deadline=None)
@given(st.lists(step, max_size=24))
def test_what_the_fold_accepts_of_approvals_the_independent_books_accept(steps: list[tuple[Any, ...]]) -> None:
    story, now = Story(), START
    story.open(hop_id(0), budget=Budget(0, 0, 50))
    used: Counter[str] = Counter()
    for number, tried in enumerate(steps, start=1):
        if tried[0] == "wait":
            now += tried[1]
            continue
        before = story.fold
        try:
            attempt(story, now, number, tried)
        except Corrupt:
            assert story.fold is before
            continue
        if tried[0] == "use":
            approval = before.requests[tried[1]]
            used[tried[1]] += 1
            assert approval.state(now) == "approved" and approval.asked.args_digest == tried[2]
            assert approval.asked.decision.revision == tried[3] and set(tried[4]) <= set(approval.asked.labels)
            assert not before.is_revoked(approval.asked.hop)
    assert all(count == 1 for count in used.values())
    books = Books(("default", TXN))
    for record in story.records:
        books.add(record)
    assert books.found == []


def planted(*breaks: tuple[int, dict[str, Any]]) -> list[str]:
    """What the books say of a sequence with an approval of which some records were changed, sealed anew."""
    story = Story()
    story.open(hop_id(0), budget=Budget(0, 0, 9))  # 1
    story.ask(IDS[0], hop_id(0), needs=(Need("r", four_eyes=True),))  # 2
    story.decide(IDS[0])  # 3
    story.ask(IDS[1], hop_id(0), args_digest="0" * 64)  # 4
    story.decide(IDS[1], "kim")  # 5
    story.open(hop_id(1), hop_id(0), ONE, approval=IDS[0])  # 6
    story.open(hop_id(2), hop_id(0), ONE, approval=IDS[1], args_digest="0" * 64)  # 7
    records = story.records
    for index, changes in breaks:
        records[index].update(changes)
    for index, record in enumerate(records):
        if index:
            record["prev"] = records[index - 1]["hash"]
        if record["kind"] == "approval.decided":
            record["request"] = record["request"] if "request" in dict(breaks).get(index, {}) else ""
        if record["kind"] == "approval.decided" and not record["request"]:
            record["request"] = next(one["hash"] for one in records if one.get("id") == record["id"])
        record["hash"] = hash_of(record)
    books = Books(("default", TXN))
    for record in records:
        books.add(record)
    return [found.rule for found in books.found]


def test_the_sequence_as_it_is_has_no_violation() -> None:
    assert planted() == []


@pytest.mark.parametrize(
    ("where", "changes", "rule"),
    [
        (7, {"approval": IDS[0], "args_digest": "d" * 64}, "approval.twice"),
        (6, {"args_digest": "0" * 64}, "approval.other"),
        (6, {"resource": "agent/researcher/other"}, "approval.other"),
        (6, {"decision": {"effect": "allow", "rules": [], "revision": "x"}}, "approval.other"),
        (6, {"labels": ["untrusted"]}, "approval.other"),
        (6, {"approval": "f" * 16}, "approval.missing"),
        (6, {"at": "2031-01-01T00:00:00.000Z"}, "approval.late"),
        (3, {"verdict": "deny"}, "approval.missing"),
        (3, {"user": "ann"}, "approval.own"),
        (3, {"request": "0" * 64}, "approval.unbound"),
        (3, {"at": "2031-01-01T00:00:00.000Z"}, "approval.late"),
        (2, {"chain": ["bob"]}, "approval.unbound"),
        (4, {"id": IDS[0]}, "approval.reused"),
    ],
)
def test_the_independent_books_find_a_planted_breach(where: int, changes: dict[str, Any], rule: str) -> None:
    assert rule in planted((where, changes))


def test_a_resumption_uses_an_approval_as_an_opening_does() -> None:
    story = Story()
    story.open(hop_id(0), budget=Budget(0, 0, 9))
    story.add(parking(story.fold, hop_id(0)))
    about = {"resumes": hop_id(0), "input_digest": "9" * 64, "resource": story.fold.nodes[hop_id(0)].resource}
    story.ask(IDS[0], **about)
    story.decide(IDS[0])
    with pytest.raises(Corrupt, match="input digest"):
        story.add(resuming(story.fold, hop_id(0), ONE, approval=IDS[0], input_digest="8" * 64))
    story.add(resuming(story.fold, hop_id(0), ONE, approval=IDS[0]))
    story.add(closing(story.fold, hop_id(0)))
    books = Books(("default", TXN))
    for record in story.records:
        books.add(record)
    assert books.found == []
