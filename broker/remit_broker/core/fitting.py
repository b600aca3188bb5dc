"""Ends that fit into a record: whatever a callee says, and however much is found in it, its hop can be closed or parked.

What opens a hop may be refused for its size. What ends it must not be: it has happened. So its record says less where it has to, and
that it does: findings lose their places, then their kinds (with :data:`~remit_broker.core.findings.ABRIDGED` among them), then
texts are cut, and of many policies the first are named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from msgspec.structs import replace

from remit_broker.core.findings import ABRIDGED, class_of
from remit_schemas.records import MAX_RECORD, Decision, Finding, HopClosed, HopParked

Ending = TypeVar("Ending", HopClosed, HopParked)

SHORT: Final = 128
"""Characters that are left of a text that is cut: at most 768 bytes of JSON."""
FEW: Final = 16
"""Policies that are named where there are too many."""

_encode = msgspec.json.Encoder().encode


def fitting(record: Ending) -> Ending:
    """``record``, not sealed yet, or one that says less and is small enough.

    INVARIANT: no answer keeps its hop from being closed (test_what_ends_a_hop_fits_into_its_record_whatever_was_found).
    """
    for less in (_kinds, _classes, _texts, _rules):
        if len(_encode(record)) <= MAX_RECORD:
            return record
        record = less(record)
    return record


def _kinds(record: Ending) -> Ending:
    return _counted(record, lambda kind: kind)


def _classes(record: Ending) -> Ending:
    return _counted(record, lambda kind: kind if class_of(kind) == "scan" else f"{class_of(kind)}.other")


def _counted(record: Ending, name: Callable[[str], str]) -> Ending:
    """The findings without places, by another name of their kind; and how many there were."""
    counts: dict[str, int] = {}
    kept = [one for one in record.findings if one.kind != ABRIDGED]
    for one in kept:
        counts[name(one.kind)] = counts.get(name(one.kind), 0) + one.count
    if not kept:
        return record
    found: list[Finding] = [Finding(kind, "", count) for kind, count in sorted(counts.items())]
    return replace(record, findings=(*found, Finding(ABRIDGED, "", len(kept))))


def _texts(record: Ending) -> Ending:
    record = replace(record, reason=_cut(record.reason))
    return replace(record, rule=_cut(record.rule)) if isinstance(record, HopClosed) else record


def _cut(text: str) -> str:
    return text if len(text) <= SHORT else text[:SHORT] + "…"


def _rules(record: Ending) -> Ending:
    said: Decision | None = record.decision
    rules: tuple[str, ...] = said.rules if said is not None else ()
    if said is None or len(rules) <= FEW:
        return record
    few = replace(said, rules=(*rules[:FEW], f"… and {len(rules) - FEW} more"))
    return replace(record, decision=few)
