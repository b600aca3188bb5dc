"""Stage 9. Hold the budget and write down the intent: one append. What it refuses has not happened and will not."""

from __future__ import annotations

from typing import Final

import msgspec

from remit_broker.core.caps import Whose
from remit_broker.core.fold import Fold
from remit_broker.core.history import opening
from remit_broker.hop.approve import still_approved
from remit_broker.hop.head import head
from remit_broker.hop.hop import Hop
from remit_broker.hop.resume import resumption, same_call
from remit_broker.ledger_port import LostRace, Turn
from remit_broker.ports import Ports
from remit_schemas.budget import ONE_CALL, ZERO, Budget
from remit_schemas.canonical import canonical
from remit_schemas.errors import Code, refusal
from remit_schemas.grant import Actor, Claims
from remit_schemas.names import Jti
from remit_schemas.records import MAX_RECORD, HopOpened, HopResumed, seal

MAX_RECORDS: Final = 2000
"""Records of one txn at which nothing new is opened in it; what is open goes on and can be closed. Renewals are not counted, of which
time allows few, nor what is asked and said about approvals, of which few are allowed.
"""


async def open_(hop: Hop, ports: Ports, turn: Turn) -> Hop | LostRace:
    """The hop with its ``hop.opened`` (or ``hop.resumed``) durable and its child grant signed, or what the fold became meanwhile.

    The grant names the record's hash and is signed before the append, but nobody gets it before the ack.
    """
    fold, began = turn.fold, ports.clock.monotonic()
    # A grant says its times in whole seconds: in the last one of a hop there is none that it could be given.
    if ports.clock.monotonic() >= hop.mono_deadline or int(ports.clock.now()) >= hop.given.exp:
        raise refusal(
            Code.DEADLINE_EXCEEDED, "the deadline passed before the call could be opened", rule="open.deadline",
            ask="allow more time; many calls of this task are waiting for their turn",
        )  # fmt: skip
    if hop.parked is None:
        _not_repeated(hop, ports, fold)
    else:
        same_call(hop)
    _has_room(fold)
    # INVARIANT: held + spent never exceeds the limit at any node
    # (test_replicas_that_race_never_spend_more_than_the_root).
    left = fold.nodes[hop.held.jti.hop].left
    if not hop.given.budget.within(left):
        raise refusal(
            Code.BUDGET_EXCEEDED, f"this call needs {hop.given.budget}, left are {left}", rule="open.budget",
            ask="ask for less, wait until a running call returns its rest, or ask the user for a larger budget",
        )  # fmt: skip
    record = intent(hop, ports, fold) if hop.parked is None else resumption(hop, hop.parked, ports, fold)
    _fits(record)
    still_approved(fold, record)
    token = ports.mint.mint(child_claims(hop, ports, record))
    # INVARIANT: what a call may cost by itself is reserved in every account before it is opened
    # (test_a_used_up_cap_refuses_the_next_call_and_nothing_opens).
    reserved = await ports.accounts.reserve(whose(hop), own_hold(hop))
    try:
        _not_too_often(hop, ports)
        appended = await turn.append(record, token)
    except BaseException:
        # INVARIANT: nothing is dispatched, but where the record is stored all the same the scan will charge all that it holds
        # (test_a_call_whose_record_may_be_stored_counts_in_full).
        ports.accounts.settle(reserved, own_hold(hop) if turn.unclear else ZERO)
        raise
    if isinstance(appended, LostRace):
        ports.accounts.settle(reserved, ZERO)
        return appended
    return hop.with_(id=record.hop, opened=record, token=token, fold=appended, reserved=reserved, began=began)


def whose(hop: Hop) -> Whose:
    """Who this hop's own cost is counted for: a tool call for the agent that makes it, an agent's work for that agent."""
    claims, tool = hop.held.claims, hop.aim.kind == "mcp"
    agent = hop.ask.caller if tool else hop.aim.callee
    return Whose(hop.ask.tenant, claims.sub, agent, str(hop.resource) if tool else "")


def own_hold(hop: Hop) -> Budget:
    """What is reserved for the hop itself: all that a tool is given, but of an agent's hold, which is its descendants' too,
    only the price of its own work. Descendants reserve for themselves, and so does what is done in a detached task.
    """
    if hop.request.detach:
        return ONE_CALL
    return hop.given.budget if hop.aim.kind == "mcp" else hop.aim.price.join(ONE_CALL)


def _has_room(fold: Fold) -> None:
    # INVARIANT: a txn does not grow without end (test_a_task_with_too_many_records_opens_nothing_new_and_closes_what_is_open).
    # INVARIANT: calls that were refused for want of an approval take no room (test_requests_for_approvals_take_no_room_of_the_task).
    count = fold.seq + 1 - fold.renewals - len(fold.requests) - fold.decisions
    if count >= MAX_RECORDS:
        raise refusal(
            Code.TOO_LARGE, f"this task has {count} records, at most {MAX_RECORDS} are kept of one", rule="open.records",
            ask="carry on in a new task, opened for the same user",
        )  # fmt: skip


