"""What the detectors find in one text, with its places: for definitions, which are shown to people; arguments and results never are."""

from __future__ import annotations

from remit_broker.adapters.content.search import Work
from remit_broker.adapters.content.walk import Part, encode
from remit_broker.adapters.detectors import ContentDetectors
from remit_broker.core.scan.definitions import Detect, Sign


def signs(detectors: ContentDetectors) -> Detect:
    """``detectors`` on single texts; places are in characters."""

    def detect(text: str) -> list[Sign]:
        data = encode(text)
        work = Work()
        work.allow(len(data))
        spans = detectors.spans(Part(data, (), "text"), work)
        return [Sign(span.kind, _characters(data, span.start), _characters(data, span.end)) for span in spans]

    return detect


def _characters(data: bytes, end: int) -> int:
    """How many characters the first ``end`` bytes are."""
    return len(data[:end].decode(errors="ignore"))
