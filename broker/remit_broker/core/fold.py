"""The fold of a txn: its records applied one after the other, each checked against everything before it.

:func:`apply` is the definition of a valid sequence, asked about everything that is read. :func:`extend` is the same
question about a record that this process has just built and sealed, so that its form and hash need no second look; the
broker asks it before it appends. What they do not accept is :class:`Corrupt`, and there is no other way to a :class:`Fold`.

It judges the sequence and the accounts. That a scope only narrows is judged on the grants, which carry the same scope
(``remit_schemas.bundle``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from immutables import Map
from msgspec.structs import replace

from remit_broker.core.approvals import Approval, bad_decision, bad_request, bad_use, vote_of
from remit_broker.core.flow import NONE, kept, reached, spoken
from remit_broker.core.tree import (
    GRANTS,
    Fold,
    Node,
    Settlement,
    open_path,
    settle,
)
from remit_schemas.budget import ONE_CALL, ZERO, Budget
from remit_schemas.canonical import canonical_document, digest
from remit_schemas.errors import Refusal
from remit_schemas.names import Resource, is_hop, is_principal, is_tenant, is_txn, parse_jti, parse_resource
from remit_schemas.records import (
    GENESIS,
    MAX_RECORD,
    VERSION,
    ApprovalDecided,
    ApprovalRequested,
    GrantRenewed,
    GrantRevoked,
    HopClosed,
    HopOpened,
    HopParked,
    HopResumed,
    Record,
    TxnClosed,
    TxnOpened,
    parse_record,
    plain,
)
from remit_schemas.scope import Detail, Scope
from remit_schemas.veil import speaks, veil_of

__all__ = ["Corrupt", "Fold", "Node", "Settlement", "apply", "extend", "fold_all", "fold_shown", "open_path", "settle"]

MAX_DEPTH: Final = 16
"""Deepest delegation anywhere (contract: ``max_depth`` ≤ 16)."""

_AT = re.compile(r"\d{4}-(0\d|1[0-2])-([0-2]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)\.\d{3}Z")


class Corrupt(Exception):  # noqa: N818 - a finding about a sequence
    """A sequence of records that is not one a broker wrote. ``where`` is the place, ``<txn>#<seq>``."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why


def fold_all(raws: Iterable[dict[str, Any]]) -> Fold:
    """The fold of a whole sequence, from its first record on. Raises :class:`Corrupt` (also where it is empty)."""
    fold: Fold | None = None
    for raw in raws:
        fold = apply(fold, raw)
    if fold is None:
        raise Corrupt("#0", "there is no record")
    return fold


def fold_shown(shown: Iterable[tuple[dict[str, Any], str | None]]) -> Fold:
    """The fold of a sequence of which some records are shown in their veiled form: those with its digest beside them.

    Their hash is not that of what is shown; the next record vouches for both. So the last one has to be whole. Raises :class:`Corrupt`.
    """
    fold: Fold | None = None
    veil: str | None = None
    for raw, veil in shown:
        try:
            fold = _follow(fold, _sealed(raw) if veil is None else _form(raw), raw, veil)
        except _Unfit as unfit:
            raise _corrupt(fold, unfit) from None
    if fold is None or veil is not None:
        raise Corrupt("#0" if fold is None else f"{fold.txn}#{fold.seq}", "the last record has to be there, and whole")
    return fold


def apply(fold: Fold | None, raw: dict[str, Any]) -> Fold:
    """``fold`` after one more record (None: before the first). O(log n) in its hops. Raises :class:`Corrupt`."""
    try:
        return _follow(fold, _sealed(raw), raw)
    except _Unfit as unfit:
        raise _corrupt(fold, unfit) from None


def extend(fold: Fold | None, record: Record) -> Fold:
    """:func:`apply` for a record as ``seal`` returned it, never for one that was read. Raises :class:`Corrupt`.

    Its type, its size and its hash are what this process made them; everything it says is judged all the same.
    """
    try:
        return _follow(fold, record, None)
    except _Unfit as unfit:
        raise _corrupt(fold, unfit) from None


def _corrupt(fold: Fold | None, unfit: Exception) -> Corrupt:
    return Corrupt("#0" if fold is None else f"{fold.txn}#{fold.seq + 1}", str(unfit))


