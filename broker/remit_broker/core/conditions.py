"""What the conditions of a policy say, as far as their form tells: parts that all have to hold, and numbers within bounds.

Enough to see that one policy holds wherever another does (:func:`implies`), or nowhere at all (:func:`contradicts`). What cannot be
seen by form is taken for possible: neither is ever said of a policy of which it is not so. A proof about the meaning of policies
would need a solver; the engine that is used has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from remit_broker.core.unseen import conjuncts

_HIGHEST: Final = 2**63 - 1
_LOWEST: Final = -(2**63)
_SWAPPED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "=="}
_DENIED: Final = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}


class Part(NamedTuple):
    """Something that has to hold, or (``denied``) has not to. ``text`` is the canonical JSON of it."""

    denied: bool
    text: str


class Within(NamedTuple):
    """A number, by the canonical JSON of what it is, that has to be between two others, both included."""

    what: str
    low: int
    high: int


class Said(NamedTuple):
    """All that a policy's conditions demand at once."""

    parts: frozenset[Part]
    bounds: dict[str, Within]


def said(body: dict[str, Any]) -> Said:
    """What the conditions of a policy in Cedar's JSON form demand."""
    parts: set[Part] = set()
    bounds: dict[str, Within] = {}
    for denied, node in _demands(body["conditions"]):
        if node == {"Value": not denied}:
            continue
        number = _number(denied, node)
        if number is None:
            parts.add(Part(denied, _text(node)))
        else:
            known = bounds.get(number.what, Within(number.what, _LOWEST, _HIGHEST))
            bounds[number.what] = Within(number.what, max(known.low, number.low), min(known.high, number.high))
    return Said(frozenset(parts), bounds)


def implies(narrow: Said, wide: Said) -> bool:
    """Whether ``wide`` holds wherever ``narrow`` does."""
    return wide.parts <= narrow.parts and all(
        (mine := narrow.bounds.get(what)) is not None and one.low <= mine.low and mine.high <= one.high
        for what, one in wide.bounds.items()
    )


def contradicts(one: Said) -> bool:
    """Whether it never holds: it says something and the opposite, or leaves no number, or asks one thing to be two."""
    values: dict[str, str] = {}
    for part in one.parts:
        if Part(not part.denied, part.text) in one.parts or part == Part(False, _FALSE) or part == Part(True, _TRUE):
            return True
        equal = json.loads(part.text).get("==") if not part.denied else None
        if isinstance(equal, dict) and isinstance(equal["right"], dict) and "Value" in equal["right"]:
            right = _text(equal["right"])
            if values.setdefault(_text(equal["left"]), right) != right:
                return True
    return any(number.low > number.high for number in one.bounds.values())


def _demands(conditions: Iterable[dict[str, Any]]) -> Iterator[tuple[bool, Any]]:
    """Each part with whether it is denied: of ``unless { a || b }`` neither may hold."""
    for condition in conditions:
        yield from _parts(condition["kind"] == "unless", condition["body"])


def _parts(denied: bool, node: Any) -> Iterator[tuple[bool, Any]]:
    if isinstance(node, dict) and isinstance(node.get("!"), dict):
        yield from _parts(not denied, node["!"]["arg"])
    elif not denied:
        for part in conjuncts(node):
            if part is node:
                yield denied, node
            else:
                yield from _parts(denied, part)
    elif isinstance(node, dict) and isinstance(either := node.get("||"), dict):
        yield from _parts(denied, either["left"])
        yield from _parts(denied, either["right"])
    else:
        yield denied, node


def _number(denied: bool, node: Any) -> Within | None:
    """``context.depth > 4`` and its like; None for what is no comparison with a whole number."""
    if not (isinstance(node, dict) and len(node) == 1):
        return None
    ((op, sides),) = node.items()
    if op not in _SWAPPED or not isinstance(sides, dict):
        return None
    left, right = sides["left"], sides["right"]
    if _whole(left) is not None:
        left, right, op = right, left, _SWAPPED[op]
    bound = _whole(right)
    if bound is None or (denied and op == "=="):
        return None
    op = _DENIED[op] if denied else op
    low = {">": bound + 1, ">=": bound, "==": bound}.get(op, _LOWEST)
    high = {"<": bound - 1, "<=": bound, "==": bound}.get(op, _HIGHEST)
    return Within(_text(left), low, high)


def _whole(node: Any) -> int | None:
    value = node.get("Value") if isinstance(node, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(node: Any) -> str:
    return json.dumps(node, sort_keys=True)


_TRUE: Final = _text({"Value": True})
_FALSE: Final = _text({"Value": False})
ALWAYS: Final = Said(frozenset(), {})
"""No condition at all."""
