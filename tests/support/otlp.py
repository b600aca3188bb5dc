"""An OTLP/HTTP collector of a few lines: decodes the real protobuf and keeps the spans."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Sink:
    """The spans received so far, by span id in hex."""

    def __init__(self) -> None:
        self.spans: dict[str, Span] = {}
        self.resources: list[dict[str, str]] = []
        self.url = ""
        self._grown = asyncio.Condition()

    async def wait_for(self, *ids: str) -> dict[str, Span]:
        """Wait until every one of ``ids`` was exported."""
        async with asyncio.timeout(15), self._grown:
            await self._grown.wait_for(lambda: set(ids) <= set(self.spans))
        return self.spans

    async def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        async with self._grown:
            for resource in request.resource_spans:
                self.resources.append({a.key: a.value.string_value for a in resource.resource.attributes})
                for scope in resource.scope_spans:
                    self.spans.update({span.span_id.hex(): span for span in scope.spans})
            self._grown.notify_all()


def attributes(span: Span) -> dict[str, object]:
    """The attributes of a span as plain values."""
    found: dict[str, object] = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        if kind == "array_value":
            found[pair.key] = [item.string_value for item in pair.value.array_value.values]
        else:
            found[pair.key] = getattr(pair.value, kind or "string_value")
    return found


@asynccontextmanager
async def otlp_sink() -> AsyncIterator[Sink]:
    """A collector on a free port of the loopback."""
    sink = Sink()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:] if ": " in line)
                body = await reader.readexactly(int(fields["content-length"]))
                await sink.take(gzip.decompress(body) if fields.get("content-encoding") == "gzip" else body)
                answer = ExportTraceServiceResponse().SerializeToString()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: %d\r\n\r\n%s"
                    % (len(answer), answer)
                )
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    sink.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield sink
    finally:
        server.close()