def _follow(fold: Fold | None, record: Record, raw: dict[str, Any] | None, veil: str | None = None) -> Fold:
    expected = 0 if fold is None else fold.seq + 1
    _require(record.v == VERSION, lambda: f"version {record.v} is unknown")
    _require(_AT.fullmatch(record.at) is not None, lambda: f"at is {record.at!r}, not RFC 3339 UTC with milliseconds")
    _require(record.seq == expected, lambda: f"seq is {record.seq}, expected {expected}")
    _require(record.prev == (GENESIS if fold is None else fold.hash), "prev is not the hash of the record before it")
    # INVARIANT: what a record says of the veiled form of the one before it is so
    # (test_a_veil_that_is_not_that_of_the_record_before_is_refused).
    _require(record.veil == ("" if fold is None else fold.veil), "veil is not that of the record before it")
    after = _open_txn(record) if fold is None else _continue(fold, record)
    if veil is None:
        veil = veil_of(plain(record) if raw is None else raw) if speaks(record) else ""
    return after if after.veil == veil else replace(after, veil=veil)


class _Unfit(Exception):  # noqa: N818
    """Why a record cannot stand here; :func:`apply` adds the place."""


def _require(condition: bool, why: str | Callable[[], str]) -> None:
    """``why`` is a function where saying it costs more than the condition: it is nearly always true."""
    if not condition:
        raise _Unfit(why if isinstance(why, str) else why())


def _sealed(raw: dict[str, Any]) -> Record:
    """The record of ``raw``: of a known kind and version, no larger than allowed, and sealed by its own hash."""
    record = _form(raw)
    try:
        content = canonical_document({key: value for key, value in raw.items() if key != "hash"})
    except (ValueError, TypeError, RecursionError) as error:
        raise _Unfit(f"not a record: {error}") from None
    _require(
        len(content) <= MAX_RECORD, lambda: f"the record has {len(content)} bytes, at most {MAX_RECORD} are allowed"
    )
    _require(digest(content) == record.hash, "hash is not that of the record")
    return record


