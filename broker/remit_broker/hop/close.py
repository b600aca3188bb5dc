"""Stage 12. Outcome, actual cost, the rest returned. It runs for every hop that was opened, whatever failed before."""

from __future__ import annotations

from typing import Any

from remit_broker.core.fitting import fitting
from remit_broker.core.fold import Fold, settle
from remit_broker.core.times import seconds_of
from remit_broker.core.tree import WHOLE_HOLD
from remit_broker.hop.head import head
from remit_broker.hop.hop import Hop
from remit_broker.hop.label import labels_back, lowered
from remit_broker.hop.open import own_hold
from remit_broker.ledger_port import LostRace, Turn
from remit_broker.ports import Ports
from remit_schemas.budget import ONE_CALL, ZERO, Budget
from remit_schemas.envelope import Error, Result
from remit_schemas.errors import Code, Effect, ErrorBody
from remit_schemas.records import HopClosed, Outcome, seal


async def close(hop: Hop, ports: Ports, body: ErrorBody | None) -> HopClosed | None:
    """As :func:`_close`, with what the hop itself has cost settled in the accounts, whoever closed it.

    INVARIANT: a hop is counted in the accounts once, at its own cost without its descendants'
    (test_a_tree_is_counted_once_whatever_its_depth).
    """
    spent = reserved(hop)
    try:
        record = await _close(hop, ports, body)
        if record is not None:
            spent = own_cost(hop, record.outcome, record.cost)
        return record
    finally:
        ports.accounts.settle(hop.reserved, spent)


def reserved(hop: Hop) -> Budget:
    """What is counted where nobody knows the cost: at least all that was reserved, and what the callee reported."""
    return own_hold(hop) if hop.request.detach else own_hold(hop).join(ONE_CALL + reported(hop))


def own_cost(hop: Hop, outcome: Outcome, cost: Budget) -> Budget:
    """What is counted for the hop itself. Of a detached one its call: what its task does is counted as it is done."""
    return reserved(hop) if hop.request.detach or outcome in WHOLE_HOLD else ONE_CALL + cost


async def _close(hop: Hop, ports: Ports, body: ErrorBody | None) -> HopClosed | None:
    """The durable ``hop.closed``; ``body`` is why it failed, where it did. None where the hop had been closed already.

    INVARIANT: descendants close first, so that nothing is ever appended under a closed hop
    (test_a_parent_that_ends_ends_its_children_first).
    """
    record = hop.intent
    async with ports.ledger.turn(record.tenant, record.txn) as turn:
        while turn.fold.is_open(hop.id):
            below = turn.fold.descendants_open(hop.id)
            if below:
                await abandon(below[0], ports, turn, ("an ancestor ended", "cancelled"))
                continue
            closing = outcome(hop, ports, turn.fold, body)
            if not isinstance(await turn.append(closing, None), LostRace):
                return closing
    return None


def outcome(hop: Hop, ports: Ports, fold: Fold, body: ErrorBody | None) -> HopClosed:
    """How the hop ended and what it is charged."""
    kind, effect = _ending(hop, body)
    cost = ZERO if body is not None and body.effect == "none" else reported(hop)
    settled = settle(fold, hop.id, cost, kind)
    seen = hop.result
    # Only what was inspected: a callee's own words go into no record with what was found in them (test_no_secret_leaves_in_an_error).
    inner = seen.frame.error if body is None and seen is not None and isinstance(seen.frame, Error) else body
    record = fitting(
        HopClosed(
            **head(fold, hop.id, ports),
            outcome=kind,
            cost=cost,
            spent=settled.spent,
            overrun=settled.overrun,
            effect=effect,
            ms=_took(hop, ports),
            code=inner.code if inner else None,
            rule=inner.rule[:256] if inner else "",
            reason=inner.message[:1024] if inner else "",
            unmetered=_unmetered(hop, kind, effect),
            result_digest=seen.digest if seen else "",
            result_size=seen.size if seen else 0,
            decision=seen.decision if seen else None,
            findings=seen.findings if seen else (),
            redacted=seen.redacted if seen else (),
            released_digest=seen.released if seen else "",
            labels=labels_back(hop, fold.nodes[hop.id]),
            lowered=tuple(sorted(lowered(hop, fold.nodes[hop.id]))),
            detached=_task(hop),
        )
    )
    return seal(record)


def _task(hop: Hop) -> str:
    """The task that a detached call became, where it did."""
    return str(hop.final.value["txn"]) if hop.request.detach and isinstance(hop.final, Result) else ""


