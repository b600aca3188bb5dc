"""The other end of a stretch of work: the callee needs an input. The hop keeps what it was charged and nothing else."""

from __future__ import annotations

from remit_broker.core.fitting import fitting
from remit_broker.core.fold import Fold, settle
from remit_broker.hop.close import abandon, own_cost, reported, reserved, sweep
from remit_broker.hop.head import head
from remit_broker.hop.hop import Hop
from remit_broker.hop.label import labels_back
from remit_broker.ledger_port import LostRace
from remit_broker.ports import Ports
from remit_schemas.budget import ZERO
from remit_schemas.errors import ErrorBody
from remit_schemas.records import HopParked, seal


async def park(hop: Hop, ports: Ports, unheard: ErrorBody | None) -> HopParked | None:
    """The durable ``hop.parked``, with what the hop itself has cost settled in the accounts. None where it had been closed.

    ``unheard`` is why nobody heard the input of a hop that was to go on: it waits for another attempt.
    """
    spent = reserved(hop)
    try:
        record = await _park(hop, ports, unheard)
        if record is not None:
            spent = own_cost(hop, "ok", record.cost)
        return record
    finally:
        ports.accounts.settle(hop.reserved, spent)


async def _park(hop: Hop, ports: Ports, unheard: ErrorBody | None) -> HopParked | None:
    """INVARIANT: what runs below ends first, so that nothing works while nobody answers for it; what waits below goes on
    waiting, so that a question can be handed up (test_what_runs_below_a_parked_hop_is_closed).
    """
    record = hop.intent
    async with ports.ledger.turn(record.tenant, record.txn) as turn:
        while turn.fold.is_open(hop.id):
            below = turn.fold.running_below(hop.id)
            if below:
                await abandon(below[0], ports, turn, ("its caller waits for an input", "cancelled"))
                continue
            parking = parked(hop, ports, turn.fold, unheard)
            if not isinstance(await turn.append(parking, None), LostRace):
                return parking
    return None


def parked(hop: Hop, ports: Ports, fold: Fold, unheard: ErrorBody | None) -> HopParked:
    """The sealed record that follows ``fold``."""
    cost = ZERO if unheard is not None else reported(hop)
    settled = settle(fold, hop.id, cost, "ok")
    seen = hop.result if unheard is None else None
    before = hop.parked.connection if hop.parked is not None else ""
    record = fitting(
        HopParked(
            **head(fold, hop.id, ports),
            cost=cost,
            spent=settled.spent,
            overrun=settled.overrun,
            request_digest=seen.digest if seen else "",
            request_size=seen.size if seen else 0,
            connection=hop.connection if unheard is None else before,
            reason="it asks for an input" if unheard is None else f"nobody heard the input: {unheard.message}"[:1024],
            decision=seen.decision if seen else None,
            findings=seen.findings if seen else (),
            redacted=seen.redacted if seen else (),
            released_digest=seen.released if seen else "",
            labels=labels_back(hop, fold.nodes[hop.id]) if unheard is None else (),
        )
    )
    return seal(record)


async def unwanted(caller: str, tenant: str, txn: str, hop: str, ports: Ports) -> None:
    """Close a parked hop whose caller does not want it any more.

    INVARIANT: nobody else's word counts (test_a_parked_hop_is_cancelled_by_its_caller_alone).
    """
    await ports.ledger.newest(tenant, txn)  # another replica may have parked or resumed it
    async with ports.ledger.turn(tenant, txn) as turn:
        node = turn.fold.nodes.get(hop)
        if node is not None and node.state == "parked" and node.caller == caller:
            await sweep(hop, ports, turn, "its caller does not want it any more", "cancelled")
