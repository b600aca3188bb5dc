"""How often the shared entry of an account is written while it is used up: the lease arithmetic itself, without a store."""

from __future__ import annotations

import random
from typing import Any

from remit_broker.core.accounts import Account, Cap, Slice, grant
from remit_schemas.budget import Budget

ONE = Budget(0, 0, 1)


def leases(cap: int) -> list[dict[str, Any]]:
    """Rows for 1, 10 and 100 replicas that use up ``cap`` calls of one account, one call at a time on a replica drawn at random."""
    rows = []
    for replicas in (1, 10, 100):
        limit, rng = Cap(calls=cap), random.Random(replicas)
        account, parts = Account(window=0), [Slice(limit, 0) for _ in range(replicas)]
        writes = served = 0
        first = None
        turns = list(range(replicas))
        while turns:
            number = rng.choice(turns)
            part = parts[number]
            if not part.fits(ONE):
                after = grant(account, str(number), part, ONE)
                if after is None:
                    first = served if first is None else first
                    turns.remove(number)
                    continue
                granted = after.leases[str(number)].granted
                part.last, part.granted = granted.minus(part.granted), granted
                account, writes = after, writes + 1
            part.hold(ONE)
            part.settle(ONE, ONE)
            served += 1
        rows.append({"replicas": replicas, "calls": served, "writes": writes, "first_refused_after": first})
    return rows