def _took(hop: Hop, ports: Ports) -> int:
    """Milliseconds from the request to now; of a hop that was parked from its opening, waiting included."""
    if hop.parked is None:
        return max(0, round((ports.clock.monotonic() - hop.ask.mono) * 1000))
    return max(0, round((ports.clock.now() - seconds_of(hop.parked.at)) * 1000))


def _ending(hop: Hop, body: ErrorBody | None) -> tuple[Outcome, Effect]:
    if body is not None:
        if body.code in (Code.RESULT_DENIED, Code.RESULT_INVALID):
            return "refused", body.effect
        if body.code is Code.DEADLINE_EXCEEDED and body.effect == "unknown":
            # Nobody knows what it did in time, as for an orphan: all that it held is charged.
            return "unknown", body.effect
        return "cancelled" if body.code is Code.CANCELLED else "error", body.effect
    if isinstance(hop.final, Error):
        return "error", hop.final.error.effect
    return ("failed" if isinstance(hop.final, Result) and hop.final.failed else "ok"), "happened"


def reported(hop: Hop) -> Budget:
    """What the callee reports; where it reports nothing, its price, which is never less than its own call.

    INVARIANT: what was moved to a detached task is gone from the one it came from (test_what_is_detached_is_charged_in_full).
    """
    if hop.request.detach:
        return hop.intent.budget.minus(ONE_CALL)
    said = hop.final.cost if hop.final is not None else None
    if said is not None:
        return said
    price = hop.aim.price
    return Budget(price.usd_micros, price.tokens, max(price.calls - 1, 0))


def _unmetered(hop: Hop, outcome: Outcome, effect: Effect) -> bool:
    """Whether an agent worked and did not say what that cost, so that its price stands in for it.

    INVARIANT: what nobody measured is not shown as if somebody had (test_an_agent_that_reports_no_cost_is_unmetered).
    """
    said = hop.final.cost if hop.final is not None else None
    worked = effect != "none" and not hop.request.detach
    # After the other outcomes all that it held is charged anyway, and the outcome says why.
    return hop.aim.kind == "agent" and said is None and worked and outcome not in WHOLE_HOLD


def abandoned(fold: Fold, hop: str, ports: Ports, reason: str, outcome: Outcome = "cancelled") -> HopClosed:
    """The closing of a hop nobody waits for any more: charged at all that it held, since nobody knows what it did."""
    code = Code.CANCELLED if outcome == "cancelled" else Code.DEADLINE_EXCEEDED
    return unreported(fold, hop, ports, outcome, effect="unknown", code=code, rule="close.abandoned", reason=reason)


def unreported(fold: Fold, hop: str, ports: Ports, outcome: Outcome, **said: Any) -> HopClosed:
    """The sealed closing of a hop of which nobody reports what it used itself. ``said`` is what its end is called."""
    node, now = fold.nodes[hop], ports.clock.now()
    settled = settle(fold, hop, ZERO, outcome)
    return seal(
        HopClosed(
            **head(fold, hop, ports, now),
            outcome=outcome,
            cost=ZERO,
            spent=settled.spent,
            overrun=settled.overrun,
            ms=max(0, round((now - seconds_of(node.at)) * 1000)),
            # What it had said before its end was passed on.
            labels=tuple(sorted(node.labels)),
            **said,
        )
    )


async def sweep(hop: str, ports: Ports, turn: Turn, reason: str, outcome: Outcome = "unknown") -> None:
    """Close ``hop`` and everything below it that has not ended, on behalf of whoever cannot any more."""
    while turn.fold.stands(hop):
        below = turn.fold.descendants_open(hop)
        await abandon(below[0] if below else hop, ports, turn, (reason, outcome))


async def abandon(hop: str, ports: Ports, turn: Turn, why: tuple[str, Outcome]) -> None:
    """One closing; where another append came first, the caller looks again."""
    fold, node = turn.fold, turn.fold.nodes[hop]
    record = abandoned(fold, hop, ports, *why)
    if isinstance(await turn.append(record, None), LostRace):
        return
    ports.observer.swept(node, record, fold)
    if node.state == "parked" and node.connection:
        # Whoever waits for the input there need not wait any longer.
        await ports.bus.cancel(node.callee, node.connection, fold.txn, hop)
    # INVARIANT: whoever runs it hears of it, wherever it runs (test_what_an_ancestor_ends_is_told_to_a_callee_at_another_replica).
    await ports.bus.ended(fold.tenant, fold.txn, hop)
