"""Asking people: a call that policy permits only with an approval leaves a request in its txn, and is refused."""

from __future__ import annotations

import asyncio

import msgspec

from remit_broker.core.approvals import MAX_ASKED, MAX_REQUESTS, Approval, identical
from remit_broker.core.fold import Fold
from remit_broker.core.times import rfc3339
from remit_broker.core.tree import open_path
from remit_broker.hop.approve import action_of, call_of, stands
from remit_broker.hop.head import head
from remit_broker.hop.hop import Hop
from remit_broker.ledger_port import LostRace, Turn
from remit_broker.ports import Ports
from remit_schemas.canonical import canonical_document
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.records import MAX_RECORD, ApprovalRequested, Need, seal


async def request(hop: Hop, ports: Ports) -> BaseException:
    """Why the call is refused: APPROVAL_REQUIRED with the id of the request, which was made now or waits already."""
    try:
        return await _request(hop, ports)
    except (Exception, asyncio.CancelledError) as error:
        return error


async def _request(hop: Hop, ports: Ports) -> Refusal:
    at = (hop.ask.tenant, hop.ask.txn, hop.id)
    fold = await ports.ledger.newest(*at[:2])
    if (found := _waiting(hop, ports, fold)) is not None:
        return _required(hop, ports, found)
    # Before the record, since nobody can decide on what cannot be shown.
    if not await ports.arguments.put(at, shown(hop)):
        raise refusal(
            Code.LEDGER_UNAVAILABLE, "the arguments could not be kept for whoever is to approve them", rule="approve.keep",
            ask="call again shortly", retry_after=1.0,
        )  # fmt: skip
    ports.failpoints.hit("asking")
    turn: Turn | None = None
    try:
        async with ports.ledger.turn(hop.ask.tenant, hop.ask.txn) as turn:
            found = await _append(hop, ports, turn)
    except BaseException:
        # INVARIANT: what a request that may be stored asks for can be shown
        # (test_a_request_whose_append_had_no_answer_can_be_approved).
        if turn is None or not turn.unclear:
            await ports.arguments.forget(at)
        raise
    if found.id != hop.id:
        await ports.arguments.forget(at)
    ports.failpoints.hit("asked")
    return _required(hop, ports, found)


def shown(hop: Hop) -> bytes:
    """What the approver sees, which is what will be sent: the arguments, after redaction; with an input that is to be given, both."""
    return canonical_document({"args": hop.args} if hop.parked is None else {"args": hop.args, "input": hop.input})


async def _append(hop: Hop, ports: Ports, turn: Turn) -> Approval:
    while True:
        fold = turn.fold
        # INVARIANT: who repeats an identical call is attached to the request that waits, and no record is written
        # (test_an_identical_call_is_attached_to_the_request_that_waits).
        if (found := _waiting(hop, ports, fold)) is not None:
            return found
        open_path(fold, hop.held.jti.hop)
        _bounded(hop, fold)
        record = _record(hop, ports, fold)
        done = await turn.append(record, None)
        if not isinstance(done, LostRace):
            return done.requests[record.id]


def _waiting(hop: Hop, ports: Ports, fold: Fold) -> Approval | None:
    call = call_of(hop.with_(fold=fold), ports)
    return identical((one for one in fold.requests.values() if stands(one, ports)), call, ports.clock.now())


def _bounded(hop: Hop, fold: Fold) -> None:
    """Refuses TOO_LARGE, or BUDGET_EXCEEDED for what could not be opened anyhow."""
    mine = sum(approval.asked.hop == hop.held.jti.hop for approval in fold.requests.values())
    # INVARIANT: calls that were refused grow no txn without end (test_a_flood_of_requests_grows_no_txn_without_end).
    if mine >= MAX_ASKED or len(fold.requests) >= MAX_REQUESTS:
        raise refusal(
            Code.TOO_LARGE,
            f"{mine} approvals were asked for by this hop and {len(fold.requests)} in this task; at most {MAX_ASKED} and "
            f"{MAX_REQUESTS} can be",
            rule="approve.requests", ask="ask for fewer different calls; carry on in a new task",
        )  # fmt: skip
    left = fold.nodes[hop.held.jti.hop].left
    if not hop.given.budget.within(left):
        raise refusal(
            Code.BUDGET_EXCEEDED, f"this call needs {hop.given.budget}, left are {left}, so nobody is asked to approve it",
            rule="open.budget", ask="ask for less, or ask the user for a larger budget",
        )  # fmt: skip


def _record(hop: Hop, ports: Ports, fold: Fold) -> ApprovalRequested:
    now, verdict = ports.clock.now(), hop.judged
    record = seal(
        ApprovalRequested(
            **head(fold, hop.held.jti.hop, ports, now),
            id=hop.id,
            caller=hop.ask.caller,
            user=fold.user,
            chain=fold.chain(hop.held.jti.hop),
            action=action_of(hop),
            resource=str(hop.resource),
            definition=hop.aim.definition,
            args_digest=hop.args_digest,
            args_size=hop.args_size,
            decision=verdict.decision,
            needs=needs(hop, ports),
            exp=min(int(now + _ttl(hop, ports)), fold.totals.exp),
            scope=hop.given.scope.details,
            reason=verdict.reason[:1024],
            findings=hop.findings,
            redacted=hop.redacted,
            labels=hop.labels,
            resumes=None if hop.parked is None else hop.parked.hop,
            input_digest=hop.input_digest,
            endorses=verdict.endorse,
        )
    )
    if len(msgspec.json.encode(record)) > MAX_RECORD:
        raise refusal(
            Code.TOO_LARGE, "the request for an approval of this call would be too large", rule="approve.record",
            ask="ask for fewer scopes or shorter constraints",
        )  # fmt: skip
    return record


def needs(hop: Hop, ports: Ports) -> tuple[Need, ...]:
    """What each policy that demands an approval wants."""
    return tuple(
        Need(one.policy, one.text[:512], one.count, one.role, one.four_eyes or ports.limits.four_eyes)
        for one in hop.judged.approvals
    )


def _ttl(hop: Hop, ports: Ports) -> float:
    """Seconds that a request waits: as policy says, and never longer than the arguments are kept."""
    return min([ports.limits.approval_ttl, *(one.ttl for one in hop.judged.approvals if one.ttl)])


def _required(hop: Hop, ports: Ports, approval: Approval) -> Refusal:
    asked = approval.asked
    return refusal(
        Code.APPROVAL_REQUIRED,
        f"{asked.resource} needs a person's approval: {asked.reason}",
        rule=", ".join(need.rule for need in asked.needs),
        ask=f"have it approved until {rfc3339(asked.exp)}, then repeat the identical call: remit approvals approve {approval.id}",
        approval=approval.id,
        approval_url=ports.limits.approval_at(asked.tenant, approval.id),
    )
