"""What a trace of a txn must hold, told from its records alone; and spans of a collector or of Jaeger in the same form."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.otlp import attributes

Json = dict[str, Any]


class Seen(NamedTuple):
    """One span, as far as two accounts of it can be compared. Ids are hex; ``start`` and ``end`` are Unix milliseconds."""

    trace: str
    span: str
    parent: str
    name: str
    kind: int
    start: int
    end: int
    failed: bool
    error: str
    rule: str
    record: str
    links: frozenset[tuple[str, str, str]]


CLIENT, SERVER = Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER


def expected(records: list[Json], refusals: list[Json]) -> dict[str, Seen]:
    """The spans of one txn by id, from its records and the calls refused under it."""
    root = records[0]
    links = [(*root["continues"].split("."), "continues")] if root["continues"] else []
    found = {
        root["hop"]: Seen(
            root["txn"], root["hop"], "", f"invoke_agent {root['agent']}", SERVER, _ms(root["at"]), _ms(root["at"]) + 1,
            False, "", "", root["hash"], frozenset(links),
        )
    }  # fmt: skip
    closed = {record["hop"]: record for record in records if record["kind"] == "hop.closed"}
    resumed = {record["hop"]: record for record in records if record["kind"] == "hop.resumed"}
    for record in records:
        if record["kind"] != "hop.opened" or record["hop"] not in closed:
            continue
        hop, end = record["hop"], closed[record["hop"]]
        found[hop] = Seen(
            record["txn"], hop, record["parent"], _name(record["resource"]), CLIENT, _ms(record["at"]), _ms(end["at"]),
            end["outcome"] != "ok", _error(end), end["rule"], resumed.get(hop, record)["hash"],
            frozenset(_links(resumed.get(hop, record)) | _again(record, records, closed)),
        )  # fmt: skip
    for record in refusals:
        found[record["hop"]] = Seen(
            record["txn"], record["hop"], record["parent"], _name(record["resource"]), CLIENT, _ms(record["at"]),
            _ms(record["at"]), True, record["code"], record["rule"], record["hash"], frozenset(_links(record)),
        )  # fmt: skip
    return found


def _again(record: Json, records: list[Json], closed: dict[str, Json]) -> set[tuple[str, str, str]]:
    """The same call under the same hop that had failed before this one was opened."""
    same = ("parent", "resource", "args_digest")
    failed = [
        other["hop"]
        for other in records
        if other["kind"] == "hop.opened"
        and all(other[key] == record[key] for key in same)
        and other["hop"] in closed
        and closed[other["hop"]]["seq"] < record["seq"]
        and closed[other["hop"]]["outcome"] != "ok"
    ]
    return {(record["txn"], failed[-1], "retry")} if failed else set()


def _links(record: Json) -> set[tuple[str, str, str]]:
    links = set()
    if record.get("link"):
        _, trace, span, _ = record["link"].split("-")
        links.add((trace, span, "caller"))
    if record.get("approval"):
        links.add((record["txn"], record["approval"], "approval"))
    return links


def _name(resource: str) -> str:
    kind, name, op = resource.split("/")
    return f"execute_tool {op}" if kind == "mcp" else f"invoke_agent {name}"


def _error(closed: Json) -> str:
    if closed["outcome"] == "ok":
        return ""
    return str(closed["code"] or ("tool_error" if closed["outcome"] == "failed" else closed["outcome"]))


def _ms(at: str) -> int:
    return round(datetime.fromisoformat(at).timestamp() * 1000)


def of_collector(span: Span) -> Seen:
    """A span as the protobuf has it."""
    more = attributes(span)
    links = {
        (link.trace_id.hex(), link.span_id.hex(), str(next(pair.value.string_value for pair in link.attributes)))
        for link in span.links
    }
    return Seen(
        span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.name, span.kind,
        span.start_time_unix_nano // 1_000_000, span.end_time_unix_nano // 1_000_000, span.status.code == 2,
        str(more.get("error.type", "")), str(more.get("remit.rule", "")), str(more["remit.record.hash"]), frozenset(links),
    )  # fmt: skip


def of_jaeger(answer: Json) -> dict[str, Seen]:
    """The spans of one answer of ``GET /api/v3/traces/{id}`` by id."""
    found = {}
    for resource in answer["result"]["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                seen = _of_json(span)
                assert seen.span not in found, "Jaeger has a span twice"
                found[seen.span] = seen
    return found


def _of_json(span: Json) -> Seen:
    more = _plain(span.get("attributes", ()))
    links = {
        (link["traceId"], link["spanId"], _plain(link["attributes"])["remit.link"]) for link in span.get("links", ())
    }
    return Seen(
        span["traceId"], span["spanId"], span.get("parentSpanId", ""), span["name"], int(span.get("kind", 0)),
        int(span["startTimeUnixNano"]) // 1_000_000, int(span["endTimeUnixNano"]) // 1_000_000,
        int(span.get("status", {}).get("code", 0)) == 2, more.get("error.type", ""), more.get("remit.rule", ""),
        more["remit.record.hash"], frozenset(links),
    )  # fmt: skip


def _plain(pairs: Any) -> dict[str, str]:
    return {pair["key"]: str(next(iter(pair["value"].values()))) for pair in pairs}


def drawn(spans: dict[str, Seen]) -> str:
    """The tree of a trace as text, in order of time."""
    lines: list[str] = []

    def draw(span: Seen, depth: int) -> None:
        no = f"  ERROR {span.error}{f' ({span.rule})' if span.rule else ''}" if span.failed else ""
        to = "".join(f"  ~{why} {other[:8]}" for _, other, why in sorted(span.links, key=lambda link: link[2]))
        lines.append(f"{'  ' * depth}{span.name}  {span.span[:8]}  {span.end - span.start} ms{no}{to}")
        for child in sorted(spans.values(), key=lambda one: (one.start, one.span)):
            if child.parent == span.span:
                draw(child, depth + 1)

    for span in sorted(spans.values(), key=lambda one: one.start):
        if span.parent not in spans:
            draw(span, 0)
    return "\n".join(lines)


async def fetched(url: str, txn: str, wanted: set[str]) -> dict[str, Seen]:
    """The trace as Jaeger gives it, as soon as it has at least ``wanted``; what it has more is for the test to see."""
    import asyncio

    found: dict[str, Seen] = {}
    async with httpx.AsyncClient(base_url=url, trust_env=False) as api:
        async with asyncio.timeout(20):
            while not wanted <= set(found):
                answer = await api.get(f"/api/v3/traces/{txn}")
                found = of_jaeger(json.loads(answer.content)) if answer.status_code == 200 else {}
                await asyncio.sleep(0.1)
    return found


def cached_jaeger() -> Path | None:
    """The Jaeger that `make jaeger` built, if it is there."""
    from tools.jaeger import binary

    path = binary()
    return path if path.is_file() else None
