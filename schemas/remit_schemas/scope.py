"""Scopes: which resources may be called with which arguments, and how two of them are narrowed into one.

A scope is a union of details; each detail is a resource pattern and a constraint for each argument it names. Narrowing
is the meet of a lattice: idempotent, commutative, associative, never larger than either side. It is exact: a call is
covered by ``a & b`` if and only if both ``a`` and ``b`` cover it.

Two scopes are equal when the same details are left after those that lie inside another were dropped. A union of two
details is not recognised as equal to a third one (``eq`` 1 or ``eq`` 2 beside ``in`` [1, 2]), which can only refuse,
never permit.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from remit_schemas.canonical import canonical, loads
from remit_schemas.constraints import (
    KNOWN,
    Constraint,
    UnknownConstraint,
    malformed,
    meet,
    parse_constraint,
    too_large,
)
from remit_schemas.patterns import Segments, matches, meet_patterns, parse_pattern, resource_segments
from remit_schemas.values import Text

MAX_DETAILS: Final = 64
"""Most details of a scope."""

MAX_ARGS: Final = 32
"""Most constrained arguments of a detail."""

MAX_ARGUMENT_NAME: Final = 256
"""Longest name of a constrained argument, in characters."""

MAX_TEXT: Final = 8192
"""Longest scope on a command line, in bytes."""

_MAX_NAMED: Final = 3


class Detail(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="remit"
):
    """An entry of ``authorization_details`` (RFC 9396, section 2): a resource pattern and constraints of arguments.

    Its type ``remit`` is always written; where whoever asks for a scope leaves it out, it is this one.
    """

    resource: str
    args: dict[str, dict[str, Any]] = {}


# Details, as they are compared


_MISSING: Final = object()


class _Region(msgspec.Struct, frozen=True, eq=False):
    """A detail in normal form: names sorted, no constraint free or empty. So equal sets are equal values."""

    pattern: Segments
    args: dict[str, Constraint]

    def __eq__(self, other: object) -> bool:
        return type(other) is _Region and self.pattern == other.pattern and self.args == other.args

    def __hash__(self) -> int:
        return hash((self.pattern, tuple(self.args.items())))

    def unmet(self, args: Mapping[str, Any]) -> Iterator[str]:
        """The arguments that do not satisfy their constraint."""
        for name, constraint in self.args.items():
            value = args.get(name, _MISSING)
            if not (constraint.optional if value is _MISSING else constraint.values.admits(value)):
                yield name

    def covers(self, resource: Segments, args: Mapping[str, Any]) -> bool:
        return matches(self.pattern, resource) and next(self.unmet(args), None) is None

    def narrowness(self) -> tuple[Any, ...]:
        """Greater for every region that lies properly inside another."""
        exact = 3 - self.pattern.count("*")
        return exact, len(self.args), tuple(constraint.narrowness() for constraint in self.args.values())

    def detail(self) -> Detail:
        return Detail("/".join(self.pattern), {name: constraint.plain() for name, constraint in self.args.items()})


def _meet_regions(a: _Region, b: _Region) -> _Region | None:
    pattern = meet_patterns(a.pattern, b.pattern)
    if pattern is None:
        return None
    if a.args == b.args or not b.args:
        return _Region(pattern, a.args)
    if not a.args:
        return _Region(pattern, b.args)
    args = dict(a.args)
    for name, constraint in b.args.items():
        if (held := args.get(name)) is not None:
            constraint = meet(held, constraint)
            if constraint.empty:
                return None
        args[name] = constraint
    if len(args) > MAX_ARGS:
        raise too_large(f"a detail with {len(args)} constrained arguments", f"at most {MAX_ARGS} arguments")
    return _Region(pattern, dict(sorted(args.items())))


def _inside(a: _Region, b: _Region) -> bool:
    # The meet is exact and normal forms are unique, so this is the order itself, not an approximation of it.
    return b.args.keys() <= a.args.keys() and _meet_regions(a, b) == a


def _constraint(name: str, raw: Any) -> Constraint:
    if len(name) > MAX_ARGUMENT_NAME:
        raise too_large("the name of an argument", f"at most {MAX_ARGUMENT_NAME} characters")
    if not _is_unicode(name):
        raise malformed("the name of an argument is not Unicode text", "send names without lone surrogates")
    if not isinstance(raw, dict):
        shown = raw if isinstance(raw, str | int | float) and len(str(raw)) < 100 else "…"
        raise malformed(f"argument {name!r} has a value where a constraint belongs", f"write {{'eq': {shown!r}}}")
    return parse_constraint(raw)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(detail: Detail) -> _Region | None:
    """The normal form; None where nothing satisfies it. Raises UnknownConstraint or a refusal."""
    pattern = parse_pattern(detail.resource)
    if len(detail.args) > MAX_ARGS:
        raise too_large(f"a detail with {len(detail.args)} constrained arguments", f"at most {MAX_ARGS} arguments")
    args = {}
    for name in sorted(detail.args):
        constraint = _constraint(name, detail.args[name])
        if constraint.empty:
            return None
        if not constraint.free:
            args[name] = constraint
    return _Region(pattern, args)


# Scopes


class Scope:
    """What a grant permits: a call is permitted if any of its details covers it. Immutable, hashable, normalised."""

    __slots__ = ("_details", "_regions", "_set", "_unknown")

    def __init__(self, regions: Iterable[_Region], unknown: tuple[str, ...] = ()) -> None:
        """Of details in normal form; :meth:`of` makes a scope from what is written. Raises a TOO_LARGE refusal."""
        kept: list[_Region] = []
        # Whatever lies inside another comes after it, so what was kept stays, and the limit can be applied at once.
        for region in sorted(set(regions), key=_Region.narrowness):
            if any(_inside(region, larger) for larger in kept):
                continue
            if len(kept) == MAX_DETAILS:
                raise too_large(f"a scope of more than {MAX_DETAILS} details", "fewer or wider patterns")
            kept.append(region)
        self._regions = tuple(kept)
        self._set = frozenset(kept)
        self._unknown = unknown[:_MAX_NAMED]
        self._details: tuple[Detail, ...] | None = None

    @classmethod
    def of(cls, details: Iterable[Detail]) -> Scope:
        """The scope of ``details``. A detail with an unknown constraint covers nothing.

        Raises a MALFORMED refusal for a pattern or an operand that cannot be read, TOO_LARGE over the caps.
        """
        regions: list[_Region] = []
        unknown: list[str] = []
        for count, detail in enumerate(details):
            if count == MAX_DETAILS:
                raise too_large(f"a scope of more than {MAX_DETAILS} details", "fewer or wider patterns")
            try:
                region = _read(detail)
            except UnknownConstraint as constraint:
                # INVARIANT: what is not understood permits nothing (test_an_unknown_constraint_covers_nothing).
                unknown.append(f"{detail.resource}: unknown constraint {constraint.name[:40]!r}")
                continue
            if region is not None:
                regions.append(region)
        return cls(regions, tuple(unknown))

    @property
    def details(self) -> tuple[Detail, ...]:
        """The details, normalised and sorted, as they are put into a grant."""
        if self._details is None:
            # Decisions are made from the regions, so what somebody does to these changes no decision.
            details = (region.detail() for region in self._regions)
            self._details = tuple(sorted(details, key=lambda detail: (detail.resource, canonical(detail.args))))
        return self._details

    def __and__(self, other: Scope) -> Scope:
        """What both permit."""
        if self._set == other._set:
            return self
        met = (_meet_regions(a, b) for a in self._regions for b in other._regions)
        return Scope((region for region in met if region is not None), self._unknown + other._unknown)

    def __le__(self, other: Scope) -> bool:
        """Whether each detail of this lies inside one of ``other``; then everything this permits, ``other`` permits."""
        return all(any(_inside(a, b) for b in other._regions) for a in self._regions)

    def __bool__(self) -> bool:
        return bool(self._regions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scope) and self._set == other._set

    def __hash__(self) -> int:
        return hash(self._set)

    def __str__(self) -> str:
        return " ".join(format_detail(detail) for detail in self.details)

    def __repr__(self) -> str:
        return f"Scope({self})"

    def covers(self, resource: str, args: Mapping[str, Any]) -> bool:
        """Whether a call of ``resource`` (concrete, ``mcp/<server>/<tool>``) with ``args`` is permitted."""
        segments = resource_segments(resource)
        return segments is not None and any(region.covers(segments, args) for region in self._regions)

    def explain(self, resource: str, args: Mapping[str, Any]) -> str:
        """Why a call is not permitted (empty if it is): the arguments that do not fit, never their values."""
        segments = resource_segments(resource)
        if segments is None:
            return "not a resource: name one tool or skill, agent/<agent>/<skill> or mcp/<server>/<tool>"
        if self.covers(resource, args):
            return ""
        matching = [region for region in self._regions if matches(region.pattern, segments)]
        if matching:
            reasons = [_unmet(region, args) for region in matching]
        elif self._unknown:
            reasons = list(self._unknown)
        elif self._regions:
            return f"no pattern of the scope matches {resource}; it has {_shortened(self._patterns())}"
        else:
            return "the scope is empty"
        return _shortened(reasons)

    def _patterns(self) -> list[str]:
        return sorted({"/".join(region.pattern) for region in self._regions})


def _shortened(items: list[str]) -> str:
    more = len(items) - _MAX_NAMED
    return "; ".join(items[:_MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _unmet(region: _Region, args: Mapping[str, Any]) -> str:
    name = next(region.unmet(args))
    constraint = region.args[name]
    written = canonical(constraint.plain()).decode()
    text = f"{'/'.join(region.pattern)} needs argument {name!r} to satisfy {written[:200]}"
    if name not in args:
        return f"{text}, and it is missing"
    if type(constraint.values) is Text and constraint.values.prefix is not None:
        return f"{text} (a value with a .. segment matches no prefix)"
    return text


EVERYTHING: Final = Scope.of([Detail("**")])
"""Every resource with any arguments: the ceiling of a callee that has none."""

NOTHING: Final = Scope.of([])
"""No resource at all."""


# The form of the command line


def format_detail(detail: Detail) -> str:
    """``mcp/files/read_file{"path":{"prefix":"docs/"}}``, as :func:`parse_scope` reads it."""
    return detail.resource + (canonical(detail.args).decode() if detail.args else "")


def parse_scope(text: str) -> Detail:
    """A detail as it is written on a command line: a pattern, and perhaps constraints as a JSON object right after it.

    Raises a MALFORMED or TOO_LARGE refusal. Unlike in a grant, an unknown constraint is refused: it is a mistake here.
    """
    text = text.strip()
    pattern, brace, rest = text.partition("{") if text.endswith("}") else (text, "", "")
    args = loads((brace + rest).encode("utf-8", "surrogatepass"), max_bytes=MAX_TEXT) if brace else {}
    detail = Detail(pattern.strip(), args)
    try:
        region = _read(detail)
    except UnknownConstraint as unknown:
        near = difflib.get_close_matches(unknown.name[:40], KNOWN, 1)
        ask = f"did you mean {near[0]}?" if near else f"use {', '.join(KNOWN)}"
        raise malformed(f"there is no constraint {unknown.name[:40]!r}", ask) from None
    if region is None:
        raise malformed(
            f"nothing satisfies the constraints of {text[:200]!r}", "use constraints that agree with one another"
        )
    return detail
