"""Work that leaves its task: what was held for the call becomes a task of its own, for the same user, held by the caller."""

from __future__ import annotations

import msgspec

from remit_broker.hop.hop import Hop
from remit_broker.hop.narrow import exactly
from remit_broker.hop.revoked import nothing_stops
from remit_broker.hop.txn import MAX_TTL, Delegation, open_txn
from remit_broker.ports import Ports
from remit_schemas.budget import ONE_CALL
from remit_schemas.envelope import Accepted, Result
from remit_schemas.errors import Refusal
from remit_schemas.scope import Scope


async def detach(hop: Hop, ports: Ports) -> Hop:
    """The hop with the root grant of the new task as its result.

    A refusal of the ledger has the effect ``unknown``: the task may exist, though nobody holds its grant.
    """
    # INVARIANT: no task begins for what was revoked after the opening (test_nothing_is_detached_for_what_is_revoked).
    nothing_stops(hop, ports)
    await ports.bus.answer(hop.ask.reply, Accepted(txn=hop.intent.txn, hop=hop.id, replica=ports.bus.replica))
    try:
        opened = await open_txn(task_of(hop, ports), ports)
    except Refusal as no:
        if not no.body.rule.startswith("ledger."):
            raise
        body = msgspec.structs.replace(no.body, effect="unknown", retryable=False)
        raise Refusal(body, no.cause) from None
    ports.failpoints.hit("detach")
    return hop.with_(final=Result(value={"txn": opened.txn, "grant": opened.grant, "exp": opened.exp}))


def task_of(hop: Hop, ports: Ports) -> Delegation:
    """What is moved: the hold less the call it costs, the call itself and what its callee may be given, the depth that is left.

    INVARIANT: nothing is gained by detaching but time (test_a_detached_task_has_what_was_moved_and_no_more).
    """
    held, child = hop.held, hop.given
    wished = hop.request.want.ttl_ms
    seconds = ports.limits.hop_ttl if wished is None else wished / 1000
    if (cap := hop.judged.cap) is not None and cap.seconds is not None:
        seconds = min(seconds, cap.seconds)
    call = held.scope & exactly(hop.resource)
    return Delegation(
        tenant=hop.ask.tenant,
        user=held.claims.sub,
        agent=hop.ask.caller,
        scope=Scope.of((*call.details, *child.scope.details)),
        budget=child.budget.minus(ONE_CALL),
        ttl=max(1, min(int(seconds), MAX_TTL)),
        auth=f"detached:{hop.intent.txn}.{hop.id}",
        # A root has depth 0, its holder had that of the caller's own hop.
        max_depth=child.max_depth - hop.above.depth,
        labels=held.claims.labels,
        carried=hop.labels,
        continues=f"{hop.intent.txn}.{hop.id}",
        # INVARIANT: who stood above the caller stands above it still: for policy, for revocations and where a call would be a cycle
        # (test_whoever_stood_above_an_agent_stands_above_what_it_detached).
        before=hop.chain[:0:-1],
        # INVARIANT: a task that leaves its task is still the same user's, with the same roles (test_a_detached_task_keeps_roles).
        roles=hop.past.roles,
        groups=hop.past.groups,
        issuer=hop.past.issuer,
        client=hop.past.client,
        token=hop.past.token,
    )
