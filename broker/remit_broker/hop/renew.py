"""A grant for the hop that is still open: as the one before it, for another minute at most."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from remit_broker.core.fold import Fold, Node
from remit_broker.hop.head import head
from remit_broker.hop.hop import Hop
from remit_broker.hop.narrow import GRANT_TTL
from remit_broker.hop.revoked import may_decide, withheld
from remit_broker.hop.verify import holder
from remit_broker.ledger_port import LostRace
from remit_broker.ports import Ports
from remit_schemas.errors import Code, refusal
from remit_schemas.grant import Claims, parse
from remit_schemas.names import Jti, parse_resource
from remit_schemas.records import GrantRenewed, seal

_AGAIN: Final = 2.0
"""Seconds after which the grant above may have been renewed."""


async def renew(hop: Hop, ports: Ports) -> dict[str, Any]:
    """``grant.renew``: ``{"grant", "exp"}``, durable before it is told. Whoever asks with a grant before the newest, because the
    answer was lost, gets the newest while that is fresh.

    Refuses OUT_OF_SCOPE for a root grant, RATE_LIMITED while more than half of its life is left or until the grant above is
    renewed, DEADLINE_EXCEEDED where the hop has no more time, and whatever stops the hop.
    """
    hop = await holder(hop, ports)
    _may_go_on(hop, ports)
    async with ports.ledger.turn(hop.ask.tenant, hop.ask.txn) as turn:
        while True:
            # INVARIANT: a grant is renewed only while its hop is open and nothing above it is revoked, asked on the fold that the
            # record is appended to (test_no_grant_is_renewed_that_is_of_no_use).
            hop = await holder(hop.with_(fold=turn.fold), ports)
            newest = await _newest(hop, ports)
            if fresh := _fresh(newest, ports):
                # INVARIANT: renewing in a loop grows no txn (test_renewing_in_a_loop_appends_nothing).
                if hop.held.jti.n < hop.above.n:
                    return {"grant": newest.token, "exp": newest.claims.exp}
                raise refusal(
                    Code.RATE_LIMITED, "more than half of the life of this grant is left", rule="renew.early",
                    ask=f"renew it in {fresh:.1f} s", retry_after=round(fresh, 3),
                )  # fmt: skip
            record = _record(hop, ports, turn.fold)
            claims = await _claims(newest.claims, record, turn.fold, ports)
            grant = ports.mint.mint(claims)
            if not isinstance(await turn.append(record, grant), LostRace):
                ports.failpoints.hit("renew")
                return {"grant": grant, "exp": record.exp}


def _may_go_on(hop: Hop, ports: Ports) -> None:
    may_decide(ports, hop.ask.tenant)
    if hop.above.parent is None:
        raise refusal(
            Code.OUT_OF_SCOPE, "a root grant lives as long as its task", rule="renew.root",
            ask="ask the user for a longer task",
        )  # fmt: skip
    if found := ports.revocations.check((), "", parse_resource(hop.above.resource)):
        raise withheld(found)
    # INVARIANT: nobody keeps a hop alive whose answer nobody takes any more
    # (test_a_hop_of_a_silent_replica_is_not_kept_alive_by_its_callee).
    # INVARIANT: what was handed on outlives the replica that minted it
    # (test_what_was_handed_on_outlives_the_replica_that_minted_it).
    if not hop.above.handed_on and ports.revocations.silence(hop.above.by) > ports.limits.replica_silence:
        raise refusal(
            Code.GRANT_CLOSED, "the broker process that would take the answer of this hop is gone", rule="renew.replica",
            ask="stop this work; the hop is about to be closed, and its caller may call again",
        )  # fmt: skip


class _Newest(msgspec.Struct, frozen=True):
    token: str
    claims: Claims


async def _newest(hop: Hop, ports: Ports) -> _Newest:
    """The newest grant of the caller's hop, which need not be the one it has."""
    if hop.held.jti.n == hop.above.n:
        return _Newest(hop.held.token, hop.held.claims)
    token = await ports.ledger.grant(hop.ask.tenant, hop.ask.txn, hop.above.rec)
    return _Newest(token, parse(token).claims)


def _fresh(newest: _Newest, ports: Ports) -> float:
    """Seconds until half of its life is over, or 0."""
    claims = newest.claims
    return max(0.0, (claims.iat + claims.exp) / 2 - ports.clock.now())


def _record(hop: Hop, ports: Ports, fold: Fold) -> GrantRenewed:
    node, now = hop.above, ports.clock.now()
    above = fold.nodes[node.parent or ""]
    exp = min(int(now) + GRANT_TTL, above.exp, node.deadline // 1000)
    if exp <= node.exp:
        raise _no_longer(node, above)
    return seal(
        GrantRenewed(
            **head(fold, node.hop, ports, now),
            jti=str(Jti(fold.txn, node.hop, node.n + 1)),
            exp=exp,
        )
    )


def _no_longer(node: Node, above: Node) -> Exception:
    if node.deadline // 1000 <= above.exp:
        return refusal(
            Code.DEADLINE_EXCEEDED, "the grant lives as long as its hop may take already", rule="renew.deadline",
            ask="end before the deadline; ask for more time when this is called",
        )  # fmt: skip
    # INVARIANT: no grant outlives the one above it (test_a_renewed_grant_does_not_outlive_the_one_above_it).
    return refusal(
        Code.RATE_LIMITED, "the grant above this one lives no longer", rule="renew.parent",
        ask="try again when the caller has renewed its own", retry_after=_AGAIN,
    )  # fmt: skip


async def _claims(old: Claims, record: GrantRenewed, fold: Fold, ports: Ports) -> Claims:
    """Those of the grant before, under the newest grant of the caller above."""
    above = fold.nodes[fold.nodes[record.hop].parent or ""]
    parent = parse(await ports.ledger.grant(fold.tenant, fold.txn, above.rec))
    return msgspec.structs.replace(
        old, jti=record.jti, iat=int(ports.clock.now()), exp=record.exp, rec=record.hash, par=parent.digest
    )
