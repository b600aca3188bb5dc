"""What a sequence says about approvals: one use, by the call that was approved, while it counts."""

from __future__ import annotations

from typing import Any

import pytest

from remit_broker.core.approvals import MAX_REQUESTS, Call, identical
from remit_broker.core.fold import Corrupt
from remit_broker.core.showing import hidden, visible_json
from remit_schemas import approval, grant, jws
from remit_schemas.approval import Decided
from remit_schemas.budget import ONE_CALL
from remit_schemas.errors import Refusal
from remit_schemas.keys import KeySet, SigningKey
from remit_schemas.records import Decision, Need
from remit_schemas.scope import Detail
from tests.support.story import LATER, Story, asking, deciding, hop_id, opening

A, B, C = hop_id(0), hop_id(1), hop_id(2)
ONE, TWO = "c" * 16, "d" * 16
NOW = 1_800_000_000.0


def approved(**changes: Any) -> Story:
    """A txn in which somebody has approved what ``opening`` opens."""
    story = Story()
    story.ask(ONE, **changes)
    story.decide(ONE)
    return story


def test_an_approval_is_used_once() -> None:
    story = approved()
    story.open(A, approval=ONE)
    assert story.fold.requests[ONE].state(NOW) == "used" and story.fold.requests[ONE].used_by == A
    with pytest.raises(Corrupt, match="the approval was used before"):
        story.open(B, approval=ONE)


@pytest.mark.parametrize(
    "changes",
    [
        {"args_digest": "0" * 64}, {"resource": "agent/researcher/other"}, {"definition": "0" * 64},
        {"decision": Decision("allow", ("default",), "other")}, {"labels": ("untrusted",)},
        {"scope": (Detail("mcp/**"),)}, {"parent": A, "caller": "researcher"},
    ],
)  # fmt: skip
def test_an_approval_is_void_where_anything_differs(changes: dict[str, Any]) -> None:
    story = approved()
    story.open(A)
    parent = changes.pop("parent", None)
    with pytest.raises(Corrupt, match="the approval is for another"):
        story.add(opening(story.fold, B, parent, ONE_CALL, approval=ONE, **changes))
    story.open(C, approval=ONE)


def test_an_approval_may_be_used_with_fewer_labels_and_a_narrower_scope() -> None:
    story = approved(labels=("untrusted",), scope=(Detail("mcp/**"),))
    story.open(A, approval=ONE, scope=(Detail("mcp/git/*"),))


@pytest.mark.parametrize("name", [ONE, "invented"])
def test_what_nobody_approved_is_not_used(name: str) -> None:
    story = Story()
    story.ask(ONE)
    with pytest.raises(Corrupt, match=r"the approval is waiting|no such approval"):
        story.open(A, approval=name)


def test_what_was_denied_is_not_used_and_stays_denied() -> None:
    story = Story()
    story.ask(ONE)
    story.decide(ONE, verdict="deny", reason="no")
    with pytest.raises(Corrupt, match="the approval is denied"):
        story.open(A, approval=ONE)
    with pytest.raises(Corrupt, match="it is denied, not waiting"):
        story.decide(ONE, "kim")


@pytest.mark.parametrize("late", [{"exp": 1}, {"at": "2031-01-01T00:00:00.000Z"}])
def test_what_expired_is_neither_decided_nor_used(late: dict[str, Any]) -> None:
    story = Story()
    story.ask(ONE, exp=late.get("exp", LATER))
    if "at" in late:
        story.decide(ONE)
        with pytest.raises(Corrupt, match="the approval is expired"):
            story.open(A, approval=ONE, **late)
    else:
        with pytest.raises(Corrupt, match="it is expired, not waiting"):
            story.decide(ONE)


def test_nobody_approves_twice() -> None:
    story = Story()
    story.ask(ONE, needs=(Need("default", count=2),))
    story.decide(ONE)
    with pytest.raises(Corrupt, match="the same person decided before"):
        story.decide(ONE)
    with pytest.raises(Corrupt, match="the approval is waiting"):
        story.open(A, approval=ONE)
    story.decide(ONE, "kim")
    story.open(A, approval=ONE)


def test_nobody_approves_their_own_call_with_four_eyes() -> None:
    story = Story()
    story.ask(ONE, needs=(Need("default", four_eyes=True),))
    with pytest.raises(Corrupt, match="the user approves their own call"):
        story.decide(ONE, story.fold.user)
    story.decide(ONE, "kim")
    story.open(A, approval=ONE)


def test_a_user_may_deny_their_own_call() -> None:
    story = Story()
    story.ask(ONE, needs=(Need("default", four_eyes=True),))
    story.decide(ONE, story.fold.user, verdict="deny")
    assert story.fold.requests[ONE].state(NOW) == "denied"


def test_every_role_that_a_policy_names_is_needed() -> None:
    story = Story()
    story.ask(ONE, needs=(Need("a", role="finance"), Need("b", role="security", count=2)))
    with pytest.raises(Corrupt, match="none of the roles"):
        story.decide(ONE, "kim", roles=("sales",))
    story.decide(ONE, "kim", roles=("finance", "security"))
    assert story.fold.requests[ONE].state(NOW) == "waiting"
    with pytest.raises(Corrupt, match="none of the roles"):
        story.decide(ONE, "lee", roles=("finance",))
    story.decide(ONE, "lee", roles=("security",))
    assert story.fold.requests[ONE].state(NOW) == "approved"


