"""Deciding: what one person says to a request becomes a signed record of its txn. And waiting for it, without a hop that waits."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from remit_broker.core.approvals import Approval, Vote, four_eyes, void
from remit_broker.core.arguments import UNSEEN, Arguments
from remit_broker.core.fold import Fold
from remit_broker.core.policy import PolicyRequest
from remit_broker.core.registry import Target
from remit_broker.core.times import rfc3339
from remit_broker.hop.head import head
from remit_broker.hop.hop import Hop
from remit_broker.hop.revoked import may_decide, withheld
from remit_broker.hop.verify import standing
from remit_broker.ledger_port import LostRace
from remit_broker.ports import Ports
from remit_schemas.approval import Decided
from remit_schemas.canonical import canonical_document
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import parse_resource
from remit_schemas.records import ApprovalDecided, seal

Verdict = Literal["approve", "deny"]

MAX_REASON: Final = 512
LOOK: Final = 1.0
"""Seconds between two looks at a request that waits, where nobody says that it was decided."""
_SPEND: Final = 0.25
"""Seconds of a request's time that are left for its answer."""


class Approver(msgspec.Struct, frozen=True, kw_only=True):
    """Who decides: ``who`` as the API knows them, ``user`` their name as a user, ``auth`` by what they are known."""

    who: str
    user: str
    tenant: str
    auth: str
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


async def decide(
    txn: str, name: str, verdict: Verdict, reason: str, by: Approver, ports: Ports
) -> Approval:  # fmt: skip
    """Write down what ``by`` says to the request ``name`` of ``txn``, signed; the request after it.

    Refuses UNKNOWN_TARGET, CONFLICT for what is decided, void or expired, POLICY_DENIED for somebody who may not decide,
    APPROVAL_INVALID where what would be shown is not what would be sent.
    """
    if verdict == "approve":
        may_decide(ports, by.tenant)
    # INVARIANT: somebody who is revoked decides nothing (test_somebody_who_is_revoked_decides_nothing).
    if found := ports.revocations.check((), by.user):
        raise withheld(found)
    fold = await ports.ledger.newest(by.tenant, txn)
    approval = request_of(fold, name)
    _may_be_decided(fold, approval, verdict, ports.clock.now(), ports)
    _may_decide(fold, approval, verdict, by)
    await _permitted(fold, approval, by, ports)
    if verdict == "approve":
        await seen(approval, ports)
    async with ports.ledger.turn(by.tenant, txn) as turn:
        while True:
            fold = turn.fold
            approval = request_of(fold, name)
            now = ports.clock.now()
            _may_be_decided(fold, approval, verdict, now, ports)
            _may_decide(fold, approval, verdict, by)
            record = _record(fold, approval, verdict, reason[:MAX_REASON], by, now, ports)
            done = await turn.append(record, None)
            if not isinstance(done, LostRace):
                break
    ports.failpoints.hit("decided")
    approval = done.requests[name]
    if approval.state(now) != "waiting":
        await ports.arguments.forget((by.tenant, txn, name))
        # Whoever waits for it may do so at any replica.
        await ports.bus.ended(by.tenant, txn, name)
    return approval


def request_of(fold: Fold, name: str) -> Approval:
    """The request of that id. Refuses UNKNOWN_TARGET."""
    approval = fold.requests.get(name)
    if approval is None:
        raise refusal(
            Code.UNKNOWN_TARGET, f"no approval {name[:64]!r} was asked for", rule="approvals.unknown",
            ask="remit approvals list shows them",
        )  # fmt: skip
    return approval


async def seen(approval: Approval, ports: Ports) -> bytes:
    """The bytes that would be sent, as the approver sees them.

    Refuses CONFLICT where they are not kept any more, APPROVAL_INVALID where they are not those of the request.
    """
    asked = approval.asked
    data = await ports.arguments.get((asked.tenant, asked.txn, asked.id))
    if data is None:
        raise refusal(
            Code.CONFLICT, "the arguments cannot be shown any more, and nobody approves what they cannot see",
            rule="approvals.not-kept", ask="deny it; the call can be made again",
        )  # fmt: skip
    # INVARIANT: what is shown is what was asked about (test_nothing_is_approved_whose_arguments_are_not_those_of_the_request).
    if not fits(approval, data, ports):
        raise refusal(
            Code.APPROVAL_INVALID, "the arguments that are kept are not those of the request", rule="approvals.digest",
            ask="deny it, and tell an operator: somebody changed what the broker keeps",
        )  # fmt: skip
    return data


