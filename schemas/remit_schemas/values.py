"""Sets of JSON values, as the constraints of a scope write them, with an exact meet.

Whatever way a set was written, it is one of four forms: anything, one of a few values, a range of numbers, or a text
with a beginning and a length. Any two of these meet in one of these, so narrowing never has to approximate, and equal
sets are equal objects.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from remit_schemas.canonical import MAX_INTEGER, canonical

MAX_PREFIXED: Final = 8192
"""Longest value, in characters, that can match a prefix: looking for hidden ``..`` segments must stay cheap."""

_UNDECODING: Final = 4
_SEPARATOR: Final = re.compile(r"[/\\]")
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f\ufffd]")

Number = int | float


def is_number(value: Any) -> bool:
    """Whether ``value`` is a JSON number that is interoperable (RFC 7493 §2.2). ``true`` is not 1."""
    if type(value) is int:
        return -MAX_INTEGER <= value <= MAX_INTEGER
    return type(value) is float and math.isfinite(value)


def same(value: Any, operand: Any) -> bool:
    """Whether both have the same canonical form (RFC 8785): 1 and 1.0 have, 1 and ``true`` have not.

    Costs no more than the operand's size, whatever the value's.
    """
    if type(operand) is str or operand is None or type(operand) is bool:
        return type(value) is type(operand) and bool(value == operand)
    if type(operand) is list:
        return type(value) is list and len(value) == len(operand) and all(map(same, value, operand))
    if type(operand) is dict:
        if type(value) is not dict or len(value) != len(operand):
            return False
        return all(name in value and same(value[name], item) for name, item in operand.items())
    return is_number(value) and bool(value == operand)


def climbs(value: str) -> bool:
    """Whether ``value`` has a ``..`` segment, or may have one for somebody who decodes it.

    Segments end at ``/`` and ``\\``. Percent-encoding (also repeated), look-alikes that NFKC folds, invisible
    characters, ``..;`` parameters and padding are seen through. What cannot be decoded, or holds control characters,
    counts as climbing.
    """
    if value.isascii() and value.isprintable() and ".." not in value and "%" not in value:
        return False
    for _ in range(_UNDECODING):
        plainer = unicodedata.normalize("NFKC", unquote(value))
        if plainer == value:
            break
        value = plainer
    else:
        return True
    if _UNPRINTABLE.search(value):
        return True
    if not value.isascii():
        value = "".join(char for char in value if unicodedata.category(char) != "Cf")
    return any(segment.split(";", 1)[0].strip() == ".." for segment in _SEPARATOR.split(value))


# The four forms


class Anything(msgspec.Struct, frozen=True):
    """Every value."""

    def admits(self, value: Any) -> bool:
        """Whether ``value`` is one of these."""
        return True

    def plain(self) -> dict[str, Any]:
        """As it is written in a grant."""
        return {"any": True}


class OneOf(msgspec.Struct, frozen=True, eq=False):
    """A few values, sorted by their canonical forms, the ``keys``: in Python ``[1] == [True]``, in JSON not."""

    keys: tuple[bytes, ...]
    values: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return type(other) is OneOf and self.keys == other.keys

    def __hash__(self) -> int:
        return hash(self.keys)

    def admits(self, value: Any) -> bool:
        """Whether ``value`` is one of these."""
        return any(same(value, choice) for choice in self.values)

    def only(self, keep: Callable[[Any], bool]) -> OneOf:
        """Those of the values that ``keep`` says yes to."""
        kept = [pair for pair in zip(self.keys, self.values, strict=True) if keep(pair[1])]
        return OneOf(tuple(key for key, _ in kept), tuple(value for _, value in kept))

    def plain(self) -> dict[str, Any]:
        """As it is written in a grant."""
        # A copy: what is done to the written form must not reach the values that decide.
        values = deepcopy(self.values)
        return {"eq": values[0]} if len(values) == 1 else {"in": list(values)}


class Between(msgspec.Struct, frozen=True):
    """Numbers from ``low`` to ``high``, both included; None is no bound. At least one is given, and ``low < high``."""

    low: Number | None
    high: Number | None

    def admits(self, value: Any) -> bool:
        """Whether ``value`` is one of these."""
        return (
            is_number(value) and (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        )

    def plain(self) -> dict[str, Any]:
        """As it is written in a grant."""
        bounds = {"min": self.low, "max": self.high}
        return {"range": {name: bound for name, bound in bounds.items() if bound is not None}}


class Text(msgspec.Struct, frozen=True):
    """Strings that begin with ``prefix`` and do not climb, of at most ``max_len`` code points.

    Without a prefix, arrays of at most ``max_len`` items too.
    """

    prefix: str | None
    max_len: int | None

    def admits(self, value: Any) -> bool:
        """Whether ``value`` is one of these."""
        if not isinstance(value, str | list) or (self.max_len is not None and len(value) > self.max_len):
            return False
        if self.prefix is None:
            return True
        if not isinstance(value, str) or len(value) > MAX_PREFIXED or not value.startswith(self.prefix):
            return False
        # INVARIANT: a value that climbs matches no prefix (test_a_value_that_climbs_matches_no_prefix).
        return not climbs(value)

    def plain(self) -> dict[str, Any]:
        """As it is written in a grant."""
        operands = {"prefix": self.prefix, "max_len": self.max_len}
        return {name: operand for name, operand in operands.items() if operand is not None}


Values = Anything | OneOf | Between | Text

ANYTHING: Final = Anything()
NOTHING: Final = OneOf((), ())


def between(low: Number | None, high: Number | None) -> Values:
    """The numbers from ``low`` to ``high``, of which at least one is given."""
    if low is None or high is None or low < high:
        return Between(low, high)
    return NOTHING if low > high else OneOf((canonical(low),), (low,))


def text(prefix: str | None, max_len: int | None) -> Values:
    """What begins with ``prefix`` and is no longer than ``max_len``, of which at least one is given."""
    if prefix is None:
        # The only two values without a length.
        return Text(None, max_len) if max_len else OneOf((b'""', b"[]"), ("", []))
    if max_len is None or max_len >= MAX_PREFIXED:
        return Text(prefix, None)
    if len(prefix) < max_len:
        return Text(prefix, max_len)
    return NOTHING if len(prefix) > max_len else OneOf((canonical(prefix),), (prefix,))


def _meet_text(a: Text, b: Text) -> Values:
    prefix = a.prefix if b.prefix is None else b.prefix
    if a.prefix is not None and b.prefix is not None:
        short, long = sorted((a.prefix, b.prefix), key=len)
        if not long.startswith(short):
            return NOTHING
        prefix = long
    lengths = [n for n in (a.max_len, b.max_len) if n is not None]
    return text(prefix, min(lengths, default=None))


def _meet_between(a: Between, b: Between) -> Values:
    lows = [n for n in (a.low, b.low) if n is not None]
    highs = [n for n in (a.high, b.high) if n is not None]
    return between(max(lows, default=None), min(highs, default=None))


def meet_values(a: Values, b: Values) -> Values:
    """The values that are in both, exactly."""
    if type(a) is Anything or a == b:
        return b
    if type(b) is Anything:
        return a
    if type(a) is OneOf:
        if type(b) is OneOf:
            common = frozenset(a.keys).intersection(b.keys)
            pairs = [pair for pair in zip(a.keys, a.values, strict=True) if pair[0] in common]
            return OneOf(tuple(key for key, _ in pairs), tuple(value for _, value in pairs))
        return a.only(b.admits)
    if type(b) is OneOf:
        return b.only(a.admits)
    if type(a) is Between and type(b) is Between:
        return _meet_between(a, b)
    if type(a) is Text and type(b) is Text:
        return _meet_text(a, b)
    return NOTHING
