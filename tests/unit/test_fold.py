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
from remit_schemas.scope import Detail
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
    parking,
    renewing,
    resuming,
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
    fold = story.open(D, A, Budget(0, 0, 1), resource="agent/critic/review", labels=("pii",))
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
        ("deadline is later", lambda s: opening(s.fold, D, A, ONE_CALL, deadline=s.fold.nodes[A].deadline + 1)),
        ("not later than before", lambda s: renewing(s.fold, B, s.fold.nodes[B].exp)),
        ("descendants that run", lambda s: parking(s.fold, A)),
        ("no hop", lambda s: replace(parking(s.fold, B), hop=D)),
        ("no hop", lambda s: replace(parking(s.fold, B), hop=ROOT)),
        ("no hop", lambda s: renewing(s.fold, ROOT)),
        ("spent is", lambda s: parking(s.fold, B, Budget(5, 0, 0), spent=ONE_CALL)),
        ("overrun is", lambda s: parking(s.fold, B, Budget(500, 0, 0), overrun=ZERO)),
        ("not parked", lambda s: resuming(s.fold, B, ONE_CALL)),
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


def test_an_idempotency_key_is_not_accepted_twice() -> None:
    story = Story()
    story.open(A, idem="once")
    with pytest.raises(Corrupt, match="used before"):
        story.open(B, idem="once")


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


# Renewal


def short(fold: Fold, hop: str, parent: str | None = None, *, exp: int = 1_800_000_000) -> Record:
    """A hop whose grant expires long before its deadline, and before the grant above it."""
    return opening(fold, hop, parent, Budget(500, 50, 20) if parent is None else ONE_CALL, exp=exp)


def test_the_last_four_grants_of_a_hop_count() -> None:
    story = Story()
    story.add(short(story.fold, A))
    recs = [story.fold.nodes[A].rec]
    for _ in range(5):
        recs.append(story.renew(A).nodes[A].rec)
    node = story.fold.nodes[A]
    assert (node.n, node.exp) == (6, 1_800_000_300)
    assert [node.counts(n, rec) for n, rec in enumerate(recs, start=1)] == [False, False, True, True, True, True]
    assert not node.counts(7, recs[-1]) and not node.counts(5, recs[-1])


def test_a_grant_from_before_a_resumption_is_dead() -> None:
    story = Story()
    story.add(short(story.fold, A))
    recs = [story.fold.nodes[A].rec, story.renew(A).nodes[A].rec]
    story.park(A)
    recs.append(story.resume(A, ONE_CALL).nodes[A].rec)
    node = story.fold.nodes[A]
    assert [node.counts(n, rec) for n, rec in enumerate(recs, start=1)] == [False, False, True]


