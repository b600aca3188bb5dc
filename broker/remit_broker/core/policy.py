"""The question that policy is asked, its answer, and the projection of the one into Cedar's terms.

A policy sees who asks, on whose behalf, through whom, for what, with how much left, and *what was found* in the content;
it never sees the content. Raw JSON has no faithful form in Cedar (no floats, no null, 64-bit integers), and an argument
such as ``{"__entity": …}`` would become an entity of the caller's choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

import msgspec

from remit_broker.core.findings import class_of
from remit_broker.core.labels import level, mixed, normal, trusted
from remit_broker.core.registry import Annotations
from remit_schemas.budget import ZERO, Budget
from remit_schemas.canonical import MAX_INTEGER
from remit_schemas.errors import Code
from remit_schemas.names import Resource
from remit_schemas.records import Decision

Action = Literal["call", "delegate", "detach", "release"]
ACTIONS: Final[tuple[Action, ...]] = ("call", "delegate", "detach", "release")

ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    "User": ("name", "roles", "tenant"),
    "Agent": ("name", "tier"),
    "Server": ("name",),
    "Tool": ("destructive", "idempotent", "name", "openWorld", "readOnly", "server", "tier"),
    "Skill": ("agent", "name", "tier"),
    "context": (
        "actors", "confidentiality", "depth", "finding_classes", "findings", "labels", "labels_mixed", "left_calls",
        "left_tokens", "left_usd_micros", "now_hour", "now_weekday", "target_labels", "tiers", "trusted", "user",
    ),
}  # fmt: skip
"""What the schema declares, for the messages of refused policies."""

LEFT: Final = frozenset({"left_usd_micros", "left_tokens", "left_calls"})
NOW: Final = frozenset({"now_hour", "now_weekday"})
_HOUR: Final = 3600
_DAY: Final = 24 * _HOUR
_THURSDAY: Final = 3
"""1970-01-01 was one; Monday is 0."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]


class PolicyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question. ``now`` is Unix seconds; policies see the hour and weekday of it, in UTC.

    ``tiers`` are those of ``actors`` (the chain of agents, the caller among them), ``findings`` kinds such as
    ``secret.npm_token``. ``labels`` are those of the data in question, ``target_labels`` those that the target brings. Nothing is checked here; a question with a value of a wrong type is denied when it is asked.
    """

    action: Action
    tenant: str
    user: str
    caller: str
    caller_tier: str
    resource: Resource
    target_tier: str
    depth: _Count
    left: Budget
    now: _Count
    annotations: Annotations = Annotations()
    roles: tuple[str, ...] = ()
    actors: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    target_labels: tuple[str, ...] = ()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One answer.

    ``code`` is set when it is no. ``approve`` are the ids of the policies that permit it only with an approval,
    ``redact`` the classes of findings to replace, ``labels`` what it puts on the data. ``reason`` and ``ask`` are the public texts of the policies that
    decided; ``cause`` is for operators only.
    """

    allowed: bool
    decision: Decision
    code: Code | None = None
    approve: tuple[str, ...] = ()
    redact: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    reason: str = ""
    ask: str = ""
    cause: str = ""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What the annotations of one policy say."""

    id: str
    effect: Literal["permit", "forbid"]
    reason: str
    ask: str = ""
    code: Code = Code.POLICY_DENIED
    approve: bool = False
    redact: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A request in Cedar's terms: three entity references, the context, and the entities they speak of (Cedar's JSON)."""

    principal: dict[str, str]
    action: dict[str, str]
    resource: dict[str, str]
    context: dict[str, Any]
    entities: list[dict[str, Any]]


# Cedar's terms


def project(request: PolicyRequest) -> Question:
    """``request`` for Cedar. Entity ids are data in structures of their own, never parts of a text that Cedar parses."""
    user, caller = _uid("User", request.user), _uid("Agent", request.caller)
    target, parent = _target(request)
    entities = {
        ("User", request.user): _entity(
            user, {"name": request.user, "tenant": request.tenant, "roles": list(request.roles)}
        ),
        (parent["uid"]["type"], request.resource.name): parent,
        (target["uid"]["type"], str(request.resource)): target,
        # Last: where an agent calls itself, it is the caller.
        ("Agent", request.caller): _entity(caller, {"name": request.caller, "tier": request.caller_tier}),
    }
    return Question(
        principal=caller,
        action=_uid("Action", request.action),
        resource=target["uid"],
        context={"user": {"__entity": user}, **_facts(request)},
        entities=list(entities.values()),
    )


