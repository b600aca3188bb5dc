"""Labels of data: an algebra of three parts that travels as one flat set of names.

**Confidentiality** is a level: ``public < internal < confidential < secret``. A level stands for "at least this", so that data
that is ``confidential`` is written ``{"internal", "confidential"}``, and a ceiling of ``internal`` excludes it by being a set.
``public`` is the bottom and is never written. **Integrity** is ``untrusted`` or nothing: what it touches has it. **Categories**
are all other names, ``web`` or ``customer:4711``; what stands before the first colon is the family.

Thus the join of two pieces of data is the union of their labels, and "may reach" is "is a subset of": a lattice
(test_labels_are_a_lattice). Nothing here takes a label away; see :mod:`remit_broker.core.extraction`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from remit_schemas.claims import ANY_LABEL

LEVELS: Final = ("public", "internal", "confidential", "secret")
UNTRUSTED: Final = "untrusted"
MAX_LABELS: Final = 32
"""Most labels that a call may have or bring: a record says them all."""
MAX_LABEL: Final = 64
"""Longest label in characters."""

_LABEL: Final = re.compile(r"[a-z0-9][a-z0-9_.:/-]{0,63}")
_VALUE: Final = re.compile(r"[a-z0-9][a-z0-9_./-]{0,63}")
_HASHED: Final = "sha256."


def is_label(text: str) -> bool:
    """Whether ``text`` can be a label."""
    return _LABEL.fullmatch(text) is not None


def normal(labels: Iterable[str]) -> frozenset[str]:
    """The labels with every level below the highest, and without the bottom."""
    found = frozenset(labels)
    high = level(found)
    return (found | frozenset(LEVELS[1 : high + 1])) - {LEVELS[0]} if high or LEVELS[0] in found else found


def level(labels: Iterable[str]) -> int:
    """How confidential: 0 (public) to 3 (secret)."""
    return max((LEVELS.index(label) for label in labels if label in LEVELS), default=0)


def trusted(labels: Iterable[str]) -> bool:
    """Whether nothing of it came from where anybody may write."""
    return UNTRUSTED not in frozenset(labels)


def ceiling(labels: Iterable[str]) -> tuple[str, ...]:
    """``labels`` as the ceiling of a grant: a level lets those below it pass as well. Sorted."""
    found = frozenset(labels)
    return (ANY_LABEL,) if ANY_LABEL in found else tuple(sorted(normal(found)))


def mixed(labels: Iterable[str]) -> tuple[str, ...]:
    """The families of which there is more than one member, sorted: ``customer`` in the data of two customers."""
    members: dict[str, set[str]] = {}
    for label in labels:
        family, colon, _ = label.partition(":")
        if colon:
            members.setdefault(family, set()).add(label)
    return tuple(sorted(family for family, names in members.items() if len(names) > 1))


def of_value(prefix: str, value: str | int) -> str:
    """The label of a value that a call names, such as ``customer:4711``. Different texts have different labels.

    INVARIANT: what cannot be written as a label stands in it as a digest, never as something that another value is written
    as (test_two_values_never_have_one_label).
    """
    text = str(value)
    label = prefix + text
    if _VALUE.fullmatch(text) and not text.startswith(_HASHED) and len(label) <= MAX_LABEL:
        return label
    return f"{prefix}{_HASHED}{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