def _not_too_often(hop: Hop, ports: Ports) -> None:
    """Asked last, and once for a call, however often another append comes first: only calls that would be opened use up a target's
    rate (test_lost_races_use_up_no_rate_of_a_target). A detached one is not called yet.
    """
    if not hop.request.detach and not hop.rated and (wait := ports.target_rates.admit(str(hop.resource))):
        raise refusal(
            Code.RATE_LIMITED, f"{hop.aim.callee} is called too often", rule="open.target-rate",
            ask=f"wait {wait:.3f} s before the next call", retry_after=round(wait, 3),
        )  # fmt: skip


def idempotency(hop: Hop, ports: Ports) -> str | None:
    """The keyed digest of (parent hop, caller, resource, key): the arguments are compared apart, so that a reuse is seen."""
    key = hop.request.key
    return None if key is None else idempotency_of(hop, ports, str(hop.resource), key)


def idempotency_of(hop: Hop, ports: Ports, resource: str, key: str) -> str:
    """As :func:`idempotency`, for any call under the grant that ``hop`` was asked for with."""
    named = canonical(["idem", hop.held.jti.hop, hop.ask.caller, resource, key])
    return ports.digester.mark(hop.ask.txn, named)


def _not_repeated(hop: Hop, ports: Ports, fold: Fold) -> None:
    idem = idempotency(hop, ports)
    earlier = fold.idem.get(idem) if idem else None
    if earlier is None:
        return
    node = fold.nodes[earlier]
    if node.args_digest != hop.args_digest:
        raise refusal(
            Code.CONFLICT, f"the key was used for other arguments, in hop {earlier}", rule="open.idempotency",
            ask="use a new key for a new call",
        )  # fmt: skip
    state = f"ended {node.outcome}" if node.outcome else "is still running"
    raise refusal(
        Code.DUPLICATE, f"this call was made before: hop {earlier} {state}", rule="open.idempotency",
        ask=f"look at it with remit chain {hop.ask.txn}; use a new key to call again",
        effect="unknown" if node.outcome != "ok" else "happened",
    )  # fmt: skip


def intent(hop: Hop, ports: Ports, fold: Fold) -> HopOpened:
    """The sealed record that follows ``fold``."""
    trace, child, verdict = hop.request.trace, hop.given, hop.judged
    if hop.epochs is None:
        raise RuntimeError("a stage ran before the one that feeds it")
    return seal(
        HopOpened(
            **head(fold, hop.id, ports),
            parent=hop.held.jti.hop,
            caller=hop.ask.caller,
            resource=str(hop.resource),
            depth=child.depth,
            jti=str(Jti(hop.ask.txn, hop.id, 1)),
            scope=child.scope.details,
            budget=child.budget,
            exp=child.exp,
            deadline=hop.deadline,
            max_depth=child.max_depth,
            args_digest=hop.args_digest,
            args_size=hop.args_size,
            definition=hop.aim.definition,
            decision=verdict.decision,
            epochs=hop.epochs,
            findings=hop.findings,
            redacted=hop.redacted,
            labels=hop.labels,
            brings=hop.brings,
            lowered=hop.lowered,
            endorser=hop.endorser,
            lowers=hop.lowers,
            idem=idempotency(hop, ports),
            approval=hop.approval,
            link=trace.traceparent if trace else None,
            facts=opening(hop.facts, child.depth),
        )
    )


def _fits(record: HopOpened | HopResumed) -> None:
    if len(msgspec.json.encode(record)) > MAX_RECORD:
        raise refusal(
            Code.TOO_LARGE, "the record of this call would be too large", rule="open.record",
            ask="ask for fewer scopes or shorter constraints",
        )  # fmt: skip


def child_claims(hop: Hop, ports: Ports, record: HopOpened | HopResumed) -> Claims:
    """The claims of the grant for exactly this callee and this hop."""
    held, child = hop.held.claims, hop.given
    return Claims(
        iss=ports.mint.issuer,
        sub=held.sub,
        tenant=held.tenant,
        aud=hop.aim.callee,
        iat=int(ports.clock.now()),
        exp=child.exp,
        jti=record.jti,
        txn=held.txn,
        act=Actor(sub=held.aud, act=held.act),
        depth=child.depth,
        max_depth=child.max_depth,
        par=hop.held.digest,
        rec=record.hash,
        authorization_details=child.scope.details,
        budget=child.budget,
        labels=child.labels,
    )
