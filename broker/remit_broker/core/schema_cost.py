"""How much work a JSON Schema can make out of a value, estimated from above before the schema is used.

A validator cannot be interrupted, and a schema of a few hundred bytes can ask for more steps than there is time: two
alternatives that both recurse into the same member double the work with every level of the value. The estimate counts
how often, at most, one item of a value is looked at when it lies a given number of levels deep.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

DEEPEST: Final = 64
"""Levels that are looked at: no deeper JSON is accepted (``remit_schemas.canonical.MAX_DEPTH``)."""

ENDLESS: Final = 10**12
"""Stands for any number of steps that is out of the question."""

_HERE: Final = ("not", "if", "then", "else")
_HERE_LISTS: Final = ("allOf", "anyOf", "oneOf")
_HERE_MAPS: Final = ("dependentSchemas", "dependencies")
_KINDS: Final = (
    # Of the first two (single subschemas; lists or maps of them), one at most looks at a given item. Then those that also may.
    (
        ("additionalProperties",),
        (),
        ("properties",),
        ("unevaluatedProperties", "propertyNames"),
        ("patternProperties",),
    ),
    (("items", "additionalItems"), ("prefixItems", "items"), (), ("contains", "unevaluatedItems"), ()),
)
"""What looks at the members of an object, and at the items of an array: one value is only one of the two."""
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")


class _Node:
    """One subschema: what else looks at the same item; then for members and for items below, which one or which all do."""

    __slots__ = ("all_below", "here", "one_below")

    def __init__(self) -> None:
        self.here: list[int] = []
        self.one_below: tuple[list[int], ...] = ([], [])
        self.all_below: tuple[list[int], ...] = ([], [])

    def below(self, kind: int, above: list[int]) -> int:
        """How often this subschema itself makes an item below be looked at."""
        return max((above[i] for i in self.one_below[kind]), default=0) + sum(above[i] for i in self.all_below[kind])


def looks(schema: dict[str, Any]) -> tuple[int, ...]:
    """For each depth from 0 to 64, how often an item at that depth is looked at, at most; ``ENDLESS`` where out of hand."""
    nodes = _graph(schema)
    order = _order(nodes)
    if order is None:
        return (ENDLESS,)
    looked = _sums(nodes, order, [1] * len(nodes))
    table = [looked[0]]
    while len(table) <= DEEPEST and table[-1] < ENDLESS and any(looked):
        members, items = (_sums(nodes, order, [node.below(kind, looked) for node in nodes]) for kind in (0, 1))
        looked = [max(pair) for pair in zip(members, items, strict=True)]
        table.append(looked[0])
    return tuple(table)


def _sums(nodes: list[_Node], order: list[int], own: list[int]) -> list[int]:
    """For each subschema ``own`` of it and of all that look at the same item."""
    sums = [0] * len(nodes)
    for index in order:
        sums[index] = min(own[index] + sum(sums[i] for i in nodes[index].here), ENDLESS)
    return sums


def size_of(value: Any) -> tuple[int, int]:
    """The number of items in ``value``, itself among them, and how many levels deep it goes."""
    items, depth, level = 1, 0, [value]
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        items += len(below)
        depth += bool(below)
        level = below
    return items, depth


def _graph(schema: dict[str, Any]) -> list[_Node]:
    """The subschemas by index, the whole schema first. A reference that leads nowhere known counts as the whole schema."""
    seen: dict[int, int] = {}
    nodes: list[_Node] = []
    pending: list[tuple[int, Any]] = []

    def index_of(sub: Any) -> int:
        if id(sub) not in seen:
            seen[id(sub)] = len(nodes)
            nodes.append(_Node())
            pending.append((seen[id(sub)], sub))
        return seen[id(sub)]

    index_of(schema)
    anchors = dict(_anchors(schema))
    while pending:
        index, sub = pending.pop()
        if not isinstance(sub, dict):
            continue
        node = nodes[index]
        node.here = [index_of(part) for part in _parts(sub, _HERE, _HERE_LISTS, _HERE_MAPS)]
        node.here += [
            index_of(_resolve(schema, anchors, sub[key])) for key in _REFERENCES if isinstance(sub.get(key), str)
        ]
        node.one_below = tuple([index_of(p) for p in _parts(sub, one, many, named)] for one, many, named, *_ in _KINDS)
        node.all_below = tuple([index_of(p) for p in _parts(sub, one, (), named)] for *_, one, named in _KINDS)
    return nodes


def _parts(
    sub: dict[str, Any], single: tuple[str, ...], lists: tuple[str, ...], maps: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    for key in single:
        if isinstance(sub.get(key), dict):
            yield sub[key]
    for key in lists:
        if isinstance(sub.get(key), list):
            yield from (part for part in sub[key] if isinstance(part, dict))
    for key in maps:
        if isinstance(sub.get(key), dict):
            yield from (part for part in sub[key].values() if isinstance(part, dict))


def _anchors(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    pending = [schema]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            for key in ("$anchor", "$dynamicAnchor"):
                if isinstance(item.get(key), str):
                    yield "#" + item[key], item
            for key in ("$id", "id"):
                if isinstance(item.get(key), str):
                    yield item[key].rstrip("#"), item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _resolve(schema: dict[str, Any], anchors: dict[str, dict[str, Any]], reference: str) -> Any:
    if reference in anchors:
        return anchors[reference]
    target: Any = schema
    base, sign, fragment = reference.partition("#")
    if base:
        target = anchors.get(base, schema)
    if sign and fragment.startswith("/"):
        for token in fragment[1:].split("/"):
            token = token.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict):
                target = target.get(token)
            elif isinstance(target, list) and token.isdecimal() and int(token) < len(target):
                target = target[int(token)]
            else:
                return schema
    return target if isinstance(target, dict) else schema


def _order(nodes: list[_Node]) -> list[int] | None:
    """Indices such that what a node needs at its own depth comes before it; None where subschemas go round in a circle."""
    order: list[int] = []
    state = [0] * len(nodes)
    for root in range(len(nodes)):
        stack = [(root, iter(nodes[root].here))] if state[root] == 0 else []
        state[root] = state[root] or 1
        while stack:
            index, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                state[index] = 2
                order.append(index)
                stack.pop()
            elif state[following] == 1:
                return None
            elif state[following] == 0:
                state[following] = 1
                stack.append((following, iter(nodes[following].here)))
    return order
