"""Stage 6. Does policy permit it, with these findings, labels and budget left, and on which obligations?"""

from __future__ import annotations

import msgspec

from remit_broker.core.history import facts_of
from remit_broker.core.obligations import Cap
from remit_broker.core.policy import Action, PolicyRequest
from remit_broker.hop.hop import Denied, Hop
from remit_broker.hop.label import marked
from remit_broker.ports import Ports
from remit_schemas.budget import ONE_CALL
from remit_schemas.errors import Code, refusal
from remit_schemas.records import Epochs, Finding


async def authorize(hop: Hop, ports: Ports) -> Hop:
    """The verdict, and the epochs it was reached under. No permit, an error in deciding or a forbid all refuse."""
    # INVARIANT: the record names the registry that the target was read from, so that a target which has changed since is not
    # dispatched (test_a_definition_that_changes_while_a_call_waits_its_turn_is_not_called).
    epochs = Epochs(policy=ports.policy.revision, registry=hop.registry, revocations=hop.revocations)
    asked = question(hop, ports, _action(hop), hop.findings)
    verdict = ports.policy.decide(asked)
    hop = hop.with_(verdict=verdict, epochs=epochs, facts=facts_of(asked))
    if not verdict.allowed:
        raise denied(hop, verdict.code or Code.POLICY_DENIED)
    hop = marked(hop)
    return hop if verdict.cap is None else _capped(hop, verdict.cap)


def _capped(hop: Hop, cap: Cap) -> Hop:
    """The hop with no more to give and no more time than policy leaves it.

    INVARIANT: a cap only takes away, and never below what the call costs by itself: that is refused
    (test_a_cap_of_policy_tightens_budget_and_life).
    """
    child, at = hop.given, hop.ask.at
    budget, price = cap.of(child.budget), hop.aim.price.join(ONE_CALL)
    if not price.within(budget):
        no = refusal(
            Code.POLICY_DENIED, f"{hop.resource} costs {price}, and policy leaves it {budget}",
            rule=", ".join(hop.judged.decision.rules), ask="ask an operator for a larger @cap in that policy",
        )  # fmt: skip
        raise Denied(no, hop)
    if cap.seconds is None:
        return hop.with_(child=msgspec.structs.replace(child, budget=budget))
    end = min(hop.deadline, int(at * 1000) + cap.seconds * 1000)
    exp = min(child.exp, max(end // 1000, int(at) + 1))
    return hop.with_(
        child=msgspec.structs.replace(child, budget=budget, exp=exp),
        deadline=end,
        mono_deadline=hop.mono_deadline - (hop.deadline - end) / 1000,
    )


def _action(hop: Hop) -> Action:
    # INVARIANT: work leaves its task only where policy says so (test_nothing_is_detached_unless_policy_permits_it).
    if hop.request.detach:
        return "detach"
    return "call" if hop.aim.kind == "mcp" else "delegate"


def question(
    hop: Hop, ports: Ports, action: Action, findings: tuple[Finding, ...], labels: tuple[str, ...] | None = None
) -> PolicyRequest:
    """What policy is asked about this hop. ``labels`` are those of the data in question: by default of what is sent."""
    target, claims = hop.aim, hop.held.claims
    caller = ports.registry.principal(hop.ask.caller)
    actors = hop.chain
    tiers = set()
    for name in actors:
        known = ports.registry.principal(name)
        tiers.add(known.tier if known else "unknown")
    return PolicyRequest(
        action=action,
        tenant=hop.ask.tenant,
        user=claims.sub,
        # INVARIANT: policy sees the roles that were proved when the task began, at every hop of it
        # (test_policy_sees_the_roles_of_the_user_at_every_hop).
        roles=hop.past.roles,
        groups=hop.past.groups,
        client=hop.past.client,
        caller=hop.ask.caller,
        caller_tier=caller.tier if caller else "unknown",
        resource=hop.resource,
        annotations=target.annotations,
        target_tier=target.tier,
        depth=hop.given.depth + len(hop.past.before),
        args=ports.policy.arguments(target, hop.request.args),
        loops=actors.count(target.callee),
        tool_groups=target.groups,
        environment=ports.environment,
        actors=actors,
        tiers=tuple(sorted(tiers)),
        findings=tuple(sorted({finding.kind for finding in findings})) if findings else (),
        labels=(*hop.labels, *hop.lowered) if labels is None else labels,
        target_labels=hop.brings,
        left=hop.above.left,
        now=int(hop.ask.at),
    )


def denied(hop: Hop, code: Code) -> Denied:
    """The refusal of a verdict: its public reason, the policy that decided and what to ask for."""
    verdict = hop.judged
    rule = ", ".join(verdict.decision.rules) or "policy.default-deny"
    doing = "to detach " if hop.request.detach else ""
    what = f"{hop.resource}: {verdict.reason}" if verdict.reason else f"no policy permits {doing}{hop.resource}"
    ask = "ask an operator to permit it in a policy"
    if hop.request.detach:
        ask = 'call it within this task, or ask an operator to permit Action::"detach" for it in a policy'
    return Denied(refusal(code, what, rule=rule, ask=verdict.ask or ask, cause=verdict.cause), hop)
