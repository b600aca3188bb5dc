"""Approvals in a txn: what was asked, what people said, and whether a call may go on with it. Pure.

A request is for one call: these bytes, this chain, these policies (:class:`Call`). It ends in one of these ways::

    waiting ──► approved ──► used        by exactly one hop.opened or hop.resumed
       │            │
       ├──► denied  └──► expired         nobody used it in time
       └──► expired                      nobody decided in time

Beside that it is void where its txn has ended, the hop that asked is revoked, or the policies are others. The functions that
judge a record answer with what is wrong with it, "" where nothing is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from remit_broker.core.times import seconds_of
from remit_schemas.errors import Refusal
from remit_schemas.names import is_hop, parse_resource
from remit_schemas.records import ApprovalDecided, ApprovalRequested, HopOpened, HopResumed, Need
from remit_schemas.scope import Detail, Scope

if TYPE_CHECKING:
    from remit_broker.core.tree import Fold

State = Literal["waiting", "approved", "denied", "used", "expired"]

MAX_REQUESTS: Final = 100
"""Requests of one txn, ever: a call that is refused writes a record here, so their number is bounded."""
MAX_ASKED: Final = 16
"""Requests of one hop, ever, so that one agent of a chain leaves room for the others."""
MAX_NEEDED: Final = 16
"""Most people that one approval can need."""


class Vote(msgspec.Struct, frozen=True, gc=False):
    """What one person said. ``exp`` is until when it counts, in Unix seconds."""

    verdict: Literal["approve", "deny"]
    who: str
    user: str
    exp: int
    reason: str = ""
    roles: tuple[str, ...] = ()


class Approval(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request and what became of it. ``used_by`` is the hop that went on with it."""

    asked: ApprovalRequested
    votes: tuple[Vote, ...] = ()
    used_by: str = ""

    @property
    def id(self) -> str:
        """The id, by which people decide and a call names it."""
        return self.asked.id

    @property
    def approvers(self) -> tuple[Vote, ...]:
        """Who has approved."""
        return tuple(vote for vote in self.votes if vote.verdict == "approve")

    @property
    def denial(self) -> Vote | None:
        """Who has denied it; one is enough."""
        return next((vote for vote in self.votes if vote.verdict == "deny"), None)

    @property
    def given(self) -> bool:
        """Whether everybody has approved whom a policy demands."""
        return all(_met(need, self.approvers) for need in self.asked.needs)

    @property
    def settled(self) -> bool:
        """Whether nobody need say anything any more."""
        return self.denial is not None or self.given

    @property
    def exp(self) -> int:
        """Until when it waits, or may be used, in Unix seconds."""
        return min(vote.exp for vote in self.approvers) if self.given else self.asked.exp

    def state(self, now: float) -> State:
        """Where it stands at ``now`` (Unix seconds)."""
        if self.used_by:
            return "used"
        if self.denial is not None:
            return "denied"
        if now >= self.exp:
            return "expired"
        return "approved" if self.given else "waiting"

    def after(self, vote: Vote) -> Approval:
        """This once ``vote`` was given."""
        return msgspec.structs.replace(self, votes=(*self.votes, vote))

    def wants(self, roles: tuple[str, ...]) -> bool:
        """Whether an approval by somebody with ``roles`` brings it any further."""
        return any(not need.role or need.role in roles for need in self.asked.needs if not _met(need, self.approvers))


def _met(need: Need, votes: Iterable[Vote]) -> bool:
    return sum(not need.role or need.role in vote.roles for vote in votes) >= need.count


def four_eyes(asked: ApprovalRequested) -> bool:
    """Whether the user for whom the call is made has no say."""
    return any(need.four_eyes for need in asked.needs)


