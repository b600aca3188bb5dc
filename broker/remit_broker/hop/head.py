"""What every record of a txn begins with: whose it is, where it stands, when and by which replica it was written."""

from __future__ import annotations

from typing import TypedDict

from remit_broker.core.fold import Fold
from remit_broker.core.times import rfc3339
from remit_broker.ports import Ports


class Head(TypedDict):
    """The fields that all records but the first have in common."""

    tenant: str
    txn: str
    seq: int
    at: str
    hop: str
    prev: str
    by: str
    blind: str
    veil: str


def head(fold: Fold, hop: str, ports: Ports, now: float | None = None) -> Head:
    """The head of the record about ``hop`` that follows ``fold``; ``now`` is Unix seconds, where it was read before.

    INVARIANT: a record continues the fold it was made from, and no other (test_replicas_that_race_never_spend_more_than_the_root).
    """
    return {
        "tenant": fold.tenant,
        "txn": fold.txn,
        "seq": fold.seq + 1,
        "at": rfc3339(ports.clock.now() if now is None else now),
        "hop": hop,
        "prev": fold.hash,
        "by": ports.bus.replica,
        "blind": ports.ids.blind(),
        "veil": fold.veil,
    }
