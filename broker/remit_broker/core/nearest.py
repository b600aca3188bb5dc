"""The smallest change that would permit a call, found by trying: one thing about the call at a time, then two, and what policy
would have to let pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from remit_broker.core.findings import class_of
from remit_broker.core.policy import PolicyRequest, Verdict
from remit_schemas.budget import Budget
from remit_schemas.canonical import MAX_INTEGER

MAX_TRIES: Final = 600
MAX_WAYS: Final = 6
_DAY: Final = 86400

Ask = Callable[[PolicyRequest, frozenset[str]], Verdict]
"""The verdict without some policies."""
Fields = dict[str, Any]


class Mentioned(msgspec.Struct, frozen=True, kw_only=True):
    """The names that policies speak of, by entity type, and the texts that they compare with."""

    entities: dict[str, tuple[str, ...]] = {}
    texts: tuple[str, ...] = ()


def mentioned(bodies: Iterable[dict[str, Any]]) -> Mentioned:
    """What policies in Cedar's JSON form mention."""
    entities: dict[str, set[str]] = {}
    texts: set[str] = set()
    pending: list[Any] = list(bodies)
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            if set(node) == {"type", "id"}:
                entities.setdefault(str(node["type"]), set()).add(str(node["id"]))
            if isinstance(value := node.get("Value"), str):
                texts.add(value)
            pending += node.values()
    return Mentioned(
        entities={kind: tuple(sorted(names)) for kind, names in entities.items()}, texts=tuple(sorted(texts))
    )


def ways(request: PolicyRequest, ask: Ask, known: Mentioned) -> list[str]:
    """What would have had to be otherwise, each enough by itself; the smallest changes there are, up to :data:`MAX_WAYS`."""
    edits = list(_edits(request, known))
    tries = 0
    for size in (1, 2):
        found: list[str] = []
        for chosen in combinations(edits, size):
            tries += 1
            if tries > MAX_TRIES or len(found) >= MAX_WAYS:
                break
            fields = {name: value for _, one in chosen for name, value in one.items()}
            verdict = ask(replace(request, **fields), frozenset())
            if verdict.allowed and not verdict.approve:
                found.append(" and ".join(said for said, _ in chosen))
        if found:
            return found
    return []


def lifted(request: PolicyRequest, ask: Ask) -> tuple[str, ...]:
    """The policies without which it would be permitted (perhaps by an approval); none where nothing permits it at all."""
    without: set[str] = set()
    verdict = ask(request, frozenset())
    while not verdict.allowed and verdict.decision.rules and not without >= set(verdict.decision.rules):
        without |= set(verdict.decision.rules)
        verdict = ask(request, frozenset(without))
    return tuple(sorted(without)) if verdict.allowed else ()


def _edits(request: PolicyRequest, known: Mentioned) -> Iterator[tuple[str, Fields]]:
    entities = known.entities
    for name in sorted({class_of(kind) for kind in request.findings}):
        rest = tuple(kind for kind in request.findings if class_of(kind) != name)
        yield f"without what was found of the kind {name}", {"findings": rest}
    for label in request.labels:
        yield f"without data labelled {label} in the chain", {"labels": _less(request.labels, label)}
    for tier in request.tiers if len(request.tiers) > 1 else ():
        if tier != request.caller_tier:
            yield f"without an agent of the tier {tier} in the chain", {"tiers": _less(request.tiers, tier)}
    for tier in sorted({"standard", *entities.get("Tier", ())} - {request.caller_tier}):
        yield f"by an agent of the tier {tier}", {"caller_tier": tier, "tiers": (tier,)}
    if request.resource.kind == "mcp" and not request.annotations.read_only:
        reads = replace(request.annotations, read_only=True, destructive=False)
        yield "with a tool that only reads", {"annotations": reads}
        if request.annotations.destructive:
            mild = replace(request.annotations, destructive=False)
            yield "with a tool that destroys nothing", {"annotations": mild}
    for depth in range(request.depth - 1, 0, -1):
        yield f"at depth {depth}", {"depth": depth}
    if request.loops:
        yield "where the target is not in the chain already", {"loops": 0}
    for role in sorted({*entities.get("Role", ()), *_words(known)} - {*request.roles}):
        yield f"for a user with the role {role}", {"roles": (*request.roles, role)}
    for group in sorted({*entities.get("Group", ())} - {*request.groups}):
        yield f"for a user in the group {group}", {"groups": (*request.groups, group)}
    for agent in sorted({*entities.get("Agent", ())} - {request.caller}):
        yield f"by the agent {agent}", {"caller": agent}
    for name in sorted(_words(known) - {request.environment}):
        yield f"in the environment {name}", {"environment": name}
    yield "with more of the budget left", {"left": Budget(MAX_INTEGER, MAX_INTEGER, MAX_INTEGER)}
    start = request.now - request.now % _DAY
    for hour in (9, 12, 15, 21, 3):
        yield f"at {hour}:00 UTC", {"now": start + hour * 3600}
    for days in range(1, 7):
        yield f"{days} day{'s' if days > 1 else ''} later", {"now": request.now + days * _DAY}


def _less(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(one for one in names if one != name)


def _words(known: Mentioned) -> set[str]:
    """Texts that could be the name of a role: compared with, without a wildcard or a place."""
    return {text for text in known.texts if text and "/" not in text and "." not in text}
