"""Spans on their way to a collector: tried again, counted when they are lost, and sent before the broker is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from remit_broker.adapters import otlp
from remit_broker.adapters.otlp import Again, NotTaken, OtlpSpans
from remit_broker.core.spans import SpanData

SECONDS = 10.0


def span(number: int) -> SpanData:
    return SpanData(
        trace="a" * 32, span=f"{number + 1:016x}", parent=None, name="x", kind="client", start=1, end=2, attributes={}
    )


class Collector(SpanExporter):
    """Takes spans, or does not."""

    def __init__(self, answer: Callable[[], SpanExportResult] = lambda: SpanExportResult.SUCCESS) -> None:
        self.answer = answer
        self.took: list[int] = []
        self.tried = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.tried.set()
        if (result := self.answer()) is SpanExportResult.SUCCESS:
            self.took += [one.context.span_id for one in spans if one.context]
        return result

    def shutdown(self) -> None:
        """Nothing is held."""


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "SOON", 0.01)
    monkeypatch.setattr(otlp, "LAST_WORDS", 0.5)


def test_what_waits_when_the_broker_stops_is_sent_first() -> None:
    collector = Collector()
    spans = OtlpSpans(collector, "r")
    for number in range(2000):
        spans.emit(span(number))
    spans.stop()
    assert collector.took == list(range(1, 2001))
    assert (spans.sent, spans.lost, spans.waiting) == (2000, 0, 0)


def test_a_collector_that_was_away_for_a_moment_misses_nothing() -> None:
    answers = [SpanExportResult.FAILURE, SpanExportResult.FAILURE]
    collector = Collector(lambda: answers.pop() if answers else SpanExportResult.SUCCESS)
    spans = OtlpSpans(collector, "r")
    spans.emit(span(0))
    assert collector.tried.wait(SECONDS)
    spans.stop()
    assert (collector.took, spans.sent, spans.lost) == ([1], 1, 0)


def test_a_collector_that_takes_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [SpanExportResult.FAILURE, *([SpanExportResult.SUCCESS] * 3)]
    collector = Collector(lambda: answers.pop(0) if answers else SpanExportResult.FAILURE)
    monkeypatch.setattr(otlp, "_exporter", lambda endpoint: collector)
    again = Again("")
    assert again.send(("r", span(number)) for number in range(1100)) == 1100
    assert collector.took == list(range(1, 1101)), "in batches, each tried again"
    with pytest.raises(NotTaken, match="no collector took 2 spans"):
        again.send([("r", span(1)), ("r", span(2))])
    again.close()


def test_every_span_that_found_no_room_is_counted() -> None:
    hold, go = threading.Event(), threading.Event()

    def answer() -> SpanExportResult:
        hold.set()
        go.wait(SECONDS)
        return SpanExportResult.SUCCESS

    collector = Collector(answer)
    spans = OtlpSpans(collector, "r", room=10)
    spans.emit(span(0))
    assert hold.wait(SECONDS)
    for number in range(1, 26):
        spans.emit(span(number))
    assert (spans.lost, spans.waiting) == (15, 11)
    go.set()
    spans.stop()
    assert collector.took == [1, *range(17, 27)], "the oldest went"
    assert (spans.sent, spans.lost) == (11, 15)


def test_a_collector_that_never_takes_anything_keeps_no_broker_from_stopping() -> None:
    spans = OtlpSpans(Collector(lambda: SpanExportResult.FAILURE), "r")
    for number in range(5):
        spans.emit(span(number))
    spans.stop()
    assert (spans.sent, spans.lost, spans.waiting) == (0, 5, 0)


def test_an_exporter_that_fails_is_tried_again() -> None:
    bad = [ValueError("no")]

    def answer() -> SpanExportResult:
        if bad:
            raise bad.pop()
        return SpanExportResult.SUCCESS

    collector = Collector(answer)
    spans = OtlpSpans(collector, "r")
    spans.emit(span(0))
    assert collector.tried.wait(SECONDS)
    spans.stop()
    assert (spans.sent, spans.lost) == (1, 0)
