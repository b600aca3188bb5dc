"""What stands half in one frame and half in the next: neither half is anything by itself, so each frame is also looked at with what was
said right before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from remit_broker.ports import Detectors
from remit_schemas.records import Finding

KEPT: Final = 64
"""Strings of earlier frames that are looked at with the next one: as many pieces as detectors put together."""
AHEAD: Final = 16
"""Strings at the beginning of a frame that may end what an earlier one began."""
END: Final = 256
"""Characters of a string that are kept of its end, or looked at of its beginning."""


def after(heard: tuple[str, ...], value: Any) -> tuple[str, ...]:
    """What is kept of all frames so far, ``value`` the newest."""
    return (*heard, *(text[-END:] for text in strings(value)))[-KEPT:]


def between(heard: tuple[str, ...], value: Any, detectors: Detectors) -> tuple[Finding, ...]:
    """What is found in ``value`` together with what was ``heard`` before it, and in neither alone; without a place.

    INVARIANT: a secret in two frames is found in the second (test_a_secret_in_two_frames_does_not_come_back).
    """
    if not heard:
        return ()
    first = [text[:END] for text in islice(strings(value), AHEAD)]
    together = _kinds(detectors.scan([*heard, *first]))
    if not together:
        return ()
    alone = _kinds(detectors.scan(list(heard))) + _kinds(detectors.scan(first))
    return tuple(Finding(kind, "", count) for kind, count in sorted((together - alone).items()))


def strings(value: Any) -> Iterator[str]:
    """Every string that is a value, in order, but for empty ones."""
    pending = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, str) and node:
            yield node
        elif isinstance(node, dict):
            pending += list(node.values())[::-1]
        elif isinstance(node, list):
            pending += node[::-1]


def _kinds(found: tuple[Finding, ...]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for one in found:
        counts[one.kind] += one.count
    return counts
