"""What detectors report, and how it is kept small and harmless enough for a record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from remit_schemas.records import Finding

OVER_CAP: Final = "scan.over_cap"
"""There was more than is searched: what was not searched may hold anything."""

UNREDACTABLE: Final = "scan.unredactable"
"""A secret was found in the name of a member, which cannot be replaced without changing what the JSON means."""

REDACTABLE: Final = frozenset({"secret", "pii", "injection", "hidden"})
"""The classes of findings that can be replaced by placeholders."""

MAX_PLACES: Final = 32
"""Findings that keep their place; what exceeds this is counted by kind, without a place. Keeps a record within its size."""

MAX_KINDS: Final = 96
"""Kinds that are told apart where there are that many; what exceeds this is counted as ``secret.other``, ``pii.other`` …"""

MAX_POINTER: Final = 160
"""Longest place in bytes of JSON; of a longer one the beginning is kept, which names an ancestor."""

ABRIDGED: Final = "scan.abridged"
"""In a record: so many findings lost their place, or their kind, because it would not have had room for them."""


def class_of(kind: str) -> str:
    """``secret.aws_access_key`` is of class ``secret``."""
    return kind.partition(".")[0]


def unredactable(kind: str) -> str:
    """What says that ``kind`` was found where it cannot be replaced: a name, or a number. One for each class of finding."""
    return UNREDACTABLE if class_of(kind) == "secret" else f"{UNREDACTABLE}_{class_of(kind)}"


def within(kind: str, classes: Iterable[str]) -> bool:
    """Whether ``kind`` is one of ``classes`` or below one (``secret``, or ``secret.npm_token`` itself)."""
    return any(kind == name or kind.startswith(name + ".") for name in classes)


def pointer(tokens: Sequence[str]) -> str:
    """The RFC 6901 pointer of ``tokens``, or of the nearest ancestor whose pointer is short enough for a record."""
    text = ""
    for token in tokens:
        longer = f"{text}/{token.replace('~', '~0').replace('/', '~1')}"
        if _width(longer) > MAX_POINTER:
            break
        text = longer
    return text


def _width(text: str) -> int:
    plain = text.isascii() and text.isprintable() and '"' not in text and "\\" not in text
    return len(text) if plain else len(msgspec.json.encode(text.encode(errors="replace").decode())) - 2


def summary(found: Iterable[tuple[str, str]]) -> tuple[Finding, ...]:
    """Findings counted by kind and place, sorted; a bounded number of them whatever was found."""
    counts: dict[tuple[str, str], int] = {}
    kinds: set[str] = set()
    for kind, where in found:
        if kind not in kinds and len(kinds) >= MAX_KINDS:
            kind = kind if class_of(kind) == "scan" else f"{class_of(kind)}.other"
        kinds.add(kind)
        key = (kind, where) if (kind, where) in counts or len(counts) < MAX_PLACES else (kind, "")
        counts[key] = counts.get(key, 0) + 1
    return tuple(Finding(kind, where, count) for (kind, where), count in sorted(counts.items()))