@pytest.mark.parametrize("settled", [True, False])
def test_a_decision_says_whether_more_people_are_waited_for(settled: bool) -> None:
    story = Story()
    story.ask(ONE, needs=(Need("default", count=2 if settled else 1),))
    with pytest.raises(Corrupt, match="settled is wrong"):
        story.decide(ONE, settled=settled)


def test_a_request_of_a_hop_that_is_revoked_comes_to_nothing() -> None:
    story = Story()
    story.open(A)
    story.ask(ONE, A)
    story.ask(TWO, A, args_digest="0" * 64)
    story.decide(ONE)
    story.revoke(A)
    with pytest.raises(Corrupt, match="the hop that asked is revoked"):
        story.decide(TWO)
    with pytest.raises(Corrupt):
        story.open(B, A, approval=ONE)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "x"}, {"id": A}, {"id": ONE}, {"caller": "bob"}, {"user": "bob"}, {"chain": ("bob",)}, {"needs": ()},
        {"needs": (Need("a", count=0),)}, {"needs": (Need("a", count=17),)}, {"exp": 2_000_000_001}, {"resource": "x"},
        {"decision": Decision("deny", ("default",), "rev")},
    ],
)  # fmt: skip
def test_a_request_is_not_accepted_with(changes: dict[str, Any]) -> None:
    story = Story()
    story.open(A)
    story.ask(ONE)
    with pytest.raises(Corrupt):
        story.add(asking(story.fold, changes.pop("id", TWO), **changes))


@pytest.mark.parametrize(
    "changes", [{"hop": A}, {"request": "0" * 64}, {"exp": 2_000_000_001}, {"who": ""}, {"user": ""}]
)
def test_a_decision_is_not_accepted_with(changes: dict[str, Any]) -> None:
    story = Story()
    story.open(A)
    story.ask(ONE)
    with pytest.raises(Corrupt):
        story.add(deciding(story.fold, ONE, **changes))


def test_a_txn_has_a_bounded_number_of_requests() -> None:
    story = Story()
    for number in range(MAX_REQUESTS):
        story.ask(f"{number + 1:016x}", args_digest=f"{number:064x}")
    with pytest.raises(Corrupt, match="at most"):
        story.ask("f" * 16)


def test_an_identical_call_finds_what_waits_what_counts_and_what_was_denied() -> None:
    story = Story()
    call = Call(
        caller="planner", chain=("planner",), resource="agent/researcher/brief", definition="e" * 64, args_digest="d" * 64,
        revision="rev", labels=(), scope=(), action="delegate", rules=("default",),
    )  # fmt: skip

    def found() -> str | None:
        approval = identical(story.fold.requests.values(), call, NOW)
        return approval.id if approval else None

    assert found() is None
    story.ask(ONE)
    assert found() == ONE
    story.decide(ONE)
    assert found() == ONE
    story.open(A, approval=ONE)
    assert found() is None
    story.ask(TWO)
    story.decide(TWO, verdict="deny")
    assert found() == TWO


KEY = SigningKey.from_seed(b"k" * 32)
KEYS = KeySet([KEY.public])
DECIDED = Decided(
    iss="remit", tenant="default", txn="a" * 32, id=ONE, request="1" * 64, resource="mcp/mail/send", args_digest="2" * 64,
    chain=("alice",), revision="rev", verdict="approve", sub="kim", who="local:kim", auth="local", iat=1, exp=2,
)  # fmt: skip


def test_a_signed_decision_is_read_with_public_keys_alone() -> None:
    token = approval.sign(DECIDED, KEY)
    assert approval.verify(token, KEYS) == DECIDED
    with pytest.raises(Refusal, match="APPROVAL_INVALID"):
        approval.verify(token, KeySet([SigningKey.from_seed(b"o" * 32).public]))
    head, body, signature = token.split(".")
    other = approval.sign(DECIDED, SigningKey.from_seed(b"o" * 32)).split(".")[2]
    for forged in (f"{head}.{body}.{other}", f"{head}.{body}", "", f"{head}.{body[:-4]}.{signature}"):
        with pytest.raises(Refusal, match="APPROVAL_INVALID"):
            approval.verify(forged, KEYS)


def test_a_grant_does_not_pass_for_a_decision() -> None:
    with pytest.raises(Refusal, match="typ must be"):
        approval.verify(jws.sign(b"{}", grant.TYP, KEY), KEYS)
    with pytest.raises(Refusal, match=r"grant\.typ|typ"):
        unverified = grant.parse(approval.sign(DECIDED, KEY))
        grant.verify(unverified, KEYS, issuer="remit", audience="kim", now=1)


def test_nothing_that_is_sent_is_hidden_from_who_approves() -> None:
    value = {"to": "ann\u202egro.elpmaxe@", "zero\u200bwidth": "a\u00a0b\x1b[2K", "n": [1, 2.5, None, True], "é": "漢"}
    text = visible_json(value)
    assert all(char.isprintable() or char == "\n" for char in text)
    for shown in ("ann\\u202egro", "zero\\u200bwidth", "a\\u00a0b\\u001b[2K", '"é": "漢"', "2.5"):
        assert shown in text
    assert hidden(value) == 3
