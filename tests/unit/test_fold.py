"""What a sequence of records amounts to, and which sequences are none that a broker wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from remit_broker.core.fold import Corrupt, Fold, apply, fold_all, open_path
from remit_schemas.budget import ONE_CALL, ZERO, Budget
from remit_schemas.errors import Code, Refusal
from remit_schemas.records import Record, hash_of, plain
from tests.support.story import (
    LARGE,
    ROOT,
    TXN,
    Story,
    closing,
    ending,
    hop_id,
    opened,
    opening,
    revoking,
)

A, B, C, D = map(hop_id, range(4))


def nested() -> Story:
    """The root, A under it, B and C under A."""
    story = Story()
    story.open(A, budget=Budget(500, 50, 20))
    story.open(B, A, Budget(100, 10, 5), resource="mcp/files/read_file")
    story.open(C, A, Budget(100, 10, 5), resource="agent/critic/review")
    return story


def test_the_root_holds_what_the_user_granted_and_has_spent_nothing() -> None:
    root = Story().fold.totals
    assert (root.hop, root.callee, root.limit, root.left) == (ROOT, "planner", LARGE, LARGE)
    assert (root.held, root.spent, root.overrun, root.depth) == (ZERO, ZERO, ZERO, 0)


def test_opening_holds_from_the_parent_and_costs_the_child_its_own_call() -> None:
    fold = Story().open(A, budget=Budget(500, 50, 20))
    assert fold.totals.held == Budget(500, 50, 20)
    assert fold.left(ROOT) == LARGE.minus(Budget(500, 50, 20))
    assert fold.left(A) == Budget(500, 50, 19)


def test_closing_returns_the_rest_and_charges_what_was_used() -> None:
    story = nested()
    story.close(B, Budget(40, 4, 0))
    story.close(C)
    fold = story.close(A, Budget(10, 1, 2))
    assert fold.totals.held == ZERO
    assert fold.totals.spent == Budget(50, 5, 5)
    assert fold.left(ROOT) == LARGE.minus(Budget(50, 5, 5))


def test_an_overrun_is_charged_all_the_way_up_and_leaves_less_to_open() -> None:
    story = nested()
    fold = story.close(B, Budget(130, 0, 0))
    assert (fold.nodes[A].spent, fold.nodes[A].overrun) == (Budget(100, 0, 2), Budget(30, 0, 0))
    assert fold.left(A) == Budget(500 - 100 - 100 - 30, 40, 20 - 5 - 2)
    story.close(C)
    fold = story.close(A)
    assert (fold.totals.spent, fold.totals.overrun) == (Budget(100, 0, 3), Budget(30, 0, 0))


@pytest.mark.parametrize("outcome", ["unknown", "cancelled"])
def test_a_hop_whose_end_nobody_knows_is_charged_all_that_it_held(outcome: Any) -> None:
    fold = nested().close(B, outcome=outcome)
    assert fold.nodes[A].spent == ONE_CALL + Budget(100, 10, 5)


def test_labels_follow_results_to_the_parent_and_the_txn() -> None:
    story = nested()
    fold = story.close(B, labels=("untrusted",))
    assert fold.nodes[A].labels == fold.labels == {"untrusted"}
    assert fold.nodes[C].labels == frozenset()
    fold = story.open(D, A, Budget(0, 0, 1), labels=("pii",))
    assert fold.nodes[D].labels == {"pii"} and fold.labels == {"untrusted", "pii"}


def test_descendants_come_before_what_they_are_under() -> None:
    story = nested()
    story.open(D, C, Budget(0, 0, 1), caller="critic")
    assert story.fold.descendants_open(ROOT) == (B, D, C, A)
    assert story.fold.descendants_open(A) == (B, D, C)
    assert story.fold.descendants_open(D) == ()


def test_paths_and_chains_lead_from_the_root() -> None:
    fold = nested().fold
    assert [node.hop for node in fold.path(B)] == [ROOT, A, B]
    assert fold.chain(B) == ("planner", "researcher", "files")
    assert fold.path(D) == ()
    assert [node.hop for node in fold.children(A)] == [B, C]


def test_revoking_covers_everything_beneath() -> None:
    fold = nested().revoke(A)
    assert fold.is_revoked(A) and fold.is_revoked(B) and not fold.is_revoked(ROOT)
    assert nested().revoke(ROOT).is_revoked(C)


def refused(fold: Fold, hop: str) -> tuple[Code, str]:
    with pytest.raises(Refusal) as no:
        open_path(fold, hop)
    return no.value.body.code, no.value.body.rule


def test_a_grant_is_usable_while_its_hop_is_open_and_unrevoked() -> None:
    assert [node.hop for node in open_path(nested().fold, B)] == [ROOT, A, B]
    assert refused(nested().fold, D) == (Code.GRANT_INVALID, "ledger.unknown-hop")
    assert refused(nested().close(B), B) == (Code.GRANT_CLOSED, "ledger.closed")
    assert refused(nested().revoke(A), B) == (Code.GRANT_REVOKED, "ledger.revoked")
    assert refused(Story().end(), ROOT) == (Code.GRANT_CLOSED, "ledger.closed")


def test_an_older_fold_stays_what_it_was() -> None:
    story = nested()
    before = story.fold
    story.close(B, Budget(1, 1, 1))
    assert before == nested().fold and before.is_open(B)


def test_idempotency_keys_lead_to_their_hop() -> None:
    fold = Story().open(A, idem="k" * 64)
    assert fold.idem[("k" * 64)] == A


Bad = Callable[[Story], Record]


@pytest.mark.parametrize(
    ("why", "bad"),
    [
        ("holds .* its parent has", lambda s: opening(s.fold, D, A, s.fold.left(A) + Budget(1, 0, 0))),
        ("at least one call", lambda s: opening(s.fold, D, A, Budget(1, 1, 0))),
        ("exp is later", lambda s: opening(s.fold, D, A, ONE_CALL, exp=s.fold.nodes[A].exp + 1)),
        ("depth is 3", lambda s: opening(s.fold, D, A, ONE_CALL, depth=3)),
        ("max_depth", lambda s: opening(s.fold, D, A, ONE_CALL, max_depth=9)),
        ("max_depth", lambda s: opening(s.fold, D, A, ONE_CALL, max_depth=1)),
        ("the grant is for 'researcher'", lambda s: opening(s.fold, D, A, ONE_CALL, caller="planner")),
        ("does not exist", lambda s: replace(opening(s.fold, D, A, ONE_CALL), parent="9" * 16)),
        ("opened before", lambda s: opening(s.fold, B, A, ONE_CALL)),
        ("not a hop id", lambda s: opening(s.fold, "0" * 16, A, ONE_CALL)),
        ("jti", lambda s: opening(s.fold, D, A, ONE_CALL, jti=f"{TXN}.{A}.1")),
        ("jti", lambda s: opening(s.fold, D, A, ONE_CALL, jti=f"{TXN}.{D}.2")),
        ("not a resource", lambda s: opening(s.fold, D, A, ONE_CALL, resource="mcp/files/*")),
        ("open descendants", lambda s: closing(s.fold, A)),
        ("no hop", lambda s: replace(closing(s.fold, B), hop=D)),
        ("no hop", lambda s: replace(closing(s.fold, B), hop=ROOT)),
        ("spent is", lambda s: closing(s.fold, B, Budget(5, 0, 0), spent=ONE_CALL)),
        ("spent is", lambda s: closing(s.fold, B, spent=Budget(5, 0, 1))),
        ("overrun is", lambda s: closing(s.fold, B, Budget(500, 0, 0), overrun=ZERO)),
        ("not a grant of hop", lambda s: revoking(s.fold, D)),
        ("not a grant of hop", lambda s: revoking(s.fold, B, jti=f"{TXN}.{A}.1")),
        ("not a grant of hop", lambda s: revoking(s.fold, B, jti=f"{TXN}.{B}.2")),
        ("not a grant of hop", lambda s: revoking(s.fold, B, jti=f"{'b' * 32}.{B}.1")),
        ("open hops", lambda s: ending(s.fold)),
        ("txn was opened before", lambda s: opened(seq=s.fold.seq + 1, prev=s.fold.hash)),
        ("RFC 3339", lambda s: opening(s.fold, D, A, ONE_CALL, at="yesterday")),
        ("version", lambda s: opening(s.fold, D, A, ONE_CALL, v=2)),
        ("another tenant", lambda s: opening(s.fold, D, A, ONE_CALL, tenant="other")),
        ("another txn", lambda s: opening(s.fold, D, A, ONE_CALL, txn="b" * 32, jti=f"{'b' * 32}.{D}.1")),
        ("seq is", lambda s: opening(s.fold, D, A, ONE_CALL, seq=s.fold.seq + 2)),
        ("prev", lambda s: opening(s.fold, D, A, ONE_CALL, prev="c" * 64)),
        ("at most 16384", lambda s: closing(s.fold, B, reason="x" * 17000)),
        ("hash is not", lambda s: replace(opening(s.fold, D, A, ONE_CALL), hash="c" * 64)),
        ("not a record", lambda s: replace(opening(s.fold, D, A, ONE_CALL), depth=2**53)),
    ],
)  # fmt: skip
def test_a_record_is_not_accepted_where(why: str, bad: Bad) -> None:
    story = nested()
    raw = plain(bad(story))
    if raw["hash"] != "c" * 64 and raw.get("depth") != 2**53:
        raw["hash"] = hash_of(raw)
    with pytest.raises(Corrupt, match=why) as corrupt:
        apply(story.fold, raw)
    assert corrupt.value.where == f"{TXN}#4"


@pytest.mark.parametrize("wrong", [{"hop": D}, {"spent": Budget(1, 0, 1)}, {"overrun": ONE_CALL}])
def test_a_txn_does_not_end_with(wrong: dict[str, Any]) -> None:
    story = Story()
    with pytest.raises(Corrupt):
        story.add(ending(story.fold, **wrong))


@pytest.mark.parametrize("revoke_first", [B, ROOT])
def test_a_grant_is_not_revoked_twice_or_after_its_hop(revoke_first: str) -> None:
    story = nested()
    story.revoke(revoke_first)
    with pytest.raises(Corrupt, match="revoked before"):
        story.revoke(revoke_first)
    story.close(B)
    with pytest.raises(Corrupt, match="closed"):
        story.revoke(B)


def test_nothing_is_accepted_under_a_closed_hop() -> None:
    story = nested()
    record = opening(story.fold, D, B, ONE_CALL, caller="files")
    fold = story.close(B)
    raw = plain(replace(record, seq=fold.seq + 1, prev=fold.hash))
    with pytest.raises(Corrupt, match="closed"):
        apply(fold, raw | {"hash": hash_of(raw)})


@pytest.mark.parametrize("revoked", [A, ROOT, B])
def test_nothing_is_accepted_under_a_revoked_hop(revoked: str) -> None:
    story = nested()
    fold = story.revoke(revoked)
    with pytest.raises(Corrupt, match="revoked"):
        story.add(opening(fold, D, B, ONE_CALL))
    story.close(B)


@pytest.mark.parametrize(
    "late", [lambda f: revoking(f, ROOT), lambda f: ending(f), lambda f: opening(f, A), lambda f: closing(f, ROOT)]
)
def test_nothing_follows_the_end_of_a_txn(late: Callable[[Fold], Record]) -> None:
    fold = Story().end()
    with pytest.raises(Corrupt, match="the txn is closed"):
        apply(fold, plain(late(fold)))


@pytest.mark.parametrize("used", [{"idem": "once"}, {"approval": "once"}])
def test_what_may_be_used_once_is_not_accepted_twice(used: dict[str, Any]) -> None:
    story = Story()
    story.open(A, **used)
    with pytest.raises(Corrupt, match="used before"):
        story.open(B, **used)


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "A"}, {"txn": "x" * 32}, {"hop": "0" * 16}, {"agent": "Planner"}, {"user": ""}, {"max_depth": 17},
        {"jti": f"{TXN}.{ROOT}.2"}, {"seq": 1}, {"prev": "1" * 64},
    ],
)  # fmt: skip
def test_a_txn_does_not_begin_with(changes: dict[str, Any]) -> None:
    with pytest.raises(Corrupt):
        fold_all([plain(opened(**changes))])


@pytest.mark.parametrize("raw", [{}, {"kind": "hop.opened"}, {"kind": "x"}, [], None, {"kind": "txn.opened", "v": "1"}])
def test_what_is_no_record_is_corrupt_not_a_traceback(raw: Any) -> None:
    with pytest.raises(Corrupt):
        apply(None, raw)


def test_no_record_at_all_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        fold_all([])


def test_a_changed_byte_is_found_at_its_record() -> None:
    records = nested().records
    records[2]["caller"] = "mallory"
    with pytest.raises(Corrupt) as corrupt:
        fold_all(records)
    assert corrupt.value.where == f"{TXN}#2"


def test_a_txn_of_two_thousand_records_is_folded_in_moderate_time() -> None:
    story = Story(opened(budget=Budget(0, 0, 10_000)))
    for number in range(1000):
        story.open(hop_id(number), budget=ONE_CALL)
    for number in range(999):
        story.close(hop_id(number))
    assert fold_all(story.records) == story.fold
    assert story.fold.totals.spent == Budget(0, 0, 999)
