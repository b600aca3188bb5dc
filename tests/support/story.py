"""Txns for tests: each call writes the record that the broker would write next, sealed, and applies it."""

from __future__ import annotations

from typing import Any

import msgspec

from remit_broker.core.approvals import vote_of
from remit_broker.core.fold import Fold, apply, settle
from remit_schemas.budget import ZERO, Budget
from remit_schemas.records import (
    GENESIS,
    ApprovalDecided,
    ApprovalRequested,
    Decision,
    Epochs,
    GrantRenewed,
    GrantRevoked,
    HopClosed,
    HopOpened,
    HopParked,
    HopRefused,
    HopResumed,
    Need,
    Outcome,
    Record,
    TxnClosed,
    TxnOpened,
    plain,
    seal,
)

TXN = "a" * 32
ROOT = "1" * 16
AT = "2026-11-03T14:02:11.000Z"
LATER = 1_900_000_000
LARGE = Budget(1_000_000, 100_000, 100)


def opened(txn: str = TXN, tenant: str = "default", budget: Budget = LARGE, **changes: Any) -> TxnOpened:
    """The first record of a txn."""
    record = TxnOpened(
        tenant=tenant, txn=txn, seq=0, at=AT, hop=ROOT, prev=GENESIS, by="r1", blind="0" * 32, user="ann", agent="planner", auth="test",
        jti=f"{txn}.{ROOT}.1", scope=(), budget=budget, exp=2_000_000_000, max_depth=8,
    )  # fmt: skip
    return seal(msgspec.structs.replace(record, **changes))


def opening(fold: Fold, hop: str, parent: str | None = None, budget: Budget | None = None, **changes: Any) -> HopOpened:
    """``hop.opened`` under ``parent`` (the root by default), by whoever holds the parent's grant."""
    above = fold.nodes[parent or fold.root]
    record = HopOpened(
        tenant=fold.tenant, txn=fold.txn, seq=fold.seq + 1, at=AT, hop=hop, prev=fold.hash, by="r1",
        blind=f"{fold.seq + 1:032x}", veil=fold.veil, parent=above.hop,
        caller=above.callee, resource="agent/researcher/brief", depth=above.depth + 1, jti=f"{fold.txn}.{hop}.1",
        scope=(), budget=budget or Budget(1000, 100, 5), exp=above.exp, deadline=min(1_900_000_000_000, above.deadline),
        max_depth=above.max_depth, args_digest="d" * 64, args_size=2, definition="e" * 64,
        decision=Decision("allow", ("default",), "rev"), epochs=Epochs("rev", 1),
    )  # fmt: skip
    return seal(msgspec.structs.replace(record, **changes))


def closing(
    fold: Fold, hop: str, cost: Budget = ZERO, outcome: Outcome = "ok", labels: tuple[str, ...] = (), **changes: Any
) -> HopClosed:
    """``hop.closed``, settled."""
    spent, overrun = settle(fold, hop, cost, outcome)
    record = HopClosed(
        tenant=fold.tenant, txn=fold.txn, seq=fold.seq + 1, at=AT, hop=hop, prev=fold.hash, by="r1",
        blind=f"{fold.seq + 1:032x}", veil=fold.veil, outcome=outcome,
        cost=cost, spent=spent, overrun=overrun, effect="happened", ms=3, labels=labels,
    )  # fmt: skip
    return seal(msgspec.structs.replace(record, **changes))


def renewing(fold: Fold, hop: str, exp: int | None = None, **changes: Any) -> GrantRenewed:
    """``grant.renewed`` of the next grant of ``hop``, a minute longer than the one before."""
    node = fold.nodes[hop]
    record = GrantRenewed(
        tenant=fold.tenant, txn=fold.txn, seq=fold.seq + 1, at=AT, hop=hop, prev=fold.hash, by="r1",
        blind=f"{fold.seq + 1:032x}", veil=fold.veil, jti=f"{fold.txn}.{hop}.{node.n + 1}", exp=node.exp + 60 if exp is None else exp,
    )  # fmt: skip
    return seal(msgspec.structs.replace(record, **changes))


def parking(fold: Fold, hop: str, cost: Budget = ZERO, **changes: Any) -> HopParked:
    """``hop.parked``, settled."""
    spent, overrun = settle(fold, hop, cost, "ok")
    record = HopParked(
        tenant=fold.tenant, txn=fold.txn, seq=fold.seq + 1, at=AT, hop=hop, prev=fold.hash, by="r1",
        blind=f"{fold.seq + 1:032x}", veil=fold.veil, cost=cost, spent=spent,
        overrun=overrun, request_digest="f" * 64, request_size=9, connection="c" * 22,
    )  # fmt: skip
    return seal(msgspec.structs.replace(record, **changes))


