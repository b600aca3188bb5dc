"""The projection of a question into Cedar's terms, and which parts of a question can matter at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from remit_broker.core.arguments import NOTHING, Arguments
from remit_broker.core.findings import class_of
from remit_broker.core.labels import level, mixed, trusted
from remit_broker.core.policy import PolicyRequest
from remit_schemas.budget import ZERO, Budget

ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    "User": ("groups", "name", "roles", "tenant"),
    "Agent": ("name", "tier"),
    "Server": ("name",),
    "Tool": ("destructive", "groups", "idempotent", "name", "openWorld", "readOnly", "server", "tier"),
    "Skill": ("agent", "name", "tier"),
    "context": (
        "actors", "args", "args_unprojected", "client", "confidentiality", "depth", "environment", "finding_classes",
        "findings", "labels", "labels_mixed", "left_calls", "left_tokens", "left_usd_micros", "loops", "now_hour",
        "now_weekday", "target_labels", "tiers", "trusted", "user",
    ),
    "context.args": ("flag_sets", "flags", "number_sets", "numbers", "text_sets", "texts"),
}  # fmt: skip
"""What the schema declares, for the messages of refused policies."""

LEFT: Final = frozenset({"left_usd_micros", "left_tokens", "left_calls"})
NOW: Final = frozenset({"now_hour", "now_weekday"})
ARGS: Final = frozenset({"args", "args_unprojected"})
_BAGS: Final = (
    ("texts", "Texts"), ("numbers", "Numbers"), ("flags", "Flags"),
    ("text_sets", "TextSets"), ("number_sets", "NumberSets"), ("flag_sets", "FlagSets"),
)  # fmt: skip
_BAG_ID: Final = "args"
_HOUR: Final = 3600
_DAY: Final = 24 * _HOUR
_THURSDAY: Final = 3
"""1970-01-01 was one; Monday is 0."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A request in Cedar's terms: three entity references, the context, and the entities they speak of (Cedar's JSON)."""

    principal: dict[str, str]
    action: dict[str, str]
    resource: dict[str, str]
    context: dict[str, Any]
    entities: list[dict[str, Any]]


def project(request: PolicyRequest) -> Question:
    """``request`` for Cedar. Entity ids are data in structures of their own, never parts of a text that Cedar parses."""
    user, caller = _uid("User", request.user), _uid("Agent", request.caller)
    target, parent = _target(request)
    entities = {
        ("User", request.user): _person(request, request.user, request.roles, request.groups),
        (parent["uid"]["type"], request.resource.name): parent,
        (target["uid"]["type"], str(request.resource)): target,
        # Last: where an agent calls itself, it is the caller.
        ("Agent", request.caller): _agent(request.caller, request.caller_tier),
    }
    principal = caller
    if request.action == "approve":
        # What is known of whoever decides is known now; of the one for whom it is decided, since the task was opened.
        principal = _uid("User", request.approver)
        entities["User", request.approver] = _person(
            request, request.approver, request.approver_roles, request.approver_groups
        )
    return Question(
        principal=principal,
        action=_uid("Action", request.action),
        resource=target["uid"],
        context={"user": {"__entity": user}, "args": _ARGS, **_facts(request)},
        entities=[*entities.values(), *_bags(request.args)],
    )


def _facts(request: PolicyRequest) -> dict[str, Any]:
    return {
        "depth": request.depth,
        "loops": request.loops,
        "actors": list(request.actors),
        "tiers": list(request.tiers),
        "args_unprojected": list(request.args.unprojected),
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
        "client": request.client,
        "environment": request.environment,
    }


def _target(request: PolicyRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tool or skill, and the server or agent it belongs to."""
    resource, hints = request.resource, request.annotations
    if resource.kind == "agent":
        parent = _agent(resource.name, request.target_tier)
        attrs: dict[str, Any] = {"name": resource.op, "agent": resource.name, "tier": request.target_tier}
        return _entity(_uid("Skill", str(resource)), attrs, parent["uid"]), parent
    parent = _entity(_uid("Server", resource.name), {"name": resource.name})
    attrs = {
        "name": resource.op,
        "server": resource.name,
        "groups": list(request.tool_groups),
        "tier": request.target_tier,
        "readOnly": hints.read_only,
        "destructive": hints.destructive,
        "idempotent": hints.idempotent,
        "openWorld": hints.open_world,
    }
    groups = [_uid("ToolGroup", name) for name in request.tool_groups]
    return _entity(_uid("Tool", str(resource)), attrs, parent["uid"], *groups), parent


def _person(request: PolicyRequest, name: str, roles: tuple[str, ...], groups: tuple[str, ...]) -> dict[str, Any]:
    attrs = {"name": name, "tenant": request.tenant, "roles": list(roles), "groups": list(groups)}
    parents = [*(_uid("Role", role) for role in roles), *(_uid("Group", group) for group in groups)]
    return _entity(_uid("User", name), attrs, *parents)


def _agent(name: str, tier: str) -> dict[str, Any]:
    return _entity(_uid("Agent", name), {"name": name, "tier": tier}, _uid("Tier", tier))


def _bags(args: Arguments) -> list[dict[str, Any]]:
    """The bags that hold something: of one that is missing every tag is missing."""
    if args == NOTHING:
        return []
    # INVARIANT: a tag is a text, an integer, a boolean or a set of those, and no object, so no argument becomes an entity or
    # an extension value (test_no_argument_makes_an_entity_changes_another_or_gives_no_decision).
    return [
        {"uid": _uid(kind, _BAG_ID), "attrs": {}, "parents": [], "tags": bag}
        for name, kind in _BAGS
        if (bag := getattr(args, name))
    ]


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}


_ARGS: Final = {name: {"__entity": _uid(kind, _BAG_ID)} for name, kind in _BAGS}


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
    """``request`` without the budget, the time of day and the arguments that no policy reads, so that equal questions look equal.

    Raises TypeError for a budget, a time or arguments that are none: what is left out is not checked later.
    """
    if type(request.now) is not int or request.now < 0 or type(request.left) is not Budget:
        raise TypeError("a question without a time or a budget")
    if type(request.args) is not Arguments:
        raise TypeError("a question whose arguments were not projected")
    # INVARIANT: this changes no decision (test_a_cached_decision_is_the_one_that_would_be_made_now).
    hour = request.now - request.now % _HOUR if read & NOW else 0
    return msgspec.structs.replace(
        request,
        left=request.left if read & LEFT else ZERO,
        now=hour,
        args=request.args if read & ARGS else NOTHING,
    )
