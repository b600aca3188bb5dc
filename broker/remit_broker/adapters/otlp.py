"""Finished spans to a collector by OTLP/HTTP: in batches, in a thread of its own, and every one that is lost is counted.

The SDK's own batch processor forgets what a collector that was away for ten seconds did not take, and says so in a log line only.
Here a batch is tried again while there is room for what comes meanwhile.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from remit_broker import __version__
from remit_broker.core.spans import SpanData

log = logging.getLogger("remit")

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
ROOM: Final = 16_384
"""Spans that wait; beyond, the oldest are lost."""
BATCH: Final = 512
SOON: Final = 0.5
"""Seconds that a span waits for others to go with."""
ATTEMPTS: Final = 6
"""How often a batch is tried; each attempt has the exporter's own timeout."""
LAST_WORDS: Final = 6.0
"""Seconds that a stopping broker gives to what waits."""

_KINDS: Final = {"client": SpanKind.CLIENT, "server": SpanKind.SERVER}
_SCOPE: Final = InstrumentationScope("remit", __version__)


class OtlpSpans:
    """Always recorded: nobody's flag samples them away. ``sent`` and ``lost`` count spans since the start."""

    def __init__(self, exporter: SpanExporter, replica: str, room: int = ROOM) -> None:
        self.sent = self.lost = 0
        self._exporter, self._room = exporter, room
        self._resource = _resource(replica)
        self._queue: deque[SpanData] = deque()
        self._in_hand = 0
        self._changed = threading.Condition()
        self._until: float | None = None
        """When to give up, once somebody wants this to stop."""
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    @classmethod
    def to(cls, endpoint: str, replica: str) -> OtlpSpans:
        """To ``endpoint``, unless the standard variables name another: the exporter reads those itself."""
        return cls(_exporter("" if _from_environment() else endpoint), replica)

    @staticmethod
    def wanted(endpoint: str) -> bool:
        """Whether anything says where spans should go."""
        off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        none = os.environ.get("OTEL_TRACES_EXPORTER", "").lower() == "none"
        return not (off or none) and bool(endpoint or _from_environment())

    @property
    def waiting(self) -> int:
        """Spans that no collector has yet."""
        return len(self._queue) + self._in_hand

    def emit(self, data: SpanData) -> None:
        """Queue one span. Never blocks: where there is no room, the oldest one is lost."""
        with self._changed:
            if len(self._queue) >= self._room:
                self._queue.popleft()
                self.lost += 1
            self._queue.append(data)
            if len(self._queue) >= BATCH:
                self._changed.notify()

    def stop(self) -> None:
        """Send what waits, for six seconds at most; blocks. What is left then is lost, and said."""
        with self._changed:
            self._until = time.monotonic() + LAST_WORDS
            self._changed.notify()
        self._thread.join(LAST_WORDS + 1)
        self._exporter.shutdown()
        with self._changed:
            self.lost += self.waiting
            self._queue.clear()
            self._in_hand = 0
        if self.lost:
            log.warning("%d spans were lost: the collector did not take them; the records have all of it", self.lost)

    def _run(self) -> None:
        while batch := self._next():
            taken = self._sent(batch)
            with self._changed:
                if not self._in_hand:
                    return  # nobody waited for it any longer
                self._in_hand = 0
                if taken:
                    self.sent += len(batch)
                else:
                    self.lost += len(batch)

    def _next(self) -> list[SpanData]:
        """What goes next; nothing once this is to stop and nothing waits."""
        with self._changed:
            while not self._queue and self._until is None:
                self._changed.wait(SOON)
            if self._until is None and len(self._queue) < BATCH:
                self._changed.wait(SOON)
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            self._in_hand = len(batch)
            return batch

    def _sent(self, batch: list[SpanData]) -> bool:
        spans = [readable(data, self._resource) for data in batch]
        for attempt in range(ATTEMPTS):
            try:
                if self._exporter.export(spans) is SpanExportResult.SUCCESS:
                    return True
            except Exception as error:
                log.error("spans could not be sent: %r", error)
            with self._changed:
                if self._until is not None and time.monotonic() >= self._until:
                    break
                self._changed.wait(SOON * 2**attempt)
        return False


class NotTaken(Exception):  # noqa: N818 - an answer of a collector
    """A collector did not take spans that it was sent again."""


class Again:
    """Spans that are sent once more, each with the replica it is of. Patient with a collector, and says what it did not take."""

    def __init__(self, endpoint: str) -> None:
        """To ``endpoint``; empty: where the standard variables say."""
        self._exporter = _exporter(endpoint)

    def send(self, told: Iterable[tuple[str, SpanData]]) -> int:
        """Send them in batches; how many. Blocks. Raises :class:`NotTaken`."""
        resources: dict[str, Resource] = {}
        sent, waiting = 0, iter(told)
        while batch := list(itertools.islice(waiting, BATCH)):
            for by, _ in batch:
                resources.setdefault(by, _resource(by))
            self._sent([readable(data, resources[by]) for by, data in batch])
            sent += len(batch)
        return sent

    def close(self) -> None:
        """Nothing more is sent."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _sent(self, batch: list[ReadableSpan]) -> None:
        for attempt in range(ATTEMPTS // 2):
            if attempt:
                time.sleep(SOON * 2**attempt)
            if self._exporter.export(batch) is SpanExportResult.SUCCESS:
                return
        # INVARIANT: what no collector took is said (test_a_collector_that_takes_nothing_is_said).
        raise NotTaken(f"no collector took {len(batch)} spans")


def _exporter(endpoint: str) -> OTLPSpanExporter:
    return OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces") if endpoint else OTLPSpanExporter()


def _from_environment() -> bool:
    return any(os.environ.get(name) for name in ENDPOINTS)


def _resource(replica: str) -> Resource:
    return Resource.create({"service.name": "remit-broker", "service.instance.id": replica})


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
            Link(
                SpanContext(int(at.trace, 16), int(at.span, 16), is_remote=True, trace_flags=TraceFlags(at.flags)),
                {"remit.link": at.why},
            )
            for at in data.links
        ],
        kind=_KINDS[data.kind],
        status=Status(StatusCode.ERROR, data.error) if data.error is not None else Status(StatusCode.UNSET),
        start_time=data.start,
        end_time=data.end,
        instrumentation_scope=_SCOPE,
    )
