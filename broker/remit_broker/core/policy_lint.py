"""What is wrong with policies beside being invalid: rules that never decide, and such that permit more than they seem to.

Found by the form of a policy, never by guessing: a rule is *unreachable* where its own condition is never true as it is written, and
*shadowed* where a rule that decides alike, or a forbid, covers all that it speaks of, unconditionally.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from remit_broker.core.policy import ACTIONS, Rule
from remit_broker.core.unseen import conjuncts

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
    if _never(one.body):
        yield Finding(
            one.where, one.rule.id, "error", "it never decides: its condition is never true", "mend or delete it"
        )
    if one.rule.effect == "permit" and one.body["action"]["op"] == "All":
        yield Finding(
            one.where, one.rule.id, "warning",
            "it names no action, so it permits detaching, listing and approving as well",
            f'name the actions: action in [{", ".join(_quoted(name) for name in ACTIONS[:2])}]',
        )  # fmt: skip


def _beside(one: Written, all_: list[Written]) -> Iterable[Finding]:
    for other in all_:
        holds = _always(other.body) or other.body["conditions"] == one.body["conditions"]
        if other is one or other.within not in ("", one.within) or not holds or not _covers(other.body, one.body):
            continue
        if other.rule.effect == "forbid" and one.rule.effect == "permit":
            yield Finding(
                one.where, one.rule.id, "error", f"it never permits: {other.rule.id} at {other.where} forbids all it speaks of",
                "narrow the forbid, or delete this",
            )  # fmt: skip
            return
        if other.rule.effect == one.rule.effect and not _demands(one.rule) and _first(other, one):
            yield Finding(
                one.where, one.rule.id, "warning", f"it changes nothing: {other.rule.id} at {other.where} says all of it",
                "delete one of the two, or narrow the other",
            )  # fmt: skip
            return


def _first(other: Written, one: Written) -> bool:
    """Of two that cover each other, the second one is reported."""
    alike = _always(one.body) or one.body["conditions"] == other.body["conditions"]
    if not (alike and _covers(one.body, other.body) and one.within == other.within) or _demands(other.rule):
        return True
    return other.where < one.where or (other.where == one.where and other.rule.id < one.rule.id)


def _demands(rule: Rule) -> bool:
    return bool(rule.approve or rule.redact or rule.cap or rule.label)


def _never(body: dict[str, Any]) -> bool:
    return any(
        condition["body"] == {"Value": condition["kind"] == "unless"} or _contradicts(condition)
        for condition in body["conditions"]
    )


def _contradicts(condition: dict[str, Any]) -> bool:
    """Whether a ``when`` asks of one thing that it is two different values at once."""
    if condition["kind"] != "when":
        return False
    said: dict[str, Any] = {}
    for part in conjuncts(condition["body"]):
        if not (isinstance(part, dict) and isinstance(equal := part.get("=="), dict)):
            continue
        left, right = equal["left"], equal["right"]
        if not isinstance(right, dict) or "Value" not in right:
            continue
        if said.setdefault(repr(left), right) != right:
            return True
    return False


def _always(body: dict[str, Any]) -> bool:
    return all(condition["body"] == {"Value": condition["kind"] == "when"} for condition in body["conditions"])


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
