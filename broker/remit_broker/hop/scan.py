"""What time does to a ledger: hops past their deadline are closed as unknown, txns past their root grant or idle are closed."""

from __future__ import annotations

from collections.abc import Iterable

from remit_broker.hop.close import sweep
from remit_broker.hop.txn import close_txn, end
from remit_broker.ports import Ports


async def close_orphans(overdue: Iterable[tuple[str, str, str]], ports: Ports) -> int:
    """Close each ``(tenant, txn, hop)`` that nobody closed, charged at what it held. How many were found open still.

    The index that found them may be behind, so the ledger is asked again within the turn.
    """
    closed = 0
    for tenant, txn, hop in overdue:
        try:
            await ports.ledger.newest(tenant, txn)  # another replica may have opened it
            async with ports.ledger.turn(tenant, txn) as turn:
                # INVARIANT: what was parked meanwhile is not late, nor is what was resumed with a new deadline
                # (test_the_scan_leaves_alone_what_is_parked_or_was_resumed).
                if turn.fold.is_open(hop) and turn.fold.nodes[hop].deadline <= ports.clock.now() * 1000:
                    await sweep(hop, ports, turn, "nobody closed it before its deadline")
                    closed += 1
        except Exception as error:
            # INVARIANT: one txn that cannot be closed keeps no other from it
            # (test_a_txn_that_cannot_be_closed_keeps_no_other_from_being_closed).
            ports.observer.fault("scan", error)
    return closed


async def close_abandoned(silent: Iterable[tuple[str, str, str]], grace: float, ports: Ports) -> int:
    """Close each ``(tenant, txn, hop)`` whose replica is silent, once its newest grant expired ``grace`` seconds ago. How many.

    INVARIANT: silence alone closes nothing: until its grant has expired, a replica that is only frozen could still have the work
    done (test_a_hop_of_a_silent_replica_is_closed_only_after_its_grant).
    """
    closed = 0
    for tenant, txn, hop in silent:
        try:
            fold = await ports.ledger.newest(tenant, txn)
            if not fold.is_open(hop) or fold.nodes[hop].handed_on or fold.nodes[hop].exp + grace > ports.clock.now():
                continue
            async with ports.ledger.turn(tenant, txn) as turn:
                if turn.fold.is_open(hop) and turn.fold.nodes[hop].exp + grace <= ports.clock.now():
                    await sweep(hop, ports, turn, "its replica fell silent")
                    closed += 1
        except Exception as error:
            ports.observer.fault("scan", error)
    return closed


async def close_expired(expired: Iterable[tuple[str, str]], ports: Ports) -> None:
    """Close each ``(tenant, txn)`` whose root grant has expired."""
    for tenant, txn in expired:
        try:
            await close_txn(tenant, txn, "broker", "expired", ports)
        except Exception as error:
            ports.observer.fault("scan", error)


async def close_idle(idle: Iterable[tuple[str, str, int]], ports: Ports) -> None:
    """Close each ``(tenant, txn)`` whose last record still is the one of that ``seq``, after which nothing is open.

    INVARIANT: what has gone on since is not closed (test_a_task_that_goes_on_meanwhile_is_not_closed_as_idle). The append is a
    compare-and-set, so another replica that was faster makes this one do nothing.
    """
    for tenant, txn, seq in idle:
        try:
            await ports.ledger.newest(tenant, txn)
            async with ports.ledger.turn(tenant, txn) as turn:
                if turn.fold.state == "open" and turn.fold.seq == seq:
                    await end(turn, "broker", "idle", ports)
        except Exception as error:
            ports.observer.fault("scan", error)
