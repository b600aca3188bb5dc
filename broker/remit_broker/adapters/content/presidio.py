"""Microsoft Presidio as a further detector, where it is installed and asked for. Names of people and places are what it adds."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from remit_broker.adapters.content.search import Span
from remit_broker.adapters.errors import ConfigError

MAX_TEXT: Final = 20_000
"""Characters of one text that are given to it: it is slow, and the broker waits."""

MIN_SCORE: Final = 0.5


class PresidioFinder:
    """Findings of an ``AnalyzerEngine`` as kinds ``pii.person``, ``pii.location`` …"""

    def __init__(self, engine: Any, entities: Sequence[str], language: str = "en") -> None:
        self._engine = engine
        self._entities = list(entities)
        self._language = language

    def find(self, text: bytes) -> Iterator[Span]:
        """What the engine finds, as bytes of ``text``. A text that is too long is left to the tables."""
        said = text.decode(errors="replace")
        # A text that is not UTF-8 throughout has other offsets than its bytes.
        if len(said) > MAX_TEXT or said.encode() != text:
            return
        for found in self._engine.analyze(
            text=said, language=self._language, entities=self._entities, score_threshold=MIN_SCORE
        ):
            start = len(said[: found.start].encode())
            end = start + len(said[found.start : found.end].encode())
            yield Span(start, end, f"pii.{found.entity_type.lower()}")


def presidio(entities: Sequence[str], language: str) -> list[PresidioFinder]:
    """The finder for ``entities``; none where none are asked for. Refuses to start without what it was told to use."""
    if not entities:
        return []
    try:
        module = importlib.import_module("presidio_analyzer")
    except ImportError:
        raise ConfigError(
            "content.presidio names entities, but Presidio is not installed",
            "pip install presidio-analyzer, or leave it out",
        ) from None
    return [PresidioFinder(module.AnalyzerEngine(supported_languages=[language]), entities, language)]
