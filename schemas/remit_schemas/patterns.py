"""Resource patterns: exact segments, ``*`` for one segment, a final ``**`` for the rest.

Every resource has three segments, so every pattern is brought into that form: ``agent/**`` is ``agent/*/*``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.names import KINDS, is_op, is_principal, normalize, parse_resource

MAX_PATTERN: Final = 512
"""Longest pattern or resource that is looked at, in characters; legal ones are shorter."""

Segments = tuple[str, str, str]


def _bad_pattern(text: str, why: str, ask: str) -> Refusal:
    return refusal(Code.MALFORMED, f"{text!r} is not a resource pattern: {why}", rule="scope.pattern", ask=ask)


def _check_segment(text: str, segment: str, is_name: bool) -> None:
    if segment == "*" or (is_name and is_principal(segment)) or (not is_name and is_op(segment)):
        return
    if segment != normalize(segment):
        raise _bad_pattern(text, f"{segment!r} is not normalised", f"write it in NFKC form: {normalize(segment)!r}")
    if "*" in segment:
        raise _bad_pattern(
            text, f"{segment!r} mixes a name and a wildcard", "use * for one whole segment, ** at the end"
        )
    usage = (
        "names are lower-case letters, digits, _ and -"
        if is_name
        else "tools and skills have 1 to 256 printable characters"
    )
    raise _bad_pattern(text, f"{segment!r} is not a name", usage)


@lru_cache(maxsize=4096)
def _parse_pattern(text: str) -> Segments:
    segments = text.split("/")
    if segments[-1] == "**" and len(segments) <= 3:
        segments = [*segments[:-1], *"*" * (4 - len(segments))]
    if len(segments) != 3:
        raise _bad_pattern(
            text,
            "it has too few or too many segments",
            "write agent/<agent>/<skill> or mcp/<server>/<tool>, or end in /**",
        )
    kind, name, op = segments
    if kind != "*" and kind not in KINDS:
        raise _bad_pattern(text, f"{kind!r} is not a kind", "begin with agent, mcp or *")
    _check_segment(text, name, is_name=True)
    _check_segment(text, op, is_name=False)
    return kind, name, op


def parse_pattern(text: str) -> Segments:
    """The three segments of a pattern, each exact or ``*``. Raises a MALFORMED refusal."""
    if len(text) > MAX_PATTERN:
        raise _bad_pattern(text[:40] + "…", "it is too long", f"use at most {MAX_PATTERN} characters")
    return _parse_pattern(text)


@lru_cache(maxsize=4096)
def _resource_segments(resource: str) -> Segments | None:
    try:
        parsed = parse_resource(resource)
    except Refusal:
        return None
    return parsed.kind, parsed.name, parsed.op


def resource_segments(resource: str) -> Segments | None:
    """The three segments of a concrete resource, or None where it is not one."""
    # The length is checked before the text is remembered.
    return _resource_segments(resource) if len(resource) <= MAX_PATTERN else None


def matches(pattern: Segments, resource: Segments) -> bool:
    """Whether ``resource`` is one of those that ``pattern`` stands for."""
    kind, name, op = pattern
    return (
        (op == "*" or op == resource[2])
        and (name == "*" or name == resource[1])
        and (kind == "*" or kind == resource[0])
    )


def meet_patterns(a: Segments, b: Segments) -> Segments | None:
    """What both match, or None where that is nothing."""
    if a == b:
        return a
    met = []
    for left, right in zip(a, b, strict=True):
        if left == right or right == "*":
            met.append(left)
        elif left == "*":
            met.append(right)
        else:
            return None
    return met[0], met[1], met[2]