def fits(approval: Approval, data: bytes, ports: Ports) -> bool:
    """Whether ``data`` has the digests of the request."""
    asked, value = approval.asked, msgspec.json.decode(data)
    digests = [ports.digester.digest(asked.txn, canonical_document(value["args"]))]
    if asked.resumes is not None:
        digests.append(ports.digester.digest(asked.txn, canonical_document(value["input"])))
    return digests == [asked.args_digest, *([asked.input_digest] if asked.resumes is not None else [])]


def _may_be_decided(fold: Fold, approval: Approval, verdict: Verdict, now: float, ports: Ports) -> None:
    state = approval.state(now)
    if state != "waiting":
        raise refusal(
            Code.CONFLICT, f"approval {approval.id} is {state}, there is nothing to decide", rule="approvals.ended",
            ask=f"look at it with remit approvals show {approval.id}",
        )  # fmt: skip
    why = void(fold, approval, ports.policy.revision)
    # A denial of what is void by its policies alone does no harm; to a txn that has ended nothing is appended.
    if why and (verdict == "approve" or fold.state != "open" or fold.is_revoked(approval.asked.hop)):
        raise refusal(
            Code.CONFLICT, f"approval {approval.id} is void: {why}", rule="approvals.void",
            ask="if the call is still wanted, it is made and asked for anew",
        )  # fmt: skip


def _may_decide(fold: Fold, approval: Approval, verdict: Verdict, by: Approver) -> None:
    asked = approval.asked
    if any(by.user == vote.user for vote in approval.votes):
        raise refusal(
            Code.CONFLICT, f"{by.user} has decided on it before", rule="approvals.twice",
            ask="it needs different people",
        )  # fmt: skip
    if verdict == "deny":
        return
    if four_eyes(asked) and by.user == fold.user:
        raise refusal(
            Code.POLICY_DENIED, f"{by.user} cannot approve a call that is made on their own behalf", rule="approvals.four-eyes",
            ask="have somebody else approve it",
        )  # fmt: skip
    if not approval.wants(by.roles):
        roles = ", ".join(sorted({need.role for need in asked.needs if need.role}))
        raise refusal(
            Code.POLICY_DENIED, f"{by.user} has none of the roles whose approval is missing", rule="approvals.roles",
            ask=f"have somebody approve it who has one of: {roles}",
        )  # fmt: skip


async def _permitted(fold: Fold, approval: Approval, by: Approver, ports: Ports) -> None:
    """INVARIANT: who decides is somebody whom policy lets, arguments included (test_only_whom_policy_lets_decides,
    test_policy_sees_the_arguments_that_an_approver_decides_on). Refuses POLICY_DENIED.
    """
    asked = approval.asked
    resource = parse_resource(asked.resource)
    target, caller = ports.registry.target(resource), ports.registry.principal(asked.caller)
    if target is None:
        raise refusal(
            Code.CONFLICT,
            f"{asked.resource} is not served any more",
            rule="approvals.target",
            ask="wait until it is back",
        )
    verdict = ports.policy.decide(
        PolicyRequest(
            action="approve", tenant=by.tenant, approver=by.user, approver_roles=by.roles, approver_groups=by.groups,
            user=asked.user, caller=asked.caller, caller_tier=caller.tier if caller else "unknown", resource=resource,
            annotations=target.annotations, target_tier=target.tier, tool_groups=target.groups, depth=len(asked.chain),
            actors=asked.chain[::-1], tiers=_tiers(asked.chain, ports), labels=asked.labels,
            findings=tuple(sorted({finding.kind for finding in asked.findings})), left=fold.nodes[asked.hop].left,
            now=int(ports.clock.now()), environment=ports.environment, args=await _arguments(approval, target, ports),
            client=fold.client, roles=fold.roles, groups=fold.groups,
        )
    )  # fmt: skip
    if not verdict.allowed:
        raise refusal(
            Code.POLICY_DENIED, f"{by.user} may not decide on {asked.resource}: {verdict.reason or 'no policy lets them'}",
            rule=", ".join(verdict.decision.rules) or "policy.default-deny", cause=verdict.cause,
            ask=verdict.ask or 'have somebody decide whom policy lets, or permit Action::"approve" in a policy',
        )  # fmt: skip


