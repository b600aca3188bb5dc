"""Arguments as policy may see them: scalars and sets of scalars, each by its place (RFC 6901), in one bag for each type.

What becomes visible is decided by the tool's own schema, which is pinned, and never by what a caller sends: a value is in a bag
only where the schema declares that place with that type, under the name that the schema has for it. Values are data: Cedar's
JSON has escapes only for objects, and no object is ever handed to it. What cannot be projected is named by its place, so that a
policy can refuse it: a fraction, a null, a text or list that is too long, what no schema declares, what may be one of several
types, and an array of anything but scalars of one type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from remit_broker.core.findings import pointer

MAX_TEXT: Final = 4096
"""Longest text in characters."""
MAX_ITEMS: Final = 256
"""Most members of a set, and most places in all."""
MAX_TOTAL: Final = 64 * 1024
"""Most characters of all texts together."""
MAX_LEVELS: Final = 12
"""Schemas within schemas, and references one after the other."""
MAX_PLACES: Final = 2000
"""Places of one schema that are looked at."""
_LONG: Final = 2**63


class Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The projection. ``unprojected`` are the places of what is there and cannot be seen; ``""`` is the whole."""

    texts: dict[str, str] = {}
    numbers: dict[str, int] = {}
    flags: dict[str, bool] = {}
    text_sets: dict[str, tuple[str, ...]] = {}
    number_sets: dict[str, tuple[int, ...]] = {}
    flag_sets: dict[str, tuple[bool, ...]] = {}
    unprojected: tuple[str, ...] = ()


NOTHING: Final = Arguments()
"""Of a question without arguments."""
UNSEEN: Final = Arguments(unprojected=("",))
"""Nothing of them can be seen."""

Scalar = Literal["text", "number", "flag"]
_TYPES: Final[dict[str, Scalar]] = {"string": "text", "integer": "number", "number": "number", "boolean": "flag"}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What stands at one place: a scalar, a set of one kind of scalar, or an object with declared members."""

    scalar: Scalar | None = None
    items: Scalar | None = None
    members: dict[str, Plan] | None = None


UNKNOWN: Final = Plan()
"""What cannot be projected, whatever it is."""


# From a schema


def plan_of(schema: Mapping[str, Any]) -> Plan:
    """What is visible of arguments that fit ``schema``. Total: what is not understood is :data:`UNKNOWN`."""
    return _Reader(schema).plan(schema, 0, ())


class _Reader:
    """One schema being read, with the number of places that may still be looked at."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = MAX_PLACES

    def plan(self, schema: Any, level: int, through: tuple[str, ...]) -> Plan:
        self._left -= 1
        if not isinstance(schema, Mapping) or level > MAX_LEVELS or self._left < 0:
            return UNKNOWN
        if "$ref" in schema:
            return self._referred(schema["$ref"], level, through)
        if any(word in schema for word in ("oneOf", "allOf", "not", "if", "$dynamicRef", "patternProperties")):
            return UNKNOWN
        if "anyOf" in schema:
            return self._optional(schema["anyOf"], level, through)
        kind = _kind(schema)
        if kind in _TYPES:
            return Plan(scalar=_TYPES[kind])
        if kind == "array":
            return self._array(schema, level, through)
        if kind != "object":
            return UNKNOWN
        declared = schema.get("properties")
        if not isinstance(declared, Mapping):
            return Plan(members={})
        return Plan(members={str(name): self.plan(part, level + 1, through) for name, part in declared.items()})

    def _array(self, schema: Mapping[str, Any], level: int, through: tuple[str, ...]) -> Plan:
        if "prefixItems" in schema:
            return UNKNOWN
        return Plan(items=self.plan(schema.get("items"), level + 1, through).scalar)

    def _optional(self, parts: Any, level: int, through: tuple[str, ...]) -> Plan:
        """``anyOf: [X, {"type": "null"}]``, as generators write what may be left out: X."""
        real = [part for part in parts if part != {"type": "null"}] if isinstance(parts, list) else []
        return self.plan(real[0], level + 1, through) if len(real) == 1 else UNKNOWN

    def _referred(self, ref: Any, level: int, through: tuple[str, ...]) -> Plan:
        if not isinstance(ref, str) or not ref.startswith("#/") or ref in through or len(through) >= MAX_LEVELS:
            return UNKNOWN  # elsewhere, or a schema that contains itself
        found: Any = self._root
        for token in ref[2:].split("/"):
            name = token.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        return self.plan(found, level, (*through, ref))


