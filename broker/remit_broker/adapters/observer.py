"""What operators see of the records: spans by OTLP, Prometheus metrics, and a log line for every fault."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from remit_broker import __version__
from remit_broker.core import spans
from remit_broker.core.spans import SpanData
from remit_broker.core.tree import Node
from remit_schemas.errors import Refusal
from remit_schemas.records import HopClosed, HopOpened, HopRefused, TxnOpened

log = logging.getLogger("remit")

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_KINDS: Final = {"client": SpanKind.CLIENT, "server": SpanKind.SERVER}
_SCOPE: Final = InstrumentationScope("remit", __version__)

Emit = Callable[[SpanData], None]


class OtlpSpans:
    """Finished spans to a collector, in batches, in the background. Always recorded: nobody's flag samples them away."""

    def __init__(self, endpoint: str, replica: str) -> None:
        # The standard variables win over the configuration: the exporter reads them itself when no endpoint is passed.
        from_env = any(os.environ.get(name) for name in ENDPOINTS)
        exporter = OTLPSpanExporter() if from_env else OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces")
        self._processor = BatchSpanProcessor(exporter, max_queue_size=16_384, schedule_delay_millis=500)
        self._resource = Resource.create({"service.name": "remit-broker", "service.instance.id": replica})

    @staticmethod
    def wanted(endpoint: str) -> bool:
        """Whether anything says where spans should go."""
        off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        none = os.environ.get("OTEL_TRACES_EXPORTER", "").lower() == "none"
        return not (off or none) and bool(endpoint or any(os.environ.get(name) for name in ENDPOINTS))

    def emit(self, data: SpanData) -> None:
        """Queue one span."""
        self._processor.on_end(readable(data, self._resource))

    def stop(self) -> None:
        """Send what is queued."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def readable(data: SpanData, resource: Resource) -> ReadableSpan:
    """The SDK's value for a span that is already over, with the ids of the records instead of drawn ones."""
    trace = int(data.trace, 16)

    def context(span: str) -> SpanContext:
        return SpanContext(trace, int(span, 16), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

    return ReadableSpan(
        name=data.name,
        context=context(data.span),
        parent=context(data.parent) if data.parent else None,
        resource=resource,
        attributes=dict(data.attributes),
        links=[
            Link(SpanContext(int(at.trace, 16), int(at.span, 16), is_remote=True, trace_flags=TraceFlags(at.flags)))
            for at in data.links
        ],
        kind=_KINDS[data.kind],
        status=Status(StatusCode.ERROR, data.error) if data.error is not None else Status(StatusCode.UNSET),
        start_time=data.start,
        end_time=data.end,
        instrumentation_scope=_SCOPE,
    )


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
        self._series: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._hops = Counter("remit_hops", "Hops that ended", ["kind", "outcome"], registry=self.registry)
        self._refused = Counter("remit_refusals", "Calls refused", ["stage", "code"], registry=self.registry)
        self._faults = Counter("remit_faults", "Failures inside the broker", ["where"], registry=self.registry)
        self._seconds = Histogram(
            "remit_hop_duration_seconds", "From the request to the close record", ["kind"], registry=self.registry,
            buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )  # fmt: skip

    def delegated(self, record: TxnOpened) -> None:
        """A txn was opened."""
        self._span(lambda: spans.delegated(record))

    def closed(self, opened: HopOpened, closed: HopClosed, user: str) -> None:
        """A hop ended."""
        kind = opened.resource.partition("/")[0]
        ended, took = self._of(kind, closed.outcome)
        ended.inc()
        took.observe(closed.ms / 1000)
        self._span(lambda: spans.closed(opened, closed, user))

    def swept(self, node: Node, closed: HopClosed, user: str) -> None:
        """A hop was closed on behalf of whoever could not any more."""
        self._hops.labels(node.resource.partition("/")[0], closed.outcome).inc()
        self._span(lambda: spans.swept(node, closed, user))

    def refused(self, record: HopRefused) -> None:
        """A call was refused."""
        self._refused.labels(record.stage, record.code).inc(record.count)
        self._span(lambda: spans.refused(record))

    def fault(self, where: str, error: BaseException) -> None:
        """Something failed that should not."""
        self._faults.labels(where).inc()
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
