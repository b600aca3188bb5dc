"""The glue to Presidio, against a module shaped like it: the real one is no dependency and not run here."""

from __future__ import annotations

import sys
import types
from typing import Any, NamedTuple

import pytest

from remit_broker.adapters.content.presidio import MAX_TEXT, PresidioFinder, presidio
from remit_broker.adapters.detectors import ContentDetectors
from remit_broker.adapters.errors import ConfigError
from remit_schemas.records import Finding


class Result(NamedTuple):
    entity_type: str
    start: int
    end: int


class Engine:
    """Finds one name, with offsets in characters as Presidio gives them."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.asked: list[str] = []

    def analyze(self, text: str, language: str, entities: list[str], score_threshold: float) -> list[Result]:
        assert (language, entities, score_threshold) == ("en", ["PERSON"], 0.5)
        self.asked.append(text)
        at = text.find("Ann Lee")
        return [Result("PERSON", at, at + 7)] if at >= 0 else []


def test_what_presidio_finds_is_found_and_replaced_at_its_place():
    detectors = ContentDetectors([PresidioFinder(Engine(), ["PERSON"])])
    value = {"a": "Grüße an Ann Lee, é", "b": "nobody"}
    assert detectors.scan(value) == (Finding("pii.person", "/a"),)
    assert detectors.redact(value, ("pii",))[0] == {"a": "Grüße an [redacted:pii.person#1], é", "b": "nobody"}


def test_a_long_text_is_not_given_to_it():
    engine = Engine()
    assert list(PresidioFinder(engine, ["PERSON"]).find(b"Ann Lee " * MAX_TEXT)) == []
    assert engine.asked == []


def test_it_is_used_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    module = types.ModuleType("presidio_analyzer")
    module.AnalyzerEngine = Engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "presidio_analyzer", module)
    assert presidio((), "en") == []
    (finder,) = presidio(("PERSON",), "en")
    assert [span.kind for span in finder.find(b"Ann Lee")] == ["pii.person"]


def test_without_it_a_broker_that_was_told_to_use_it_does_not_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(ConfigError, match="not installed"):
        presidio(("PERSON",), "en")