class Call(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an approval is bound to, of a call that is about to be opened."""

    caller: str
    chain: tuple[str, ...]
    resource: str
    definition: str
    args_digest: str
    revision: str
    labels: tuple[str, ...]
    scope: tuple[Detail, ...]
    resumes: str | None = None
    input_digest: str = ""
    endorses: tuple[str, ...] = ()
    action: str = ""
    rules: tuple[str, ...] = ()
    """Those that demand it now; a record of a call does not say which these were, nor its action."""


# INVARIANT: an approval fits the call that was approved and no other (test_an_approval_is_void_where_anything_differs).
_SAME: Final = (
    "chain", "caller", "resource", "args_digest", "definition", "revision", "resumes", "input_digest",
)  # fmt: skip


def differs(asked: ApprovalRequested, call: Call) -> str:
    """In what ``call`` is not the one that ``asked`` is about."""
    said: dict[str, Any] = msgspec.structs.asdict(asked) | {"revision": asked.decision.revision}
    if name := next((name for name in _SAME if said[name] != getattr(call, name)), ""):
        return name.replace("_", " ")
    if call.action and call.action != asked.action:
        return "action"
    if not set(call.rules) <= {need.rule for need in asked.needs}:
        return "rules"
    # INVARIANT: an approval takes away no label that was not named to who gave it (test_an_approval_lowers_what_it_names_alone).
    if not set(call.labels) <= set(asked.labels) or not set(call.endorses) <= set(asked.endorses):
        return "labels"
    return "" if _within(call.scope, asked.scope) else "scope"


def _within(scope: tuple[Detail, ...], other: tuple[Detail, ...]) -> bool:
    try:
        return scope == other or Scope.of(scope) <= Scope.of(other)
    except Refusal:
        return False


def identical(requests: Iterable[Approval], call: Call, now: float) -> Approval | None:
    """The newest request for this very call that still waits, can be used, or was denied and would wait still."""
    fitting = [approval for approval in requests if _counts(approval, now) and not differs(approval.asked, call)]
    return max(fitting, key=lambda approval: approval.asked.seq, default=None)


def _counts(approval: Approval, now: float) -> bool:
    state = approval.state(now)
    # INVARIANT: who was told no does not ask again and again (test_a_denied_call_is_denied_until_the_request_would_have_expired).
    return state in ("waiting", "approved") or (state == "denied" and now < approval.asked.exp)


def void(fold: Fold, approval: Approval, revision: str) -> str:
    """Why nobody need decide on it any more, although it has not ended."""
    if fold.state != "open":
        return "its task has ended"
    if fold.is_revoked(approval.asked.hop):
        return "the grant of the hop that asked was revoked"
    if approval.asked.decision.revision != revision:
        return "the policies are others since"
    return ""


# Judging records


def bad_request(fold: Fold, record: ApprovalRequested) -> str:
    """What is wrong with a request; whether its hop is open is asked elsewhere."""
    node = fold.nodes[record.hop]
    try:
        parse_resource(record.resource)
    except Refusal as no:
        return no.body.message
    tests = {
        "id is not an id": is_hop(record.id),
        "the id was used before": record.id not in fold.requests and record.id not in fold.nodes,
        "the caller is not who holds the grant": record.caller == node.callee,
        "the user is not the txn's": record.user == fold.user,
        "the chain is not that of its hop": record.chain == fold.chain(record.hop),
        "nothing permits it": record.decision.effect == "allow" and bool(record.needs),
        "exp is later than the root's": record.exp <= fold.totals.exp,
        f"it needs between 1 and {MAX_NEEDED} people": all(1 <= need.count <= MAX_NEEDED for need in record.needs),
        f"a txn has at most {MAX_REQUESTS} requests": len(fold.requests) < MAX_REQUESTS,
    }
    return next((why for why, good in tests.items() if not good), "")


def bad_decision(fold: Fold, record: ApprovalDecided) -> str:
    """What is wrong with a decision."""
    approval = fold.requests.get(record.id)
    if approval is None:
        return f"there is no request {record.id!r}"
    asked = approval.asked
    state, deny = approval.state(seconds_of(record.at)), record.verdict == "deny"
    own = four_eyes(asked) and record.user == fold.user
    tests = {
        "hop is not the request's": record.hop == asked.hop,
        "request is not the hash of its record": record.request == asked.hash,
        f"it is {state}, not waiting": state == "waiting",
        "the hop that asked is revoked": not fold.is_revoked(asked.hop),
        "exp is later than the root's": record.exp <= fold.totals.exp,
        "a decision needs somebody who made it": bool(record.who and record.user),
        # INVARIANT: nobody counts twice (test_nobody_approves_twice).
        "the same person decided before": all(record.user != vote.user for vote in approval.votes),
        # INVARIANT: with four eyes, never the user themselves (test_nobody_approves_their_own_call_with_four_eyes).
        "the user approves their own call": deny or not own,
        "none of the roles that are missing": deny or approval.wants(record.roles),
        "settled is wrong": record.settled is approval.after(vote_of(record)).settled,
    }
    return next((why for why, good in tests.items() if not good), "")


def vote_of(record: ApprovalDecided) -> Vote:
    """What a decision says."""
    return Vote(record.verdict, record.who, record.user, record.exp, record.reason, record.roles)


def bad_use(fold: Fold, record: HopOpened | HopResumed) -> str:
    """What is wrong with the approval that a record uses."""
    name = record.approval or ""
    approval = fold.requests.get(name)
    if approval is None:
        return "there is no such approval"
    # INVARIANT: an approval is used once (test_an_approval_is_used_once).
    if (state := approval.state(seconds_of(record.at))) != "approved":
        return "the approval was used before" if state == "used" else f"the approval is {state}"
    if fold.is_revoked(approval.asked.hop):
        return "the hop that asked for the approval is revoked"
    if what := differs(approval.asked, _call_of(fold, record)):
        return f"the approval is for another {what}"
    return ""


def _call_of(fold: Fold, record: HopOpened | HopResumed) -> Call:
    if isinstance(record, HopOpened):
        resource, parent, definition, resumes, given = record.resource, record.parent, record.definition, None, ""
    else:
        node = fold.nodes[record.hop]
        resource, parent, resumes, given = node.resource, node.parent or "", record.hop, record.input_digest
        # What it was when the hop was opened stays what it is called as.
        definition = fold.requests[record.approval or ""].asked.definition
    return Call(
        caller=fold.nodes[parent].callee,
        chain=fold.chain(parent),
        resource=resource,
        definition=definition,
        args_digest=record.args_digest,
        revision=record.decision.revision,
        labels=(*record.labels, *record.lowered),
        endorses=record.lowered,
        scope=record.scope,
        resumes=resumes,
        input_digest=given,
    )
