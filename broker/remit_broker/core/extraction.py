"""Extraction: an answer so narrow that nothing of a text can be in it. What fits one may lose labels that its target declares.

A schema here is a small part of JSON Schema in which everything is bounded, so that :attr:`Narrow.bits` says how much an answer can
carry at most: a rating from 1 to 5 is under 3 bits, a date 27. What cannot be bounded (free text, numbers with fractions,
members that are not named) is no such schema. Strings are those of an ``enum``, or of a ``pattern`` of fixed characters and
classes with counted repetitions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from remit_broker.core.labels import is_label
from remit_schemas.canonical import MAX_INTEGER, canonical
from remit_schemas.errors import Refusal
from remit_schemas.names import parse_resource

DEFAULT_BITS: Final = 64.0
MAX_BITS: Final = 1024.0
"""More is text, whatever it is called."""
MAX_ITEMS: Final = 256
MAX_LOWERS: Final = 16
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ATOM: Final = re.compile(
    r"(?:\[(?P<class>(?:[A-Za-z0-9_.:+](?:-[A-Za-z0-9])?)+-?)\]|(?P<digit>\\d)|(?P<char>\\[-.:+/_]|[-:/_A-Za-z0-9]))"
    r"(?:\{(?P<least>\d{1,3})(?:,(?P<most>\d{1,3}))?\})?"
)
_KEYS: Final = {
    "object": {"type", "properties", "required", "additionalProperties"},
    "array": {"type", "items", "minItems", "maxItems"},
    "string": {"type", "pattern"},
    "integer": {"type", "minimum", "maximum"},
    "boolean": {"type"},
    "null": {"type"},
}


class TooWide(Exception):  # noqa: N818 - a finding about a schema
    """A schema that something could be smuggled through: where, and why."""


class Narrow(Protocol):
    """A set of values that is bounded."""

    @property
    def bits(self) -> float:
        """The most that one value can carry."""

    def admits(self, value: Any) -> bool:
        """Whether ``value`` is one of them."""


class OneOf(msgspec.Struct, frozen=True):
    """Values that are listed (canonical JSON, so that 1 and true differ)."""

    values: frozenset[bytes]

    @property
    def bits(self) -> float:
        """As many bits as choices need."""
        return math.log2(len(self.values))

    def admits(self, value: Any) -> bool:
        """Whether it is one of those."""
        try:
            return (value is None or isinstance(value, str | int | bool)) and canonical(value) in self.values
        except ValueError:  # a number beyond what JSON can say
            return False


class Whole(msgspec.Struct, frozen=True):
    """Whole numbers within bounds."""

    least: int
    most: int

    @property
    def bits(self) -> float:
        """Of the number of numbers."""
        return math.log2(self.most - self.least + 1)

    def admits(self, value: Any) -> bool:
        """Whether it is a whole number within the bounds."""
        return type(value) is int and self.least <= value <= self.most


class Shaped(msgspec.Struct, frozen=True):
    """Texts of a shape without room for words."""

    pattern: str
    bits: float

    def admits(self, value: Any) -> bool:
        """Whether it is a text of that shape, to its last character."""
        return isinstance(value, str) and re.fullmatch(self.pattern, value, re.ASCII) is not None


class Listed(msgspec.Struct, frozen=True):
    """A list of at most so many."""

    item: Any
    least: int
    most: int

    @property
    def bits(self) -> float:
        """Of all items, and of how many there are."""
        return float(self.most * self.item.bits + math.log2(self.most - self.least + 1))

    def admits(self, value: Any) -> bool:
        """Whether it is such a list."""
        return isinstance(value, list) and self.least <= len(value) <= self.most and all(map(self.item.admits, value))


class Members(msgspec.Struct, frozen=True):
    """An object of named members and no others."""

    members: dict[str, Any]
    required: frozenset[str]

    @property
    def bits(self) -> float:
        """Of all members, and of which of the optional ones there are."""
        return float(sum(member.bits for member in self.members.values()) + len(self.members) - len(self.required))

    def admits(self, value: Any) -> bool:
        """Whether it has the members it must, and no others."""
        return (
            isinstance(value, dict)
            and self.required <= value.keys() <= self.members.keys()
            and all(self.members[name].admits(member) for name, member in value.items())
        )


class Endorser(msgspec.Struct, frozen=True, kw_only=True):
    """Who may take labels away: results of the resource ``target`` that fit ``schema`` come back without ``lowers``."""

    name: str
    target: str
    lowers: frozenset[str]
    schema: Any


def parse_endorser(raw: Mapping[str, Any]) -> Endorser:
    """A table of ``[[endorsers]]``. Raises :class:`TooWide` where it would let through more than it says."""
    name, target, lowers = raw.get("name"), raw.get("target"), raw.get("lowers")
    bits = raw.get("bits", DEFAULT_BITS)
    if unknown := sorted(set(raw) - {"name", "target", "lowers", "schema", "bits"}):
        raise TooWide(f"there is no key {unknown[0]}; keys are name, target, lowers, schema and bits")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TooWide("it needs a name of a-z, 0-9, - and _, which records give")
    try:
        target = str(parse_resource(target)) if isinstance(target, str) else ""
    except Refusal:
        target = ""
    if not target:
        raise TooWide("it needs a target, such as agent/extractor/rating")
    if (
        not isinstance(lowers, list)
        or not 0 < len(lowers) <= MAX_LOWERS
        or not all(isinstance(one, str) and is_label(one) for one in lowers)
    ):
        raise TooWide("it needs lowers: the labels that its answers lose")
    if type(bits) not in (int, float) or not 0 < bits <= MAX_BITS:
        raise TooWide(f"bits is the most that an answer may carry: up to {MAX_BITS:.0f}")
    schema = narrow(raw.get("schema"))
    if schema.bits > bits:
        raise TooWide(f"an answer can carry {schema.bits:.0f} bits, {bits:.0f} are allowed; narrow it, or set bits")
    return Endorser(name=name, target=target, lowers=frozenset(lowers), schema=schema)


def narrow(schema: Any, where: str = "schema") -> Narrow:
    """The values of a schema. Raises :class:`TooWide`, also for keywords that are not known here."""
    if not isinstance(schema, Mapping):
        raise TooWide(f"{where} is no schema")
    if "enum" in schema or "const" in schema:
        return _listed(schema, where)
    kind = schema.get("type")
    if not isinstance(kind, str) or kind not in _KEYS:
        raise TooWide(f"{where} has the type {kind!r}, bounded are {', '.join(_KEYS)}, and an enum")
    if unknown := sorted(set(schema) - _KEYS[kind] - {"title", "description"}):
        raise TooWide(f"{where} has {unknown[0]}, which is not understood here; known are {', '.join(_KEYS[kind])}")
    if kind == "object":
        return _members(schema, where)
    if kind == "array":
        item, fewest = narrow(schema.get("items"), f"{where}.items"), _count(schema, "minItems", where, 0)
        if fewest > (longest := _count(schema, "maxItems", where, None)):
            raise TooWide(f"{where} has between {fewest} and {longest} items")
        return Listed(item, fewest, longest)
    if kind == "string":
        return _shaped(schema.get("pattern"), where)
    if kind == "integer":
        least, most = schema.get("minimum"), schema.get("maximum")
        if type(least) is not int or type(most) is not int or not -MAX_INTEGER <= least <= most <= MAX_INTEGER:
            raise TooWide(f"{where} needs a minimum and a maximum, whole numbers")
        return Whole(least, most)
    return OneOf(frozenset(map(canonical, (True, False) if kind == "boolean" else (None,))))


def _listed(schema: Mapping[str, Any], where: str) -> Narrow:
    values = schema["enum"] if "enum" in schema else [schema["const"]]
    if unknown := sorted(set(schema) - {"enum", "const", "type", "title", "description"}):
        raise TooWide(f"{where} has {unknown[0]} beside its choices")
    scalars = isinstance(values, list) and all(one is None or isinstance(one, str | int | bool) for one in values)
    if not scalars or not values or len(values) > MAX_ITEMS:
        raise TooWide(f"{where} needs between 1 and {MAX_ITEMS} choices: texts, whole numbers, true, false or null")
    return OneOf(frozenset(map(canonical, values)))


def _members(schema: Mapping[str, Any], where: str) -> Narrow:
    members, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(members, Mapping) or schema.get("additionalProperties") is not False:
        raise TooWide(f"{where} needs properties, and additionalProperties = false")
    if not isinstance(required, list) or not all(name in members for name in required):
        raise TooWide(f"{where} requires what is none of its properties")
    return Members({name: narrow(one, f"{where}.{name}") for name, one in members.items()}, frozenset(required))


def _count(schema: Mapping[str, Any], key: str, where: str, default: int | None) -> int:
    value = schema.get(key, default)
    if type(value) is not int or not 0 <= value <= MAX_ITEMS:
        raise TooWide(f"{where} needs {key}, at most {MAX_ITEMS}")
    return value


def _shaped(pattern: Any, where: str) -> Narrow:
    """A pattern of single characters and classes, each perhaps counted, from beginning to end."""
    if not isinstance(pattern, str) or not pattern.startswith("^") or not pattern.endswith("$"):
        raise TooWide(f"{where} is a text: list its choices in an enum, or give it a pattern ^…$")
    bits, at, body = 0.0, 0, pattern[1:-1]
    while at < len(body):
        atom = _ATOM.match(body, at)
        if atom is None:
            raise TooWide(
                f"{where}: the pattern is not understood from {body[at : at + 8]!r} on; known are characters, [classes] and "
                "{counts}"
            )
        fewest = int(atom["least"] or 1)
        most = int(atom["most"] or fewest)
        if most < fewest:
            raise TooWide(f"{where}: the pattern counts from {fewest} to {most}")
        bits += most * math.log2(_choices(atom)) + math.log2(most - fewest + 1)
        at = atom.end()
    return Shaped(body, bits)


def _choices(atom: re.Match[str]) -> int:
    if atom["digit"]:
        return 10
    if atom["class"] is None:
        return 1
    try:
        one = re.compile(f"[{atom['class']}]", re.ASCII)
    except re.error as error:
        raise TooWide(f"the class [{atom['class']}] is none: {error}") from None
    return max(1, sum(one.fullmatch(chr(code)) is not None for code in range(128)))
