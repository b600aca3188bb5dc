"""A parked hop goes on: which one, with the same arguments, and the record that says so. The stages are those of any call."""

from __future__ import annotations

from remit_broker.core.fold import Fold, Node
from remit_broker.hop.head import head
from remit_broker.hop.hop import Hop
from remit_broker.ports import Ports
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import Jti, Resource, parse_resource
from remit_schemas.records import HopResumed, seal


def parked_call(hop: Hop) -> Node | None:
    """The parked hop that a request wants to go on with; None for a call of its own.

    Refuses OUT_OF_SCOPE for what is no call of the caller's own hop, GRANT_CLOSED for one that has ended, DUPLICATE for one that
    was resumed already.
    """
    wanted = hop.request.resume
    if wanted is None:
        return None
    node = hop.past.nodes.get(wanted)
    # INVARIANT: only the hop that made a call resumes it (test_nobody_but_the_caller_resumes_a_parked_hop).
    if node is None or node.parent != hop.held.jti.hop or node.resource != str(hop.resource):
        raise _unknown(wanted)
    if node.state == "closed":
        raise refusal(
            Code.GRANT_CLOSED, f"hop {wanted} has ended{f': {node.outcome}' if node.outcome else ''}", rule="resume.closed",
            ask="call again",
        )  # fmt: skip
    if hop.past.is_revoked(wanted):
        raise refusal(
            Code.GRANT_REVOKED, f"the grant of hop {wanted} was revoked", rule="resume.revoked",
            ask="stop this work; a new call is decided on anew",
        )  # fmt: skip
    # INVARIANT: what was parked once goes on once (test_of_two_replicas_that_resume_one_wins).
    if node.state != "parked":
        raise refusal(
            Code.DUPLICATE, f"hop {wanted} is not parked: it runs, or was resumed already", rule="resume.running",
            ask="wait for it; look at it with remit chain", effect="unknown",
        )  # fmt: skip
    return node


async def called(hop: str, tenant: str, txn: str, ports: Ports) -> Resource:
    """What a hop is a call of. Refuses OUT_OF_SCOPE for one that is not there."""
    node = (await ports.ledger.fold(tenant, txn)).nodes.get(hop)
    if node is None:
        node = (await ports.ledger.newest(tenant, txn)).nodes.get(hop)
    if node is None or node.parent is None:
        raise _unknown(hop)
    return parse_resource(node.resource)


def same_call(hop: Hop) -> None:
    """Refuses CONFLICT for other arguments than those of the opening."""
    # INVARIANT: an input does not change what was asked (test_a_parked_hop_is_not_resumed_with_other_arguments).
    if hop.parked is not None and hop.parked.args_digest != hop.args_digest:
        raise refusal(
            Code.CONFLICT, f"hop {hop.parked.hop} was opened with other arguments", rule="resume.arguments",
            ask="send the arguments of the call as they were; what is new belongs into input",
        )  # fmt: skip


def resumption(hop: Hop, parked: Node, ports: Ports, fold: Fold) -> HopResumed:
    """The sealed record that follows ``fold``."""
    trace, child = hop.request.trace, hop.given
    if hop.epochs is None:
        raise RuntimeError("a stage ran before the one that feeds it")
    return seal(
        HopResumed(
            **head(fold, parked.hop, ports),
            jti=str(Jti(hop.ask.txn, parked.hop, parked.n + 1)),
            scope=child.scope.details,
            budget=child.budget,
            exp=child.exp,
            deadline=hop.deadline,
            max_depth=child.max_depth,
            args_digest=hop.args_digest,
            input_digest=hop.input_digest,
            input_size=hop.input_size,
            decision=hop.judged.decision,
            epochs=hop.epochs,
            findings=hop.findings,
            redacted=hop.redacted,
            labels=hop.labels,
            approval=hop.approval,
            brings=hop.brings,
            lowered=hop.lowered,
            endorser=hop.endorser,
            lowers=hop.lowers,
            link=trace.traceparent if trace else None,
        )
    )


def _unknown(hop: str) -> Refusal:
    return refusal(
        Code.OUT_OF_SCOPE, f"{hop[:16]} is no call of this resource that was made with this grant", rule="resume.unknown",
        ask="resume with the grant, the resource and the arguments of the call; its id is in its accepted frame",
    )  # fmt: skip