def _kind(schema: Mapping[str, Any]) -> str:
    """The one JSON Schema type that is declared, or that all values of an enumeration have."""
    said = schema.get("type")
    if isinstance(said, list):
        said = next(iter(real), "") if len(real := [one for one in said if one != "null"]) == 1 else ""
    if said is None and ("enum" in schema or "const" in schema):
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        kinds = {_kind_of(value) for value in values} if isinstance(values, list) else set()
        return kinds.pop() if len(kinds) == 1 else ""
    if said is None and "properties" in schema:
        return "object"
    return said if isinstance(said, str) else ""


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "integer" if isinstance(value, int) else ""


# Of a value


def projected(plan: Plan, value: Any) -> Arguments:
    """What ``plan`` lets be seen of ``value``. Never raises, and takes time in proportion to what is bounded here."""
    bags: dict[str, dict[str, Any]] = {name: {} for name in Arguments.__struct_fields__[:-1]}
    unseen: set[str] = set()
    total = 0
    for count, (tokens, one, here) in enumerate(_places(plan, value)):
        place = _place(tokens)
        bag, seen = ("", None) if place is None else _visible(one, here)
        if place is not None and bag:
            bags[bag][place] = seen
            total += _size(seen)
        else:
            unseen.add("" if place is None else place)
        # INVARIANT: however large the arguments, the question stays small
        # (test_huge_arguments_are_not_looped_over_and_are_marked_as_unseen).
        if count >= MAX_ITEMS or total > MAX_TOTAL:
            return UNSEEN
    return Arguments(**bags, unprojected=tuple(sorted(unseen)))


def _places(plan: Plan, value: Any) -> Iterator[tuple[tuple[str, ...], Plan, Any]]:
    """Everything that stands in ``value`` and is no declared object, with its place and its plan."""
    pending: list[tuple[tuple[str, ...], Plan, Any]] = [((), plan, value)]
    while pending:
        tokens, here, found = pending.pop()
        if here.members is None or not isinstance(found, dict):
            yield tokens, here, found
            continue
        for name, member in found.items():
            known = here.members.get(name)
            if known is not None and known.members is not None and isinstance(member, dict):
                pending.append(((*tokens, name), known, member))
            else:
                yield (*tokens, name), known or UNKNOWN, member


def _place(tokens: tuple[str, ...]) -> str | None:
    """The pointer; None where it would be too long for a place, or could not be written down."""
    if not all(_is_text(token) for token in tokens):
        return None
    place = "".join(f"/{token.replace('~', '~0').replace('/', '~1')}" for token in tokens)
    return place if place == pointer(tokens) else None


def _visible(plan: Plan, value: Any) -> tuple[str, Any]:
    """The bag and what goes into it; an empty name where it cannot be seen."""
    if plan.scalar is not None:
        seen = _scalar(plan.scalar, value)
        return (f"{plan.scalar}s", seen) if seen is not None else ("", None)
    if plan.items is not None and isinstance(value, list) and len(value) <= MAX_ITEMS:
        members = [_scalar(plan.items, item) for item in value]
        if all(member is not None for member in members):
            return f"{plan.items}_sets", tuple(members)
    return "", None


def _scalar(kind: Scalar, value: Any) -> str | int | bool | None:
    if kind == "flag":
        return value if isinstance(value, bool) else None
    if kind == "text":
        return value if isinstance(value, str) and len(value) <= MAX_TEXT and _is_text(value) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 500.0 and 5e2 are the integer 500, to JSON Schema and to whoever is called
    fits = isinstance(value, int) and not isinstance(value, bool) and -_LONG <= value < _LONG
    return value if fits else None


def _is_text(value: str) -> bool:
    """Whether it has a form in UTF-8: a lone surrogate has none."""
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def _size(seen: Any) -> int:
    if isinstance(seen, str):
        return len(seen)
    return sum(map(_size, seen)) + len(seen) if isinstance(seen, tuple) else 1
