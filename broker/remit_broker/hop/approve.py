"""Stage 8. If policy demands an approval: is there one for exactly these bytes, this chain and this policy version?"""

from __future__ import annotations

from typing import NoReturn

from remit_broker.core.approvals import Approval, Call, bad_use, differs, identical
from remit_broker.core.fold import Fold
from remit_broker.core.times import rfc3339
from remit_broker.hop.endorse import vouched
from remit_broker.hop.hop import Hop
from remit_broker.ports import Ports
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.records import HopOpened, HopResumed


class Demanded(Exception):  # noqa: N818 - an answer, not a fault
    """People have to be asked before this call goes on: the pipeline does so, and refuses it."""


async def approve(hop: Hop, ports: Ports) -> Hop:
    """The hop with the approval that it will use up; nothing to do where none is demanded. A human is never waited for here.

    Refuses APPROVAL_INVALID where the approval that the caller names, or a denial, does not let this call go on. Raises
    :class:`Demanded` where nobody has decided yet.
    """
    # Decided again after a lost race, it is not the approval of the decision before that counts.
    hop = hop.with_(approval=None) if hop.approval is not None else hop
    named, demanded = hop.request.approval, hop.judged.approve
    if named is None and not demanded:
        return hop
    if _made_before(hop, ports):
        return hop
    call = call_of(hop, ports)
    found = _look(hop.past, named, call, ports)
    if found is None or found.state(ports.clock.now()) == "waiting":
        # INVARIANT: what was decided at another replica a moment ago counts here
        # (test_a_replica_that_is_behind_finds_the_decision).
        found = _look(await ports.ledger.newest(hop.ask.tenant, hop.ask.txn), named, call, ports)
    if found is None and named is not None:
        raise _invalid(
            "unknown", "no approval of that id was asked for in this task", "send the call without an approval"
        )
    if not demanded:
        return hop  # policy permits it by now; what was approved stays unused
    if found is None:
        raise Demanded
    state = found.state(ports.clock.now())
    if what := differs(found.asked, call):
        raise _invalid(
            "other", f"approval {found.id} is for another call: {_OTHER.get(what, f'its {what} differs')}",
            "make the call as it was approved, or without an approval: people are asked anew",
        )  # fmt: skip
    if state == "waiting":
        raise Demanded
    if state == "approved" and stands(found, ports):
        return vouched(hop.with_(approval=found.id))
    _ended(found, "revoked" if state == "approved" else state)


_OTHER = {
    "args digest": "the arguments are not the same",
    "input digest": "the input is not the same",
    "chain": "it came along another chain",
    "revision": "the policies have changed since",
    "definition": "the target's definition has changed since",
    "labels": "the chain carries more labels than were shown",
}


def stands(approval: Approval, ports: Ports) -> bool:
    """Whether nobody who approved it was revoked since.

    INVARIANT: the word of somebody who was revoked counts for nothing (test_an_approval_of_somebody_who_was_revoked_is_void).
    """
    return not any(ports.revocations.check((), vote.user) for vote in approval.approvers)


def call_of(hop: Hop, ports: Ports) -> Call:
    """What an approval of this hop is bound to."""
    fold, parent = hop.past, hop.held.jti.hop
    return Call(
        caller=hop.ask.caller,
        chain=fold.chain(parent),
        resource=str(hop.resource),
        definition=hop.aim.definition,
        args_digest=hop.args_digest,
        revision=hop.judged.decision.revision,
        labels=hop.labels,
        scope=hop.given.scope.details,
        resumes=None if hop.parked is None else hop.parked.hop,
        input_digest=hop.input_digest,
        endorses=hop.judged.endorse,
        action=action_of(hop),
        rules=hop.judged.approve,
    )


def action_of(hop: Hop) -> str:
    """What is to be done, as policy calls it."""
    if hop.request.detach:
        return "detach"
    return "call" if hop.aim.kind == "mcp" else "delegate"


def still_approved(fold: Fold, record: HopOpened | HopResumed) -> None:
    """Refuses APPROVAL_INVALID where the approval that ``record`` would use up is of no use any more."""
    if record.approval is not None and (why := bad_use(fold, record)):
        raise _invalid("late", f"approval {record.approval} cannot be used: {why}", "make the call again")


def _look(fold: Fold, named: str | None, call: Call, ports: Ports) -> Approval | None:
    if named is not None:
        return fold.requests.get(named)
    return identical((one for one in fold.requests.values() if stands(one, ports)), call, ports.clock.now())


def _made_before(hop: Hop, ports: Ports) -> bool:
    """Whether the call's key was used: then opening it says so, and nobody is asked again."""
    from remit_broker.hop.open import idempotency  # opening needs this module

    if hop.request.key is None or hop.parked is not None:
        return False
    return idempotency(hop, ports) in hop.past.idem


def _ended(approval: Approval, state: str) -> NoReturn:
    asked, denial = approval.asked, approval.denial
    if denial is not None:
        why = f": {denial.reason}" if denial.reason else ""
        raise _invalid(
            "denied", f"{denial.who} denied {asked.resource}{why}", "do without it; ask them what would be right"
        )
    if state == "used":
        raise _invalid("used", f"approval {approval.id} was used, by hop {approval.used_by}", "ask for another one")
    if state == "revoked":
        raise _invalid("revoked", f"who gave approval {approval.id} was revoked since", "ask for another one")
    at = rfc3339(approval.exp)
    raise _invalid("expired", f"approval {approval.id} expired at {at}", "call without it: people are asked anew")


def _invalid(rule: str, message: str, ask: str) -> Refusal:
    return refusal(Code.APPROVAL_INVALID, message, rule=f"approve.{rule}", ask=ask)