def _form(raw: dict[str, Any]) -> Record:
    try:
        return parse_record(raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise _Unfit(f"not a record: {error}") from None


def _open_txn(record: Record) -> Fold:
    if not isinstance(record, TxnOpened):
        raise _Unfit("the first record must be txn.opened")
    _require(is_tenant(record.tenant), lambda: f"{record.tenant!r} is not a tenant")
    _require(is_txn(record.txn), lambda: f"{record.txn!r} is not a txn id")
    _require(is_hop(record.hop), lambda: f"{record.hop!r} is not a hop id")
    _require(is_principal(record.agent), lambda: f"{record.agent!r} is not an agent")
    _require(record.user != "", "a txn needs a user")
    _require(record.jti == f"{record.txn}.{record.hop}.1", "jti is not <txn>.<hop>.1")
    _require(0 <= record.max_depth <= MAX_DEPTH, lambda: f"max_depth is not between 0 and {MAX_DEPTH}")
    _require(not record.before or record.continues is not None, "it has a chain before it and continues nothing")
    _require(len(record.before) + record.max_depth <= MAX_DEPTH, "the chain before it leaves no such depth")
    _require(all(map(is_principal, record.before)), "the chain before it is not one of principals")
    labels = frozenset(record.labels)
    root = Node(
        hop=record.hop, parent=None, caller=record.user, callee=record.agent, resource="", seq=0, at=record.at,
        depth=0, max_depth=record.max_depth, limit=record.budget, spent=ZERO, exp=record.exp,
        deadline=record.exp * 1000, recs=(record.hash,), by=record.by, scope=record.scope, labels=labels,
    )  # fmt: skip
    return Fold(
        tenant=record.tenant, txn=record.txn, user=record.user, root=record.hop, seq=0, hash=record.hash,
        roles=record.roles, groups=record.groups, issuer=record.issuer, client=record.client, token=record.token,
        nodes=Map({record.hop: root}), labels=labels, reached=Map({record.agent: labels}) if labels else Map(),
        continues=record.continues, before=record.before,
    )  # fmt: skip


def _continue(fold: Fold, record: Record) -> Fold:
    _require(record.tenant == fold.tenant, "the record is of another tenant")
    _require(record.txn == fold.txn, "the record is of another txn")
    _require(fold.state == "open", "the txn is closed, nothing may follow")
    return replace(_step(fold, record), seq=record.seq, hash=record.hash)


def _step(fold: Fold, record: Record) -> Fold:
    match record:
        case HopOpened():
            return _open_hop(fold, record)
        case HopClosed():
            return _close_hop(fold, record)
        case GrantRenewed():
            return _renew(fold, record)
        case HopParked():
            return _park(fold, record)
        case HopResumed():
            return _resume(fold, record)
        case ApprovalRequested():
            return _request(fold, record)
        case ApprovalDecided():
            return _decide(fold, record)
        case GrantRevoked():
            return _revoke(fold, record)
        case TxnClosed():
            return _close_txn(fold, record)
        case TxnOpened():
            raise _Unfit("the txn was opened before")


def _open_hop(fold: Fold, record: HopOpened) -> Fold:
    _require(is_hop(record.hop), lambda: f"{record.hop!r} is not a hop id")
    _require(record.hop not in fold.nodes, lambda: f"hop {record.hop} was opened before")
    parent = _open_path(fold, record.parent)[-1]
    _require(
        record.caller == parent.callee, lambda: f"the caller is {record.caller!r}, the grant is for {parent.callee!r}"
    )
    _require(record.jti == f"{record.txn}.{record.hop}.1", "jti is not <txn>.<hop>.1")
    _require(record.depth == parent.depth + 1, lambda: f"depth is {record.depth}, its parent's is {parent.depth}")
    _require(record.depth <= record.max_depth <= parent.max_depth, "depth ≤ max_depth ≤ the parent's max_depth fails")
    _require(record.exp <= parent.exp, "exp is later than its parent's")
    # INVARIANT: no hop outlives the one it was opened under (test_a_record_is_not_accepted_where).
    _require(record.deadline <= parent.deadline, "deadline is later than its parent's")
    _require_hold(record.budget, parent)
    _require(record.idem is None or record.idem not in fold.idem, "the idempotency key was used before")
    fold = _use(fold, record)
    aim, sent, brings = _aim(record.resource), frozenset(record.labels), frozenset(record.brings)
    node = Node(
        hop=record.hop, parent=parent.hop, caller=record.caller, callee=aim.name,
        resource=record.resource, seq=record.seq, at=record.at,
        depth=record.depth, max_depth=record.max_depth, limit=record.budget,
        spent=ONE_CALL, exp=record.exp, deadline=record.deadline, recs=(record.hash,), by=record.by, scope=record.scope,
        labels=sent | brings | fold.reached.get(aim.name, NONE), endorser=record.endorser,
        lowers=frozenset(record.lowers), args_digest=record.args_digest,
    )  # fmt: skip
    holding = replace(
        parent, held=parent.held + record.budget, open_children=parent.open_children.set(record.hop, record.seq)
    )
    opened = replace(
        fold,
        nodes=fold.nodes.update({node.hop: node, holding.hop: holding}),
        labels=fold.labels | node.labels,
        idem=fold.idem if record.idem is None else fold.idem.set(record.idem, record.hop),
    )
    return spoken(reached(opened, node, kept(aim.kind, sent, brings)), node) if node.labels else opened


def _require_hold(budget: Budget, parent: Node) -> None:
    # INVARIANT: the tree never authorises more than its root (test_fold: held + spent never exceeds a limit).
    _require(ONE_CALL.within(budget), "a hop costs at least one call")
    _require(budget.within(parent.left), lambda: f"holds {budget}, its parent has {parent.left} left")


def _open_path(fold: Fold, hop: str) -> tuple[Node, ...]:
    """From the root to ``hop``: every one of them open and unrevoked."""
    path = fold.path(hop)
    _require(bool(path), lambda: f"its parent {hop!r} does not exist")
    # INVARIANT: nothing is opened under a closed, parked or revoked hop (test_nothing_is_accepted_under_a_closed_hop,
    # test_nothing_is_accepted_under_a_parked_hop, test_nothing_is_accepted_under_a_revoked_hop).
    _require(all(node.state == "open" for node in path), "it, its parent or an ancestor is closed or parked")
    _require(not any(node.hop in fold.revoked for node in path), "it, its parent or an ancestor is revoked")
    return path


def _hop(fold: Fold, hop: str) -> tuple[Node, Node]:
    """A hop and its parent; the opening of the txn is none."""
    node = fold.nodes.get(hop)
    if node is None or node.parent is None:
        raise _Unfit(f"there is no hop {hop!r}")
    return node, fold.nodes[node.parent]


def _aim(resource: str) -> Resource:
    try:
        return parse_resource(resource)
    except Refusal as no:
        raise _Unfit(no.body.message) from None


def _renew(fold: Fold, record: GrantRenewed) -> Fold:
    node, parent = _hop(fold, record.hop)
    _open_path(fold, record.hop)
    _require(record.jti == f"{record.txn}.{record.hop}.{node.n + 1}", "jti is not that of its next grant")
    _require(record.exp > node.exp, "exp is not later than before")
    _require_within_life(record.exp, node.deadline, parent)
    renewed = replace(node, n=node.n + 1, recs=(*node.recs, record.hash)[-GRANTS:], exp=record.exp)
    return replace(fold, nodes=fold.nodes.set(node.hop, renewed), renewals=fold.renewals + 1)


def _require_within_life(exp: int, deadline: int, parent: Node) -> None:
    # INVARIANT: no grant outlives the one above it, nor its hop but for the fraction of a second that exp cannot say
    # (test_a_renewal_is_not_accepted_where).
    _require(exp <= parent.exp, "exp is later than its parent's")
    _require(exp <= -(-deadline // 1000), "exp is later than the deadline")


def _park(fold: Fold, record: HopParked) -> Fold:
    node, parent = _hop(fold, record.hop)
    _require(node.state == "open", lambda: f"hop {record.hop} is {node.state}")
    _require(not fold.running_below(record.hop), lambda: f"hop {record.hop} has descendants that run")
    charge = settle(fold, record.hop, record.cost, "ok")
    _require_charge(record, charge)
    returned = frozenset(record.labels)
    # INVARIANT: parking returns exactly the rest of the hold (test_parking_returns_the_rest_and_charges_what_was_used).
    parked = replace(
        node, state="parked", limit=charge.spent, spent=charge.spent.minus(node.held), overrun=charge.overrun,
        passed=charge.overrun, connection=record.connection,
    )  # fmt: skip
    charged = replace(
        parent,
        held=parent.held.minus(node.limit) + charge.spent,
        overrun=_overrun(parent, node, charge),
    )
    told = replace(
        fold, nodes=fold.nodes.update({parked.hop: parked, charged.hop: charged}), labels=fold.labels | returned
    )
    return reached(told, charged, returned)


def _require_charge(record: HopParked | HopClosed, charge: Settlement) -> None:
    _require(record.spent == charge.spent, lambda: f"spent is {record.spent}, it settles at {charge.spent}")
    _require(record.overrun == charge.overrun, lambda: f"overrun is {record.overrun}, it settles at {charge.overrun}")


def _overrun(parent: Node, node: Node, charge: Settlement) -> Budget:
    """The parent's overrun with that of ``node``, of which it may have been charged a part when ``node`` parked."""
    return parent.overrun + charge.overrun.minus(node.passed)


def _resume(fold: Fold, record: HopResumed) -> Fold:
    node, parent = _hop(fold, record.hop)
    _require(node.state == "parked", lambda: f"hop {record.hop} is {node.state}, not parked")
    _open_path(fold, parent.hop)
    _require(node.hop not in fold.revoked, lambda: f"the grant of hop {node.hop} is revoked")
    _require(record.jti == f"{record.txn}.{record.hop}.{node.n + 1}", "jti is not that of its next grant")
    _require_within_life(record.exp, record.deadline, parent)
    _require(record.deadline <= parent.deadline, "deadline is later than its parent's")
    _require(node.depth <= record.max_depth <= node.max_depth, "depth ≤ max_depth ≤ its max_depth before fails")
    _require(_within(record.scope, node.scope), "the scope is wider than before")
    _require(record.args_digest == node.args_digest, "the arguments are not those of its opening")
    _require_hold(record.budget, parent)
    fold = _use(fold, record)
    aim, sent, brings = _aim(node.resource), frozenset(record.labels), frozenset(record.brings)
    resumed = replace(
        node, state="open", limit=node.limit + record.budget, spent=node.spent + ONE_CALL, n=node.n + 1,
        recs=(record.hash,), exp=record.exp, deadline=record.deadline, max_depth=record.max_depth, scope=record.scope,
        labels=node.labels | sent | brings, endorser=record.endorser, lowers=frozenset(record.lowers), connection="",
        by=record.by,
    )  # fmt: skip
    holding = replace(parent, held=parent.held + record.budget)
    going = replace(
        fold,
        nodes=fold.nodes.update({resumed.hop: resumed, holding.hop: holding}),
        labels=fold.labels | resumed.labels,
    )
    return spoken(reached(going, resumed, kept(aim.kind, sent, brings)), resumed) if resumed.labels else going


def _within(scope: tuple[Detail, ...], other: tuple[Detail, ...]) -> bool:
    if scope == other:
        return True
    try:
        return Scope.of(scope) <= Scope.of(other)
    except Refusal as no:
        raise _Unfit(no.body.message) from None


def _close_hop(fold: Fold, record: HopClosed) -> Fold:
    node, parent = _hop(fold, record.hop)
    _require(node.state != "closed", lambda: f"hop {record.hop} is closed")
    _require(not node.open_children, lambda: f"hop {record.hop} has open descendants")
    _require(node.state == "open" or record.cost == ZERO, "a parked hop has no cost beside what it was charged")
    charge = settle(fold, record.hop, record.cost, record.outcome)
    _require_charge(record, charge)
    returned, lowered = frozenset(record.labels), frozenset(record.lowered)
    # INVARIANT: nothing takes a label away but the endorser that the opening names (test_only_a_named_endorser_lowers).
    _require(lowered <= node.lowers, "lowered is more than its endorser may take")
    # Its scope is asked for by nobody any more, and may be large (test_a_closed_hop_keeps_no_scope).
    closed = replace(node, state="closed", scope=(), outcome=record.outcome, code=record.code)
    charged = replace(
        parent,
        held=parent.held.minus(node.limit),
        spent=parent.spent + charge.spent,
        overrun=_overrun(parent, node, charge),
        open_children=parent.open_children.delete(node.hop),
    )
    ended = replace(
        fold, nodes=fold.nodes.update({closed.hop: closed, charged.hop: charged}), labels=fold.labels | returned
    )
    if record.detached:
        ended = replace(
            ended,
            detached=ended.detached.set(node.caller, (*ended.detached.get(node.caller, ()), record.detached)),
        )
    return reached(ended, charged, returned) if returned else ended


def _request(fold: Fold, record: ApprovalRequested) -> Fold:
    _open_path(fold, record.hop)
    _require(not (why := bad_request(fold, record)), why)
    return replace(fold, requests=fold.requests.set(record.id, Approval(asked=record)))


def _decide(fold: Fold, record: ApprovalDecided) -> Fold:
    _require(not (why := bad_decision(fold, record)), why)
    decided = fold.requests[record.id].after(vote_of(record))
    return replace(fold, requests=fold.requests.set(record.id, decided), decisions=fold.decisions + 1)


def _use(fold: Fold, record: HopOpened | HopResumed) -> Fold:
    """``fold`` without the approval that ``record`` uses up, if it uses one."""
    if record.approval is None:
        _require(not record.lowered, "labels are lowered, and nobody approved it")
        return fold
    _require(not (why := bad_use(fold, record)), why)
    used = replace(fold.requests[record.approval], used_by=record.hop)
    return replace(fold, requests=fold.requests.set(record.approval, used))


def _revoke(fold: Fold, record: GrantRevoked) -> Fold:
    jti = parse_jti(record.jti)
    node = fold.nodes.get(record.hop)
    if jti is None or node is None or (jti.txn, jti.hop) != (fold.txn, node.hop) or jti.n > node.n:
        raise _Unfit(f"{record.jti!r} is not a grant of hop {record.hop!r}")
    _require(node.state != "closed", lambda: f"hop {node.hop} is closed, its grant is of no use")
    _require(node.hop not in fold.revoked, lambda: f"the grant of hop {node.hop} was revoked before")
    return replace(fold, revoked=fold.revoked.set(node.hop, record.jti))


def _close_txn(fold: Fold, record: TxnClosed) -> Fold:
    root = fold.totals
    _require(record.hop == root.hop, "hop is not the opening of the txn")
    _require(not root.open_children, "the txn has open hops")
    _require((record.spent, record.overrun) == (root.spent, root.overrun), "spent and overrun are not the txn's")
    return replace(fold, state="closed", nodes=fold.nodes.set(root.hop, replace(root, state="closed")))
