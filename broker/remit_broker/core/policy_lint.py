"""What is wrong with policies beside being invalid: rules that never decide, and such that permit more than they seem to.

Found by the form of a policy, never by guessing: a rule is *unreachable* where its own conditions cannot hold together, and *shadowed*
where a rule that decides alike, or a forbid, covers its scope and holds wherever it does (:mod:`remit_broker.core.conditions`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from remit_broker.core.conditions import ALWAYS, contradicts, implies, said
from remit_broker.core.policy import ACTIONS, Rule
from remit_broker.core.question import ARGS, facts_read

Level = Literal["error", "warning"]


class Finding(NamedTuple):
    """Something about one policy. ``level``: whether ``remit policy check`` fails by it."""

    where: str
    policy: str
    level: Level
    what: str
    ask: str


class Written(NamedTuple):
    """A policy as far as it matters here: where it stands, whom it is about (``""``: all), its annotations and Cedar's JSON of it."""

    where: str
    within: str
    rule: Rule
    body: dict[str, Any]


def lint(policies: Iterable[Written]) -> list[Finding]:
    """The findings, in the order of the policies."""
    written = list(policies)
    return [found for one in written for found in (*_alone(one), *_beside(one, written))]


def _alone(one: Written) -> Iterable[Finding]:
    if contradicts(said(one.body)) and not _sees_worse(one):
        yield Finding(
            one.where,
            one.rule.id,
            "error",
            "it never decides: its conditions are never true together",
            "mend or delete it",
        )
    if one.rule.effect == "permit" and one.body["action"]["op"] == "All":
        yield Finding(
            one.where, one.rule.id, "warning",
            "it names no action, so it permits detaching, listing and approving as well",
            f'name the actions: action in [{", ".join(_quoted(name) for name in ACTIONS[:2])}]',
        )  # fmt: skip


def _beside(one: Written, all_: list[Written]) -> Iterable[Finding]:
    for other in all_:
        if other is one or other.within not in ("", one.within) or not _covers(other.body, one.body):
            continue
        # INVARIANT: no rule is said to be shadowed that decides something (test_a_rule_that_does_something_is_left_alone).
        if not _within(one, other):
            continue
        if other.rule.effect == "forbid" and one.rule.effect == "permit":
            yield Finding(
                one.where, one.rule.id, "error", f"it never permits: {other.rule.id} at {other.where} forbids all it permits",
                "narrow the forbid, or delete this",
            )  # fmt: skip
            return
        alike = other.rule.effect == one.rule.effect and other.rule.code == one.rule.code
        if alike and not _demands(one.rule) and _first(other, one):
            yield Finding(
                one.where, one.rule.id, "warning", f"it changes nothing: {other.rule.id} at {other.where} says all of it",
                "delete one of the two, or narrow the other",
            )  # fmt: skip
            return


def _within(one: Written, other: Written) -> bool:
    """Whether ``other`` holds wherever ``one`` does, as far as conditions go."""
    wide = said(other.body)
    if contradicts(wide) or (_sees_worse(one) and wide != ALWAYS):
        return False
    return implies(said(one.body), wide)


def _sees_worse(one: Written) -> bool:
    """Whether it also holds where it cannot see: a forbid does that looks at arguments, beyond what is written."""
    return one.rule.effect == "forbid" and bool(facts_read([one.body]) & ARGS)


def _first(other: Written, one: Written) -> bool:
    """Of two that cover each other, the second one is reported."""
    each = _within(other, one) and _covers(one.body, other.body) and one.within == other.within
    if not each or _demands(other.rule):
        return True
    return other.where < one.where or (other.where == one.where and other.rule.id < one.rule.id)


def _demands(rule: Rule) -> bool:
    return bool(rule.approve or rule.redact or rule.cap or rule.label)


def _covers(wide: dict[str, Any], narrow: dict[str, Any]) -> bool:
    return all(_wider(wide[part], narrow[part]) for part in ("principal", "action", "resource"))


def _wider(wide: dict[str, Any], narrow: dict[str, Any]) -> bool:
    """Whether a part of a scope covers another by its form alone."""
    if wide["op"] == "All" or wide == narrow:
        return True
    ours, theirs = _named(wide), _named(narrow)
    within = wide["op"] == "in" or (wide["op"] == "==" and narrow["op"] == "==")
    return ours is not None and theirs is not None and theirs <= ours and within and narrow["op"] in ("==", "in")


def _named(part: dict[str, Any]) -> frozenset[tuple[str, str]] | None:
    entities = part.get("entities") or ([part["entity"]] if "entity" in part else None)
    return None if entities is None else frozenset((one["type"], one["id"]) for one in entities)


def _quoted(action: str) -> str:
    return f'Action::"{action}"'
