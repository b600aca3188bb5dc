"""What operators see of the records: spans by OTLP, Prometheus metrics, and a log line for every fault."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from remit_broker.core import spans
from remit_broker.core.spans import SpanData
from remit_broker.core.tree import Fold, Node
from remit_schemas.budget import Budget
from remit_schemas.errors import Refusal
from remit_schemas.records import Finding, HopClosed, HopOpened, HopRefused, HopResumed, TxnOpened

log = logging.getLogger("remit")

Emit = Callable[[SpanData], None]

SERIES: Final = 100
"""Different values of one label; what comes beyond is counted as ``other``."""
_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


_Family = CounterMetricFamily | GaugeMetricFamily


class _Read(Collector):
    """A number that something else keeps, read whenever somebody asks."""

    def __init__(
        self, name: str, text: str, read: Callable[[], int], kind: type[_Family] = CounterMetricFamily
    ) -> None:
        self._name, self._text, self._read, self._kind = name, text, read, kind

    def collect(self) -> Iterator[_Family]:
        yield self._kind(self._name, self._text, value=self._read())


class RecordObserver:
    """Spans, metrics and logs, made from records after the fact. What fails here never touches a hop."""

    def __init__(self, emit: Emit | None) -> None:
        self._emit = emit
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._series: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._known: dict[str, set[str]] = {}
        self._tasks = self._counter("remit_tasks", "Tasks that were opened")
        self._hops = self._counter("remit_hops", "Hops that ended", "kind", "outcome")
        self._refused = self._counter("remit_refusals", "Calls refused", "stage", "code")
        self._faults = self._counter("remit_faults", "Failures inside the broker", "where")
        self._decisions = self._counter("remit_decisions", "Hops by what policy said of them", "effect")
        self._found = self._counter("remit_findings", "What detectors saw", "kind", "where")
        self._dollars = self._counter("remit_spent_usd", "What hops themselves cost, in dollars", "kind")
        self._tokens = self._counter("remit_spent_tokens", "Tokens that hops themselves used", "kind")
        self._seconds = self._histogram("remit_hop_duration_seconds", "From the request to the close record")
        self._deciding = self._histogram("remit_decision_seconds", "From the request to the record that opens the hop")

    def delegated(self, record: TxnOpened) -> None:
        """A txn was opened."""
        self._tasks.inc()
        self._span(lambda: spans.delegated(record))

    def closed(self, opened: HopOpened, closed: HopClosed, past: Fold) -> None:
        """A hop ended."""
        kind = opened.resource.partition("/")[0]
        ended, took = self._of(kind, closed.outcome)
        ended.inc()
        took.observe(closed.ms / 1000)
        self._decisions.labels(opened.decision.effect).inc()
        self._cost(kind, closed.cost)
        self._saw(opened.findings, "arguments")
        self._saw(closed.findings, "result")
        self._span(lambda: spans.closed(opened, closed, past))

    def swept(self, node: Node, closed: HopClosed, fold: Fold, resumed: HopResumed | None = None) -> None:
        """A hop was closed on behalf of whoever could not any more."""
        kind = node.resource.partition("/")[0]
        self._hops.labels(kind, closed.outcome).inc()
        self._cost(kind, closed.cost)
        self._saw(closed.findings, "result")
        self._span(lambda: spans.swept(node, closed, fold, resumed))

    def refused(self, record: HopRefused) -> None:
        """A call was refused."""
        self._refused.labels(record.stage, record.code).inc(record.count)
        self._saw(record.findings, "arguments")
        self._span(lambda: spans.refused(record))

    def opened(self, kind: str, seconds: float) -> None:
        """A hop was opened or resumed, so long after its request."""
        self._deciding.labels(kind).observe(seconds)

    def fault(self, where: str, error: BaseException) -> None:
        """Something failed that should not."""
        self._faults.labels(self._bounded("where", where)).inc()
        why = f" ({error.cause})" if isinstance(error, Refusal) and error.cause else ""
        log.error("fault in %s: %r%s", where, error, why, exc_info=error)

    def watch(self, name: str, text: str, read: Callable[[], int]) -> None:
        """Publish a count that something else keeps, as ``<name>_total``."""
        self.registry.register(_Read(name, text, read))

    def gauge(self, name: str, text: str, read: Callable[[], int]) -> None:
        """Publish what something else is at the moment, as ``<name>``."""
        self.registry.register(_Read(name, text, read, GaugeMetricFamily))

    def metrics(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)

    def _saw(self, findings: Iterable[Finding], where: str) -> None:
        for finding in findings:
            self._found.labels(self._bounded("kind", finding.kind), where).inc(finding.count)

    def _cost(self, kind: str, cost: Budget) -> None:
        if cost.usd_micros:
            self._dollars.labels(kind).inc(cost.usd_micros / 1_000_000)
        if cost.tokens:
            self._tokens.labels(kind).inc(cost.tokens)

    def _bounded(self, label: str, value: str) -> str:
        """INVARIANT: no label has values without end (test_no_label_has_values_without_end)."""
        known = self._known.setdefault(label, set())
        if value not in known and len(known) >= SERIES:
            return "other"
        known.add(value)
        return value

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["kind"], registry=self.registry, buckets=_SECONDS)

    def _of(self, kind: str, outcome: str) -> tuple[Counter, Histogram]:
        """The two series of a hop, looked up by their labels once."""
        found = self._series.get((kind, outcome))
        if found is None:
            found = self._series[kind, outcome] = (self._hops.labels(kind, outcome), self._seconds.labels(kind))
        return found

    def _span(self, make: Callable[[], SpanData]) -> None:
        if self._emit is None:
            return
        try:
            self._emit(make())
        except Exception as error:
            self.fault("spans", error)
