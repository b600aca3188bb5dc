"""Whether an operator has stopped a user, an agent, a tool, a tenant, or everything. Asked at stage 2 and again before dispatch."""

from __future__ import annotations

from remit_broker.core.revocations import Entry
from remit_broker.hop.hop import Hop
from remit_broker.ports import Ports
from remit_schemas.errors import Code, Refusal, refusal


def holders_stand(hop: Hop, ports: Ports) -> None:
    """Refuses GRANT_REVOKED where the user or anybody in the chain is revoked."""
    if found := ports.revocations.check(hop.chain, hop.held.claims.sub):
        raise _dead(found)


def nothing_stops(hop: Hop, ports: Ports) -> None:
    """Everything a hop depends on stands, as far as this replica can know, and it can know.

    Refuses LEDGER_UNAVAILABLE in silence, POLICY_DENIED while all is paused or where the tenant or the target is revoked,
    GRANT_REVOKED where the user or anybody in the chain is.
    """
    may_decide(ports, hop.ask.tenant)
    holders_stand(hop, ports)
    if found := ports.revocations.check((), "", hop.resource):
        raise withheld(found)


def may_decide(ports: Ports, tenant: str) -> None:
    """Refuses LEDGER_UNAVAILABLE where this replica has not heard of revocations lately, POLICY_DENIED while all is paused or
    the tenant is revoked.
    """
    # INVARIANT: a replica that cannot hear of revocations opens and dispatches nothing
    # (test_a_replica_that_cannot_hear_refuses).
    if not ports.revocations.fresh:
        raise refusal(
            Code.LEDGER_UNAVAILABLE, "this replica has not heard for two seconds whether anything was revoked",
            rule="revocations.silence", ask="call again shortly; tell an operator if it stays so", retry_after=1.0,
        )  # fmt: skip
    # INVARIANT: nothing begins in a revoked tenant (test_a_revoked_tenant_is_stopped_whole_and_reinstated_by_name).
    if found := ports.revocations.paused or ports.revocations.tenant(tenant):
        raise withheld(found)


def withheld(entry: Entry) -> Refusal:
    """What may not be begun at all. POLICY_DENIED: no retry helps, and neither the grant nor the target is at fault."""
    if entry.kind == "all":
        return refusal(
            Code.POLICY_DENIED, "an operator has paused everything", rule="paused",
            ask="ask an operator; nothing runs until it is lifted with remit reinstate --all", cause=_said(entry),
        )  # fmt: skip
    return refusal(
        Code.POLICY_DENIED, f"{entry} was revoked by an operator", rule=f"revoked.{entry.kind}",
        ask=f"do without it, or ask an operator: remit reinstate --{entry.kind}", cause=_said(entry),
    )  # fmt: skip


def _dead(entry: Entry) -> Refusal:
    return refusal(
        Code.GRANT_REVOKED, f"{entry} was revoked by an operator", rule=f"revoked.{entry.kind}",
        ask="stop this work; an operator can lift it: remit reinstate", cause=_said(entry),
    )  # fmt: skip


def _said(entry: Entry) -> str:
    return f"{entry.who} at {entry.at}: {entry.why}"
