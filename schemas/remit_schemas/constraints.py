"""What one argument of a call may be: the constraint objects of a scope, read and narrowed.

A constraint object such as ``{"prefix": "docs/", "max_len": 200}`` is a conjunction: all of it must hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from remit_schemas.canonical import MAX_INTEGER, canonical, loads
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.values import (
    ANYTHING,
    NOTHING,
    Anything,
    Between,
    OneOf,
    Text,
    Values,
    between,
    climbs,
    is_number,
    meet_values,
    text,
)

KNOWN: Final = ("eq", "in", "range", "prefix", "max_len", "any")
"""The constraints that exist. Any other name covers nothing: what is not understood must not permit."""

MAX_OPERAND: Final = 4096
"""Largest operand of ``eq`` or one value of ``in``, in bytes of canonical JSON."""

MAX_CHOICES: Final = 256
"""Most values of ``in``."""

MAX_PREFIX: Final = 1024
"""Longest operand of ``prefix``, in characters."""

_MAX_NODES: Final = 256
_OPERAND_DEPTH: Final = 16


class Constraint(NamedTuple):
    """What one argument may be, and whether it may be missing."""

    values: Values
    optional: bool

    @property
    def empty(self) -> bool:
        """Whether nothing satisfies it. An optional argument that may have no value may still be missing."""
        return self.values == NOTHING and not self.optional

    @property
    def free(self) -> bool:
        """Whether everything satisfies it, so that it says nothing."""
        return self.optional and type(self.values) is Anything

    def plain(self) -> dict[str, Any]:
        """As it is written in a grant."""
        return {**self.values.plain(), "optional": True} if self.optional else self.values.plain()

    def narrowness(self) -> tuple[float, ...]:
        """A measure that grows whenever the set shrinks: what is properly inside something else is greater."""
        optional = 0 if self.optional else 1
        values = self.values
        if type(values) is Text:
            begins = 0 if values.prefix is None else len(values.prefix) + 1
            return (1, begins, -math.inf if values.max_len is None else -values.max_len, optional)
        if type(values) is Between:
            low = -math.inf if values.low is None else values.low
            return (1, low, -math.inf if values.high is None else -values.high, optional)
        return (2, -len(values.values), 0, optional) if type(values) is OneOf else (0, 0, 0, optional)


def meet(a: Constraint, b: Constraint) -> Constraint:
    """What satisfies both. The argument may be missing only where both let it be."""
    return Constraint(meet_values(a.values, b.values), a.optional and b.optional)


# Reading


class UnknownConstraint(Exception):  # noqa: N818 - an answer, not a fault: the detail covers nothing
    """A constraint object names something that is not in :data:`KNOWN`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def malformed(message: str, ask: str) -> Refusal:
    """The refusal of a constraint that cannot be read."""
    return refusal(Code.MALFORMED, message, rule="scope.constraint", ask=ask)


def too_large(what: str, limit: str) -> Refusal:
    """The refusal of what is over a cap."""
    return refusal(Code.TOO_LARGE, f"{what} is too large", rule="scope.size", ask=f"use {limit}")


def _is_small(value: Any) -> bool:
    # Looks at no more than the cap allows, before anything else walks the whole value.
    waiting, seen = [value], 0
    while waiting:
        item = waiting.pop()
        seen += 1
        if isinstance(item, str) and len(item) > MAX_OPERAND:
            return False
        if isinstance(item, list | dict):
            if len(item) + seen + len(waiting) > _MAX_NODES:
                return False
            waiting.extend(item.values() if isinstance(item, dict) else item)
    return True


def _operand(value: Any, what: str) -> tuple[bytes, Any]:
    """The canonical form of a JSON operand, and the value made anew from it (so 1.0 is 1, and nothing is shared)."""
    if not _is_small(value):
        raise too_large(what, f"at most {MAX_OPERAND} bytes")
    try:
        key = canonical(value)
    except (ValueError, TypeError):
        raise malformed(f"{what} is not plain JSON", "use finite numbers and integers within 2^53-1") from None
    if type(value) is str and len(key) <= MAX_OPERAND:
        return key, value
    return key, loads(key, max_bytes=MAX_OPERAND, max_depth=_OPERAND_DEPTH)


def _eq(operand: Any) -> Values:
    key, value = _operand(operand, "the value of eq")
    return OneOf((key,), (value,))


def _in(operand: Any) -> Values:
    if not isinstance(operand, list):
        raise malformed("in needs a list", 'write {"in": ["a", "b"]}')
    if len(operand) > MAX_CHOICES:
        raise too_large("the list of in", f"at most {MAX_CHOICES} values")
    choices = dict(_operand(item, "a value of in") for item in operand)
    keys = tuple(sorted(choices))
    return OneOf(keys, tuple(choices[key] for key in keys))


def _range(operand: Any) -> Values:
    usage = 'write {"range": {"min": 1, "max": 10}}; one of them may be missing'
    if not isinstance(operand, dict) or not operand or not operand.keys() <= {"min", "max"}:
        raise malformed("range needs min, max or both", usage)
    bounds = {}
    for name, bound in operand.items():
        if not is_number(bound):
            raise malformed(f"{name} of range is not a number", usage)
        _, bounds[name] = _operand(bound, f"{name} of range")
    return between(bounds.get("min"), bounds.get("max"))


def _prefix(operand: Any) -> Values:
    if not isinstance(operand, str):
        raise malformed("prefix needs a string", 'write {"prefix": "docs/"}')
    if len(operand) > MAX_PREFIX:
        raise too_large("the prefix", f"at most {MAX_PREFIX} characters")
    if climbs(operand):
        raise malformed("the prefix has a .. segment or characters that hide one", "write the prefix without it")
    _operand(operand, "the prefix")
    return text(operand, None)


def _max_len(operand: Any) -> Values:
    if type(operand) is not int or not 0 <= operand <= MAX_INTEGER:
        raise malformed("max_len needs a length", 'write {"max_len": 200}')
    return text(None, operand)


def _any(operand: Any) -> Values:
    if operand is not True:
        raise malformed("any needs true", 'write {"any": true}')
    return ANYTHING


_READERS: Final[dict[str, Callable[[Any], Values]]] = {
    "eq": _eq, "in": _in, "range": _range, "prefix": _prefix, "max_len": _max_len, "any": _any,
}  # fmt: skip


def parse_constraint(raw: Mapping[str, Any]) -> Constraint:
    """The constraint that ``raw`` writes, e.g. ``{"range": {"max": 10}, "optional": true}``.

    Raises :class:`UnknownConstraint`, or a MALFORMED or TOO_LARGE refusal for an operand that does not fit.
    """
    optional = raw.get("optional", False)
    if type(optional) is not bool:
        raise malformed("optional needs true or false", 'write "optional": true')
    for name in raw:
        if name not in _READERS and name != "optional":
            raise UnknownConstraint(name)
    if len(raw) == ("optional" in raw):
        raise malformed("no constraint is given", 'write {"any": true} where every value will do')
    values: Values = ANYTHING
    for name, operand in raw.items():
        if name != "optional":
            values = meet_values(values, _READERS[name](operand))
    return Constraint(values, optional)
