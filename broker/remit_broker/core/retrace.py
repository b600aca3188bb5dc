"""The spans of a task from its records alone: what its replicas sent when it happened, for a collector that was not there.

Pure. The records are folded on the way, so that a chain which does not hold together has no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from remit_broker.core import spans
from remit_broker.core.fold import apply
from remit_broker.core.spans import SpanData
from remit_broker.core.tree import Fold
from remit_schemas.records import HopClosed, HopOpened, HopRefused, HopResumed, TxnOpened


class Told(NamedTuple):
    """A span, and the replica whose record ended it."""

    by: str
    span: SpanData


def of_chain(records: Iterable[Mapping[str, Any]]) -> Iterator[Told]:
    """A span for the opening of the task and for each hop that has ended, in the order of their ends. Raises ``Corrupt``.

    A hop that was closed on behalf of whoever ran it is told from its opening here, so that its span says a little more than the one
    that was sent then.
    """
    fold: Fold | None = None
    opened: dict[str, tuple[HopOpened, Fold]] = {}
    resumed: dict[str, tuple[HopResumed, Fold]] = {}
    for raw in records:
        before, fold = fold, apply(fold, dict(raw))
        kind, hop = raw["kind"], raw["hop"]
        if before is None:
            first = msgspec.convert(raw, TxnOpened)
            yield Told(first.by, spans.delegated(first))
        elif kind == "hop.opened":
            opened[hop] = (msgspec.convert(raw, HopOpened), before)
        elif kind == "hop.resumed":
            resumed[hop] = (msgspec.convert(raw, HopResumed), fold)
        elif kind == "hop.closed":
            end = msgspec.convert(raw, HopClosed)
            begun = opened.pop(hop)
            if (again := resumed.pop(hop, None)) is not None:
                yield Told(end.by, spans.swept(again[1].nodes[hop], end, again[1], again[0]))
            else:
                yield Told(end.by, spans.closed(begun[0], end, begun[1]))


def of_refusal(record: Mapping[str, Any]) -> Told:
    """The span of a call that was refused."""
    refused = msgspec.convert(record, HopRefused)
    return Told(refused.by, spans.refused(refused))
