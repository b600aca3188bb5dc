"""A question to policy as people write one down: in a file of cases, on the command line, to ``POST /api/policy/simulate``."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from remit_broker.core.arguments import NOTHING, UNKNOWN, Arguments, Plan, projected
from remit_broker.core.policy import ACTIONS, Action, PolicyRequest, Verdict
from remit_broker.core.registry import Annotations
from remit_broker.core.times import seconds_of
from remit_schemas.budget import Budget, parse_budget
from remit_schemas.errors import Code, refusal
from remit_schemas.names import parse_resource

Outcome = Literal["allow", "approve", "deny", "would_deny"]
NOON: Final = "2026-01-05T12:00:00Z"
"""A Monday: what is asked about at no particular time."""
_ENOUGH: Final = "usd=1,tokens=100000,calls=100"


class WhatIf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question with everything that is usual left out. ``action`` follows from the resource; ``tiers`` and ``actors`` are those
    of ``agent`` alone; ``left`` is a budget as on the command line, ``now`` an RFC 3339 time. ``args`` are shown by what they are,
    as if a schema declared them so; ``unprojected`` are places of those that no schema would let be seen.
    """

    resource: str
    agent: str
    action: str = ""
    user: str = "somebody"
    tenant: str = "default"
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    tier: str = "standard"
    target_tier: str = "standard"
    actors: tuple[str, ...] | None = None
    tiers: tuple[str, ...] | None = None
    depth: int = 1
    loops: int = 0
    readOnly: bool = False  # noqa: N815 - as policies call them
    destructive: bool | None = None
    idempotent: bool = False
    openWorld: bool = True  # noqa: N815
    tool_groups: tuple[str, ...] = ()
    args: dict[str, Any] = {}
    unprojected: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    left: str = _ENOUGH
    now: str = NOON
    client: str = ""
    environment: str = ""
    approver: str = ""
    approver_roles: tuple[str, ...] = ()
    approver_groups: tuple[str, ...] = ()

    def question(self, args: Arguments | None = None) -> PolicyRequest:
        """The request; ``args`` where a schema has projected them. Refuses MALFORMED for what cannot be asked."""
        resource = parse_resource(self.resource)
        action = self.action or ("call" if resource.kind == "mcp" else "delegate")
        if action not in ACTIONS or (action, resource.kind) in (("call", "agent"), ("delegate", "mcp")):
            raise refusal(
                Code.MALFORMED, f"{action!r} is nothing that is done with {resource}", rule="simulate.action",
                ask=f"one of {', '.join(ACTIONS)}; tools are called, skills delegated to",
            )  # fmt: skip
        if (action == "approve") is not bool(self.approver):
            raise refusal(
                Code.MALFORMED, "an approver belongs to the action approve, and that to an approver", rule="simulate.approver",
                ask='say who decides: approver = "bob"',
            )  # fmt: skip
        hints = Annotations(
            read_only=self.readOnly,
            destructive=not self.readOnly if self.destructive is None else self.destructive,
            idempotent=self.idempotent,
            open_world=self.openWorld,
        )
        return PolicyRequest(
            action=_action(action),
            tenant=self.tenant,
            user=self.user,
            caller=self.agent,
            caller_tier=self.tier,
            resource=resource,
            target_tier=self.target_tier,
            depth=self.depth,
            left=_budget(self.left),
            now=_time(self.now),
            annotations=hints,
            roles=self.roles,
            groups=self.groups,
            actors=(self.agent,) if self.actors is None else self.actors,
            tiers=(self.tier,) if self.tiers is None else self.tiers,
            loops=self.loops,
            tool_groups=self.tool_groups,
            findings=self.findings,
            labels=self.labels,
            args=self._seen() if args is None else args,
            client=self.client,
            environment=self.environment,
            approver=self.approver,
            approver_roles=self.approver_roles,
            approver_groups=self.approver_groups,
        )

    def _seen(self) -> Arguments:
        if not self.args and not self.unprojected:
            return NOTHING
        seen = projected(_plan_like(self.args), self.args)
        return msgspec.structs.replace(seen, unprojected=tuple(sorted({*seen.unprojected, *self.unprojected})))


class Case(WhatIf, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question and the answer that it is to have. What is not said of the answer may be anything."""

    name: str
    expect: Outcome
    rules: tuple[str, ...] | None = None
    redact: tuple[str, ...] | None = None
    code: str | None = None


def outcome_of(verdict: Verdict) -> Outcome:
    """What becomes of a call with this verdict."""
    if not verdict.allowed:
        return "deny"
    if verdict.decision.effect == "would_deny":
        return "would_deny"
    return "approve" if verdict.approve else "allow"


def failures(case: Case, verdict: Verdict) -> list[str]:
    """In what ``verdict`` is not the one that ``case`` expects."""
    found = []
    if (got := outcome_of(verdict)) != case.expect:
        found.append(f"expected {case.expect}, got {got}")
    if case.rules is not None and set(case.rules) != set(verdict.decision.rules):
        found.append(f"expected the rules {_list(case.rules)}, decided by {_list(verdict.decision.rules)}")
    if case.redact is not None and set(case.redact) != set(verdict.redact):
        found.append(f"expected redaction of {_list(case.redact)}, got {_list(verdict.redact)}")
    if case.code is not None and case.code != (verdict.code or ""):
        found.append(f"expected the code {case.code}, got {verdict.code or 'none'}")
    if found and verdict.cause:
        found.append(verdict.cause)
    return found


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(sorted(names)) or "none"


def _action(name: str) -> Action:
    return next(action for action in ACTIONS if action == name)


def _budget(text: str) -> Budget:
    return parse_budget(text)


def _time(text: str) -> int:
    try:
        return int(seconds_of(text))
    except ValueError:
        raise refusal(
            Code.MALFORMED, f"{text!r} is no time", rule="simulate.now", ask=f"RFC 3339, such as {NOON}"
        ) from None


def _plan_like(value: Any) -> Plan:
    """The plan of a schema that declares exactly what is there, as it is there."""
    if isinstance(value, dict):
        return Plan(members={name: _plan_like(member) for name, member in value.items()})
    if isinstance(value, list):
        kinds = {_plan_like(item).scalar for item in value}
        return Plan(items=kinds.pop() if len(kinds) == 1 else None)
    if isinstance(value, bool):
        return Plan(scalar="flag")
    if isinstance(value, str):
        return Plan(scalar="text")
    return Plan(scalar="number") if isinstance(value, int | float) else UNKNOWN