@pytest.mark.parametrize(
    ("why", "bad"),
    [
        ("jti", lambda f: renewing(f, B, jti=f"{TXN}.{B}.1")),
        ("jti", lambda f: renewing(f, B, jti=f"{TXN}.{B}.3")),
        ("jti", lambda f: renewing(f, B, jti=f"{TXN}.{A}.2")),
        ("its parent's", lambda f: renewing(f, B, f.nodes[A].exp + 1)),
        ("the deadline", lambda f: renewing(f, A, f.nodes[A].deadline // 1000 + 1)),
        ("not later than before", lambda f: renewing(f, B, f.nodes[B].exp - 1)),
    ],
)
def test_a_renewal_is_not_accepted_where(why: str, bad: Callable[[Fold], Record]) -> None:
    story = Story()
    story.add(short(story.fold, A))
    story.add(short(story.fold, B, A, exp=1_799_999_990))
    assert story.renew(B, 1_800_000_000).nodes[B].exp == story.fold.nodes[A].exp
    story = Story()
    story.add(short(story.fold, A))
    story.add(short(story.fold, B, A, exp=1_799_999_990))
    with pytest.raises(Corrupt, match=why):
        story.add(bad(story.fold))


@pytest.mark.parametrize("ended", ["closed", "parked", "revoked", "revoked above"])
def test_nothing_renews_a_grant_that_is_of_no_use(ended: str) -> None:
    story = Story()
    story.add(short(story.fold, A))
    match ended:
        case "closed":
            story.close(A)
        case "parked":
            story.park(A)
        case _:
            story.revoke(A if ended == "revoked" else ROOT)
    with pytest.raises(Corrupt):
        story.renew(A)


# Parking


def test_parking_returns_the_rest_and_charges_what_was_used() -> None:
    story = nested()
    story.close(B, Budget(40, 4, 0))
    story.close(C)
    fold = story.park(A, Budget(10, 1, 2))
    node = fold.nodes[A]
    assert (node.state, node.limit, node.spent, node.left) == ("parked", Budget(50, 5, 5), Budget(50, 5, 5), ZERO)
    assert fold.totals.held == Budget(50, 5, 5) and fold.left(ROOT) == LARGE.minus(Budget(50, 5, 5))
    assert not fold.is_open(A) and fold.stands(A) and fold.left(A) == ZERO
    assert fold.descendants_open(ROOT) == (A,)


def test_a_resumed_hop_has_a_new_hold_and_is_charged_once_for_all() -> None:
    story = Story()
    story.open(A, budget=Budget(500, 50, 20))
    story.park(A, Budget(10, 1, 2))
    fold = story.resume(A, Budget(100, 10, 4))
    assert fold.left(A) == Budget(100, 10, 3) and fold.totals.held == Budget(110, 11, 7)
    assert (fold.nodes[A].n, fold.nodes[A].recs) == (2, (fold.nodes[A].rec,))
    fold = story.close(A, Budget(5, 0, 0))
    assert (fold.totals.held, fold.totals.spent) == (ZERO, Budget(15, 1, 4))


def test_a_parked_hop_ends_at_what_it_was_charged_whatever_the_outcome() -> None:
    for outcome in ("unknown", "cancelled", "ok"):
        story = Story()
        story.open(A, budget=Budget(500, 50, 20))
        story.park(A, Budget(10, 1, 2))
        fold = story.close(A, outcome=outcome)
        assert (fold.totals.held, fold.totals.spent, fold.totals.overrun) == (ZERO, Budget(10, 1, 3), ZERO)


def test_a_parked_hop_has_no_further_cost() -> None:
    story = Story()
    story.open(A, budget=Budget(500, 50, 20))
    story.park(A)
    with pytest.raises(Corrupt, match="no cost"):
        story.close(A, Budget(1, 0, 0))


def test_an_overrun_blocks_the_caller_from_the_parking_on_and_counts_once() -> None:
    story = Story()
    story.open(A, budget=Budget(100, 10, 5))
    fold = story.park(A, Budget(130, 0, 0))
    assert fold.totals.overrun == Budget(30, 0, 0)
    assert fold.left(ROOT) == LARGE.minus(Budget(130, 0, 1))
    fold = story.resume(A, Budget(100, 10, 5))
    assert fold.left(A) == Budget(70, 10, 4), "what it overran before is not its to spend again"
    fold = story.park(A, Budget(110, 0, 0))
    assert fold.totals.overrun == Budget(40, 0, 0)
    fold = story.close(A)
    assert (fold.totals.spent, fold.totals.overrun) == (Budget(200, 0, 2), Budget(40, 0, 0))


def test_a_question_is_handed_up_and_the_answer_down() -> None:
    story = nested()
    story.park(C, Budget(7, 0, 0))
    assert story.fold.running_below(A) == (B,)
    story.close(B)
    assert story.fold.running_below(A) == ()
    fold = story.park(A, Budget(3, 0, 0))
    # Its own call and cost, B's call, and what C keeps.
    assert fold.nodes[A].limit == Budget(10, 0, 3) and fold.nodes[A].held == Budget(7, 0, 1)
    assert fold.totals.held == Budget(10, 0, 3)
    assert fold.descendants_open(ROOT) == (C, A)
    with pytest.raises(Corrupt, match="parked"):
        story.resume(C, ONE_CALL)
    story.resume(A, Budget(50, 0, 5))
    story.resume(C, Budget(20, 0, 2))
    story.close(C, Budget(1, 0, 0))
    fold = story.close(A)
    assert (fold.totals.held, fold.totals.spent) == (ZERO, Budget(11, 0, 5))


def test_what_still_runs_below_is_named_with_what_is_parked_under_it() -> None:
    story = nested()
    story.open(D, C, Budget(0, 0, 1), caller="critic")
    story.park(D)
    assert story.fold.running_below(A) == (B, D, C)


def test_labels_of_a_request_reach_the_caller_and_those_of_the_input_the_callee() -> None:
    story = nested()
    fold = story.park(B, labels=("web",))
    assert fold.nodes[A].labels == {"web"}
    fold = story.resume(B, ONE_CALL, labels=("pii",))
    assert fold.nodes[B].labels == {"pii"} and fold.labels == {"web", "pii"}


def test_nothing_is_accepted_under_a_parked_hop() -> None:
    story = nested()
    record = opening(story.fold, D, B, ONE_CALL, caller="files")
    fold = story.park(B)
    raw = plain(replace(record, seq=fold.seq + 1, prev=fold.hash))
    with pytest.raises(Corrupt, match="parked"):
        apply(fold, raw | {"hash": hash_of(raw)})
    assert refused(fold, B) == (Code.GRANT_CLOSED, "ledger.closed")


def wider(fold: Fold) -> Record:
    return resuming(fold, B, ONE_CALL, scope=(Detail("mcp/**"),))


@pytest.mark.parametrize(
    ("why", "bad"),
    [
        ("holds .* its parent has", lambda f: resuming(f, B, f.left(A) + Budget(1, 0, 0))),
        ("at least one call", lambda f: resuming(f, B, Budget(1, 1, 0))),
        ("jti", lambda f: resuming(f, B, ONE_CALL, jti=f"{TXN}.{B}.1")),
        ("exp is later", lambda f: resuming(f, B, ONE_CALL, exp=f.nodes[A].exp + 1)),
        ("exp is later than the deadline", lambda f: resuming(f, B, ONE_CALL, deadline=1_500_000_000_000)),
        ("deadline is later", lambda f: resuming(f, B, ONE_CALL, deadline=f.nodes[A].deadline + 1)),
        ("max_depth", lambda f: resuming(f, B, ONE_CALL, max_depth=f.nodes[B].max_depth + 1)),
        ("max_depth", lambda f: resuming(f, B, ONE_CALL, max_depth=f.nodes[B].depth - 1)),
        ("wider", wider),
        ("arguments", lambda f: resuming(f, B, ONE_CALL, args_digest="0" * 64)),
        ("not parked", lambda f: resuming(f, A, ONE_CALL)),
        ("no hop", lambda f: replace(resuming(f, B, ONE_CALL), hop=D)),
        ("is parked", lambda f: parking(f, B)),
    ],
)  # fmt: skip
def test_a_resumption_is_not_accepted_where(why: str, bad: Callable[[Fold], Record]) -> None:
    story = nested()
    fold = story.park(B)
    raw = plain(bad(fold))
    with pytest.raises(Corrupt, match=why):
        apply(fold, raw | {"hash": hash_of(raw)})


@pytest.mark.parametrize("ended", ["closed", "revoked", "revoked above", "resumed"])
def test_a_hop_is_not_resumed_that_is(ended: str) -> None:
    story = nested()
    story.park(B)
    record = resuming(story.fold, B, ONE_CALL)
    match ended:
        case "closed":
            story.close(B)
        case "resumed":
            story.resume(B, ONE_CALL)
        case _:
            story.revoke(B if ended == "revoked" else A)
    raw = plain(replace(record, seq=story.fold.seq + 1, prev=story.fold.hash))
    with pytest.raises(Corrupt):
        apply(story.fold, raw | {"hash": hash_of(raw)})


def test_a_scope_that_only_narrows_is_accepted_and_stays_narrow() -> None:
    story = Story()
    story.open(A, budget=Budget(500, 50, 20), scope=(Detail("mcp/**"),))
    story.park(A)
    story.resume(A, ONE_CALL, scope=(Detail("mcp/files/*"),))
    story.park(A)
    with pytest.raises(Corrupt, match="wider"):
        story.resume(A, ONE_CALL, scope=(Detail("mcp/**"),))


def test_an_approval_is_used_once_by_a_resumption_too() -> None:
    story, asked = nested(), "c" * 16
    story.park(B)
    about = {"resumes": B, "input_digest": "9" * 64, "resource": story.fold.nodes[B].resource}
    story.ask(asked, story.fold.nodes[B].parent, **about)
    story.decide(asked)
    story.resume(B, ONE_CALL, approval=asked)
    story.park(B)
    with pytest.raises(Corrupt, match="used before"):
        story.resume(B, ONE_CALL, approval=asked)