def _facts(request: PolicyRequest) -> dict[str, Any]:
    return {
        "depth": request.depth,
        "actors": list(request.actors),
        "tiers": list(request.tiers),
        "findings": list(request.findings),
        "finding_classes": sorted({class_of(kind) for kind in request.findings}),
        "labels": list(request.labels),
        "target_labels": list(request.target_labels),
        "labels_mixed": list(mixed({*request.labels, *request.target_labels})),
        "confidentiality": level(request.labels),
        "trusted": trusted(request.labels),
        "left_usd_micros": request.left.usd_micros,
        "left_tokens": request.left.tokens,
        "left_calls": request.left.calls,
        "now_hour": request.now % _DAY // _HOUR,
        "now_weekday": (request.now // _DAY + _THURSDAY) % 7 + 1,
    }


def _target(request: PolicyRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tool or skill, and the server or agent it belongs to."""
    resource, hints = request.resource, request.annotations
    if resource.kind == "agent":
        parent = _entity(_uid("Agent", resource.name), {"name": resource.name, "tier": request.target_tier})
        attrs: dict[str, Any] = {"name": resource.op, "agent": resource.name, "tier": request.target_tier}
        return _entity(_uid("Skill", str(resource)), attrs, parent["uid"]), parent
    parent = _entity(_uid("Server", resource.name), {"name": resource.name})
    attrs = {
        "name": resource.op,
        "server": resource.name,
        "tier": request.target_tier,
        "readOnly": hints.read_only,
        "destructive": hints.destructive,
        "idempotent": hints.idempotent,
        "openWorld": hints.open_world,
    }
    return _entity(_uid("Tool", str(resource)), attrs, parent["uid"]), parent


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}


def _entity(uid: dict[str, str], attrs: dict[str, Any], *parents: dict[str, str]) -> dict[str, Any]:
    return {"uid": uid, "attrs": attrs, "parents": list(parents)}


# Which facts matter


def facts_read(policies: Iterable[dict[str, Any]]) -> frozenset[str]:
    """The attributes of ``context`` that policies (in Cedar's JSON form) can read; all of them where that is unclear."""
    read: set[str] = set()
    pending: list[Any] = list(policies)
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending.extend(node)
        elif isinstance(node, dict):
            access = node.get(".")
            if len(node) == 1 and isinstance(access, dict) and access.get("left") == {"Var": "context"}:
                read.add(str(access.get("attr")))
            elif node.get("Var") == "context":
                return frozenset(ATTRIBUTES["context"])
            else:
                pending.extend(node.values())
    return frozenset(read)


def relevant(request: PolicyRequest, read: frozenset[str]) -> PolicyRequest:
    """``request`` without the budget and time of day that no policy reads, so that equal questions look equal.

    Raises TypeError for a budget or a time that is none: what is left out is not checked later.
    """
    if type(request.now) is not int or request.now < 0 or type(request.left) is not Budget:
        raise TypeError("a question without a time or a budget")
    # INVARIANT: this changes no decision (test_a_cached_decision_is_the_one_that_would_be_made_now).
    hour = request.now - request.now % _HOUR if read & NOW else 0
    return msgspec.structs.replace(request, left=request.left if read & LEFT else ZERO, now=hour)


# Answers


def verdict_of(allowed: bool, rules: Iterable[Rule], revision: str) -> Verdict:
    """The answer when Cedar decided and ``rules`` are the policies that determined it; none, when nothing permitted it."""
    deciding = sorted(rules, key=lambda rule: rule.id)
    decision = Decision("allow" if allowed else "deny", tuple(rule.id for rule in deciding), revision)
    if not allowed:
        # What was found is only the whole reason where every forbid says so; else removing it would not help.
        content = bool(deciding) and all(rule.code is Code.CONTENT_DENIED for rule in deciding)
        code = Code.CONTENT_DENIED if content else Code.POLICY_DENIED
        return Verdict(allowed=False, decision=decision, code=code, reason=_reasons(deciding), ask=_asks(deciding))
    approve = [rule for rule in deciding if rule.approve]
    redact = sorted({name for rule in deciding for name in rule.redact})
    return Verdict(
        allowed=True,
        decision=decision,
        approve=tuple(rule.id for rule in approve),
        redact=tuple(redact),
        labels=tuple(sorted(normal(label for rule in deciding for label in rule.labels))),
        reason=_reasons(approve or deciding),
        ask=_asks(approve or deciding),
    )


def undecided(revision: str, cause: str) -> Verdict:
    """The answer when there was an error: a forbid that errs is skipped by Cedar, so any error at all denies."""
    return Verdict(
        allowed=False,
        code=Code.POLICY_DENIED,
        decision=Decision("deny", (UNDECIDED,), revision),
        reason="the policies could not be evaluated for it, and what cannot be decided is denied",
        ask="tell an operator: the policies need a correction",
        cause=cause,
    )


UNDECIDED: Final = "policy.error"
"""Stands for a policy's id in a decision that failed."""


def _reasons(rules: Iterable[Rule]) -> str:
    return "; ".join(dict.fromkeys(rule.reason for rule in rules))


def _asks(rules: Iterable[Rule]) -> str:
    return "; ".join(dict.fromkeys(rule.ask for rule in rules if rule.ask))
