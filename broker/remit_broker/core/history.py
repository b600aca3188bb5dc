"""What a record keeps of the question that policy was asked, and that question again. Arguments are not kept, only what was found."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec.structs import replace

from remit_broker.core.findings import ABRIDGED
from remit_broker.core.policy import Action, PolicyRequest
from remit_broker.core.registry import Annotations
from remit_broker.core.replay import Past
from remit_broker.core.times import seconds_of
from remit_broker.core.what_if import Outcome
from remit_schemas.budget import ZERO, Budget
from remit_schemas.names import parse_resource
from remit_schemas.records import Facts

MANY: Final = 64
"""Names in all from which on the size of what is kept is looked at."""
MAX_FACTS: Final = 4096
"""Bytes: beyond, only what is bounded by itself is kept, so that no record grows too large by them."""
_HINTS: Final = (("r", "read_only"), ("d", "destructive"), ("i", "idempotent"), ("o", "open_world"))


def facts_of(request: PolicyRequest) -> Facts:
    """What of ``request`` no other field of a refusal's record says."""
    found = Facts(
        action=request.action,
        tier=request.caller_tier,
        target_tier=request.target_tier,
        hints="".join(letter for letter, name in _HINTS if getattr(request.annotations, name)),
        actors=request.actors,
        tiers=request.tiers,
        roles=request.roles,
        groups=request.groups,
        tool_groups=request.tool_groups,
        depth=request.depth,
        loops=request.loops,
        labels=request.labels,
        brings=request.target_labels,
        left=request.left,
        client=request.client,
        environment=request.environment,
    )
    names = len(found.roles) + len(found.groups) + len(found.labels) + len(found.actors)
    if names > MANY and len(msgspec.json.encode(found)) > MAX_FACTS:
        return replace(found, roles=(), groups=(), labels=(), brings=(), partial=True)
    return found


def opening(facts: Facts | None, depth: int) -> Facts | None:
    """``facts`` for a record that says its ``depth`` and labels itself: in a detached task policy is told a greater depth."""
    return (
        None
        if facts is None
        else replace(facts, depth=0 if facts.depth == depth else facts.depth, labels=(), brings=())
    )


def past_of(raw: dict[str, Any], user: str, seq: int = 0) -> Past | None:
    """The decision in a ``hop.opened`` or ``hop.refused`` record; None where policy was not asked, or too little was kept."""
    said, facts = raw.get("decision"), raw.get("facts")
    if not isinstance(said, dict) or not isinstance(facts, dict) or facts.get("partial"):
        return None
    kept = msgspec.convert(facts, Facts)
    opened = raw["kind"] == "hop.opened"
    question = PolicyRequest(
        action=msgspec.convert(kept.action, Action),
        tenant=raw["tenant"],
        user=user,
        caller=raw["caller"],
        caller_tier=kept.tier,
        resource=parse_resource(raw["resource"]),
        target_tier=kept.target_tier,
        depth=(kept.depth or raw["depth"]) if opened else kept.depth,
        left=kept.left or ZERO,
        now=int(seconds_of(raw["at"])),
        annotations=Annotations(**{name: letter in kept.hints for letter, name in _HINTS}),
        roles=kept.roles,
        groups=kept.groups,
        actors=kept.actors,
        tiers=kept.tiers,
        loops=kept.loops,
        tool_groups=kept.tool_groups,
        findings=tuple(sorted({one["kind"] for one in raw["findings"]})),
        # Policy is asked before an approval takes labels away.
        labels=tuple(sorted({*raw["labels"], *raw.get("lowered", ())})) if opened else kept.labels,
        target_labels=tuple(raw.get("brings", ())) if opened else kept.brings,
        client=kept.client,
        environment=kept.environment,
    )
    return Past(
        seq=seq,
        txn=raw["txn"],
        hop=raw["hop"],
        at=raw["at"],
        then=_then(raw, said),
        rules=tuple(said["rules"]),
        question=question,
        count=1 if opened else raw["count"],
    )


def answered(raw: dict[str, Any], opened: dict[str, Any], user: str, seq: int = 0) -> Past | None:
    """The decision about the answer in a ``hop.closed`` or ``hop.parked`` record, of the hop that ``opened``; None as :func:`past_of`.

    What is known of agents and target is what was known at the opening. The labels that policy was asked about are between those of
    the opening and those of the end, to which policy and what was found may have added: both are asked where they differ.
    """
    said, before = raw.get("decision"), past_of(opened, user)
    kinds = {one["kind"] for one in raw.get("findings", ())}
    if not isinstance(said, dict) or before is None or ABRIDGED in kinds:
        return None
    least = {*opened["labels"], *opened.get("brings", ())}.difference(raw.get("lowered", ()))
    question = replace(
        before.question,
        action="release",
        findings=tuple(sorted(kinds)),
        labels=tuple(sorted(raw["labels"])),
        left=before.question.left.minus(msgspec.convert(opened["budget"], Budget)),
    )
    return Past(
        seq=seq,
        txn=raw["txn"],
        hop=raw["hop"],
        at=raw["at"],
        then="deny" if said["effect"] == "deny" else "would_deny" if said["effect"] == "would_deny" else "allow",
        rules=tuple(said["rules"]),
        question=question,
        other=None if least >= {*raw["labels"]} else replace(question, labels=tuple(sorted(least))),
    )


def _then(raw: dict[str, Any], said: dict[str, Any]) -> Outcome:
    if said["effect"] == "would_deny":
        return "would_deny"
    if said["effect"] == "deny":
        return "deny"
    # A call that waits for an approval, or was made with one: policy demanded it.
    demanded = raw.get("stage") == "approve" or bool(raw.get("approval"))
    return "approve" if demanded else "allow"
