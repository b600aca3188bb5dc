"""Stage 2. Is this grant genuine, for this caller and txn, still open and not revoked?"""

from __future__ import annotations

from remit_broker.core.fold import Fold
from remit_broker.hop.hop import Hop
from remit_broker.hop.resume import parked_call
from remit_broker.hop.revoked import holders_stand, nothing_stops
from remit_broker.ports import Ports
from remit_schemas.errors import Code, refusal


async def verify(hop: Hop, ports: Ports) -> Hop:
    """The hop with its grant verified, and nothing revoked that it depends on."""
    # Read first: what is revoked meanwhile makes the epoch older than the check, never newer.
    revision = ports.revocations.revision
    hop = await holder(hop, ports)
    nothing_stops(hop, ports)
    if (wanted := hop.request.resume) is not None and not _is_parked(hop.past, wanted):
        # INVARIANT: what another replica parked a moment ago is found parked
        # (test_a_replica_that_is_behind_resumes_what_another_one_parked).
        hop = await holder(hop.with_(fold=await ports.ledger.newest(hop.ask.tenant, hop.ask.txn)), ports)
    return hop.with_(revocations=revision, parked=parked_call(hop))


def _is_parked(fold: Fold, hop: str) -> bool:
    node = fold.nodes.get(hop)
    return node is not None and node.state == "parked"


async def holder(hop: Hop, ports: Ports) -> Hop:
    """The caller's grant, the fold it stands in, and the hop it was minted for.

    After a lost race the newer fold is already there and only what depends on it is asked again.
    """
    ask = hop.ask
    if not hop.request.grant:
        raise refusal(
            Code.GRANT_INVALID, "the request carries no grant", rule="grant.missing",
            ask="send the grant you were given; a task is opened with remit grant or open_task",
        )  # fmt: skip
    grant = ports.mint.verify(hop.request.grant, ask.caller)
    claims, jti = grant.claims, grant.jti
    if claims.tenant != ask.tenant:
        raise refusal(
            Code.GRANT_INVALID, "the grant is another tenant's", rule="grant.tenant", ask="use your own grant"
        )
    if jti.txn != ask.txn:
        raise refusal(
            Code.GRANT_INVALID, "the txn in the subject is not the grant's", rule="grant.txn",
            ask="publish on req.<caller>.<txn of the grant>.…",
        )  # fmt: skip
    fold = hop.fold if hop.fold is not None else await ports.ledger.fold(ask.tenant, jti.txn)
    node = fold.nodes.get(jti.hop)
    if node is None or node.n < jti.n:
        # INVARIANT: what another replica opened or renewed a moment ago counts: only the ledger itself can say that it does not
        # exist (test_a_replica_that_is_behind_knows_a_grant_that_another_one_renewed).
        fold = await ports.ledger.newest(ask.tenant, jti.txn)
        node = fold.nodes.get(jti.hop)
    # INVARIANT: a grant counts only if the ledger's record names it back (test_grant_unknown_to_the_ledger_is_refused).
    if node is None or node.callee != ask.caller or not node.counts(jti.n, claims.rec):
        raise refusal(
            Code.GRANT_INVALID, "the ledger does not know this grant", rule="grant.unknown",
            ask="use the newest grant of this hop", cause=f"jti {jti}",
        )  # fmt: skip
    if fold.is_revoked(jti.hop):
        raise refusal(
            Code.GRANT_REVOKED, "the grant or one above it was revoked", rule="grant.revoked",
            ask="stop this work; a new task needs a new grant from its user",
        )  # fmt: skip
    # INVARIANT: a grant lives only while the hop it was minted for is open
    # (test_a_grant_is_worth_nothing_when_its_hop_has_ended).
    # INVARIANT: nor while it waits for an input (test_a_grant_is_of_no_use_while_its_hop_is_parked).
    if not fold.is_open(jti.hop) and fold.stands(jti.hop):
        raise refusal(
            Code.GRANT_CLOSED, "the hop this grant was minted for waits for an input", rule="grant.parked",
            ask="wait for the input: the dispatch that brings it has a new grant",
        )  # fmt: skip
    if not fold.is_open(jti.hop):
        raise refusal(
            Code.GRANT_CLOSED, "the hop this grant was minted for has ended", rule="grant.closed",
            ask="make calls before the skill returns; work that must go on needs a task of its own",
        )  # fmt: skip
    hop = hop.with_(grant=grant, fold=fold, parent=node)
    # INVARIANT: nobody acts in a chain with a revoked user or agent in it (test_a_revoked_agent_is_refused_at_every_replica).
    holders_stand(hop, ports)
    return hop


async def standing(hop: Hop, ports: Ports) -> Hop:
    """As :func:`holder`, on the fold as the ledger has it now: for what is told without a record that would find out."""
    return await holder(hop.with_(fold=await ports.ledger.newest(hop.ask.tenant, hop.ask.txn)), ports)