def resuming(fold: Fold, hop: str, budget: Budget | None = None, **changes: Any) -> HopResumed:
    """``hop.resumed`` with all that the hop had before."""
    node = fold.nodes[hop]
    above = fold.nodes[node.parent or ""]
    record = HopResumed(
        tenant=fold.tenant, txn=fold.txn, seq=fold.seq + 1, at=AT, hop=hop, prev=fold.hash, by="r1",
        blind=f"{fold.seq + 1:032x}", veil=fold.veil, jti=f"{fold.txn}.{hop}.{node.n + 1}", scope=node.scope,
        budget=budget or Budget(1000, 100, 5),
        exp=min(above.exp, node.deadline // 1000), deadline=node.deadline, max_depth=node.max_depth,
        args_digest=node.args_digest, input_digest="9" * 64, input_size=4,
        decision=Decision("allow", ("default",), "rev"), epochs=Epochs("rev", 1),
    )  # fmt: skip
    return seal(msgspec.structs.replace(record, **changes))


def asking(fold: Fold, name: str, hop: str | None = None, **changes: Any) -> ApprovalRequested:
    """``approval.requested`` by ``hop`` (the root by default) for what :func:`opening` opens under it."""
    node = fold.nodes[hop or fold.root]
    record = ApprovalRequested(
        tenant=fold.tenant, txn=fold.txn, seq=fold.seq + 1, at=AT, hop=node.hop, prev=fold.hash, by="r1",
        blind=f"{fold.seq + 1:032x}", veil=fold.veil, id=name,
        caller=node.callee, user=fold.user, chain=fold.chain(node.hop), action="delegate", resource="agent/researcher/brief",
        definition="e" * 64, args_digest="d" * 64, args_size=2, decision=Decision("allow", ("default",), "rev"),
        needs=(Need("default"),), exp=min(LATER, fold.totals.exp),
    )  # fmt: skip
    return seal(msgspec.structs.replace(record, **changes))


def deciding(fold: Fold, name: str, user: str = "eve", **changes: Any) -> ApprovalDecided:
    """``approval.decided`` by ``user``: yes."""
    approval = fold.requests[name]
    asked = approval.asked
    record = ApprovalDecided(
        tenant=fold.tenant, txn=fold.txn, seq=fold.seq + 1, at=AT, hop=asked.hop, prev=fold.hash, by="r1",
        blind=f"{fold.seq + 1:032x}", veil=fold.veil, id=name,
        verdict="approve", who=f"local:{user}", user=user, auth="local", request=asked.hash, exp=min(LATER, fold.totals.exp),
        token="t", settled=True,
    )  # fmt: skip
    record = msgspec.structs.replace(record, **changes)
    if "settled" not in changes:
        record = msgspec.structs.replace(record, settled=approval.after(vote_of(record)).settled)
    return seal(record)


def revoking(fold: Fold, hop: str, **changes: Any) -> GrantRevoked:
    """``grant.revoked`` of the first grant of ``hop``."""
    record = GrantRevoked(
        tenant=fold.tenant, txn=fold.txn, seq=fold.seq + 1, at=AT, hop=hop, prev=fold.hash, by="r1",
        blind=f"{fold.seq + 1:032x}", veil=fold.veil, jti=f"{fold.txn}.{hop}.1", who="ann",
    )  # fmt: skip
    return seal(msgspec.structs.replace(record, **changes))


def ending(fold: Fold, **changes: Any) -> TxnClosed:
    """``txn.closed``."""
    record = TxnClosed(
        tenant=fold.tenant, txn=fold.txn, seq=fold.seq + 1, at=AT, hop=fold.root, prev=fold.hash, by="r1",
        blind=f"{fold.seq + 1:032x}", veil=fold.veil, reason="closed", who="ann", spent=fold.totals.spent, overrun=fold.totals.overrun,
    )  # fmt: skip
    return seal(msgspec.structs.replace(record, **changes))


def refused(hop: str = "f" * 16, **changes: Any) -> HopRefused:
    """``hop.refused`` of a call without a verified grant."""
    values: dict[str, Any] = {
        "tenant": "default", "txn": None, "hop": hop, "parent": None, "user": None, "at": AT, "by": "r1",
        "caller": "planner", "resource": "mcp/files/read_file", "stage": "narrow", "code": "OUT_OF_SCOPE",
        "message": "not held", "rule": "narrow.scope",
    }  # fmt: skip
    return seal(msgspec.convert(values | {"kind": "hop.refused"} | changes, HopRefused))


class Story:
    """A txn in the making. ``records`` are its records as JSON values, ``fold`` what they amount to."""

    def __init__(self, first: TxnOpened | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self.fold: Fold = self._add(None, first or opened())

    def open(self, hop: str, parent: str | None = None, budget: Budget | None = None, **changes: Any) -> Fold:
        return self.add(opening(self.fold, hop, parent, budget, **changes))

    def close(self, hop: str, cost: Budget = ZERO, outcome: Outcome = "ok", **changes: Any) -> Fold:
        return self.add(closing(self.fold, hop, cost, outcome, **changes))

    def renew(self, hop: str, exp: int | None = None, **changes: Any) -> Fold:
        return self.add(renewing(self.fold, hop, exp, **changes))

    def park(self, hop: str, cost: Budget = ZERO, **changes: Any) -> Fold:
        return self.add(parking(self.fold, hop, cost, **changes))

    def resume(self, hop: str, budget: Budget | None = None, **changes: Any) -> Fold:
        return self.add(resuming(self.fold, hop, budget, **changes))

    def ask(self, name: str, hop: str | None = None, **changes: Any) -> Fold:
        return self.add(asking(self.fold, name, hop, **changes))

    def decide(self, name: str, user: str = "eve", **changes: Any) -> Fold:
        return self.add(deciding(self.fold, name, user, **changes))

    def revoke(self, hop: str) -> Fold:
        return self.add(revoking(self.fold, hop))

    def end(self, **changes: Any) -> Fold:
        return self.add(ending(self.fold, **changes))

    def add(self, record: Record) -> Fold:
        return self._add(self.fold, record)

    def _add(self, fold: Fold | None, record: Record) -> Fold:
        raw = as_stored(record)
        self.fold = apply(fold, raw)
        self.records.append(raw)
        return self.fold


def as_stored(record: Record) -> dict[str, Any]:
    """The record as it comes back from JSON."""
    raw: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(plain(record)))
    return raw


def hop_id(number: int) -> str:
    """The ``number``-th hop id of a test."""
    return f"{number + 2:016x}"
