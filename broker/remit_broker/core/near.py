"""What somebody may have meant by an id that nobody knows: ids have no spelling, so what counts is how they begin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

LEAST: Final = 3
"""Characters that must agree for one id to be near another."""


def by_beginning(wanted: str, known: Iterable[str], least: int = LEAST, count: int = 3) -> list[str]:
    """Of ``known``, those that agree with ``wanted`` for longest, and in ``least`` characters at all."""
    found = sorted(((_common(wanted, one), one) for one in known), key=lambda pair: (-pair[0], pair[1]))
    return [one for length, one in found[:count] if length >= least]


def meant(near: Iterable[str], otherwise: str) -> str:
    """The advice of a refusal: ``did you mean …?``, or where to look."""
    shown = ", ".join(near)
    return f"did you mean {shown}?" if shown else otherwise


def _common(one: str, other: str) -> int:
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return at
    return min(len(one), len(other))