async def _arguments(approval: Approval, target: Target, ports: Ports) -> Arguments:
    """What policy may see of what would be sent; where that is not kept, or is other than was asked, it is all unseen."""
    asked = approval.asked
    data = await ports.arguments.get((asked.tenant, asked.txn, asked.id))
    if data is None or target.definition != asked.definition or not fits(approval, data, ports):
        return UNSEEN
    return ports.policy.arguments(target, msgspec.json.decode(data)["args"])


def _tiers(chain: tuple[str, ...], ports: Ports) -> tuple[str, ...]:
    known = [ports.registry.principal(name) for name in chain]
    return tuple(sorted({one.tier if one else "unknown" for one in known}))


def _record(
    fold: Fold, approval: Approval, verdict: Verdict, reason: str, by: Approver, now: float, ports: Ports
) -> ApprovalDecided:
    asked, exp = approval.asked, min(int(now + ports.limits.approval_use), fold.totals.exp)
    token = ports.mint.decided(
        Decided(
            iss=ports.mint.issuer, tenant=fold.tenant, txn=fold.txn, id=asked.id, request=asked.hash,
            resource=asked.resource, args_digest=asked.args_digest, chain=asked.chain, revision=asked.decision.revision,
            verdict=verdict, sub=by.user, who=by.who, auth=by.auth, roles=by.roles, reason=reason, iat=int(now), exp=exp,
        )
    )  # fmt: skip
    vote = Vote(verdict, by.who, by.user, exp, reason, by.roles)
    return seal(
        ApprovalDecided(
            **head(fold, asked.hop, ports, now), id=asked.id, verdict=verdict, who=by.who, user=by.user, auth=by.auth, roles=by.roles,
            reason=reason, request=asked.hash, exp=exp, token=token,
            settled=approval.after(vote).settled,
        )
    )  # fmt: skip


async def wait(hop: Hop, ports: Ports) -> dict[str, str]:
    """The service ``approval.wait``: how a request of this hop, or of one below it, ended, as soon as it has.

    Refuses MALFORMED, UNKNOWN_TARGET for a request that is not the caller's, DEADLINE_EXCEEDED while it waits on.
    """
    name = hop.request.args.get("id")
    if not isinstance(name, str) or len(hop.request.args) != 1:
        raise refusal(
            Code.MALFORMED, "it is not said which approval is meant", rule="approval.args", ask='send {"id": …}'
        )
    while True:
        # INVARIANT: nobody is told anything of a task once their grant is revoked, at whichever replica
        # (test_a_replica_that_is_behind_gives_out_nothing_for_what_was_revoked).
        hop = await standing(hop, ports)
        fold = hop.past
        approval = _mine(fold, hop, name)
        if approval is None:
            raise refusal(
                Code.UNKNOWN_TARGET, "no such approval was asked for by this hop or one below it", rule="approval.unknown",
                ask="name the approval of the error",
            )  # fmt: skip
        if (state := _said(fold, approval, ports)) != "waiting":
            denial = approval.denial
            return {"id": name, "state": state, "reason": denial.reason if denial else ""}
        left = hop.mono_deadline - ports.clock.monotonic() - _SPEND
        if left <= 0:
            raise _waits_on(approval)
        await ports.bus.until_ended((hop.ask.txn, name), min(left, LOOK))


def _mine(fold: Fold, hop: Hop, name: str) -> Approval | None:
    """INVARIANT: nobody hears of what was asked elsewhere in the task (test_nobody_else_waits_for_an_approval)."""
    approval = fold.requests.get(name)
    if approval is None:
        return None
    return approval if any(node.hop == hop.held.jti.hop for node in fold.path(approval.asked.hop)) else None


def _said(fold: Fold, approval: Approval, ports: Ports) -> str:
    state = approval.state(ports.clock.now())
    return "void" if state == "waiting" and void(fold, approval, ports.policy.revision) else state


def _waits_on(approval: Approval) -> Refusal:
    return refusal(
        Code.DEADLINE_EXCEEDED, f"approval {approval.id} is not decided yet", rule="approval.waiting",
        ask=f"ask again; it waits until {rfc3339(approval.asked.exp)}",
    )  # fmt: skip
