"""Spans as a collector receives them: the tree of the ledger, whatever the agents send or drop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from remit_broker.testing import Lab, running_broker
from remit_schemas.subjects import NEW
from tests.support.otlp import attributes, otlp_sink
from tests.support.raw import Taken, arena_on, skill

FOREIGN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


async def _two_hops(lab: Lab, trace: dict[str, str] | None) -> tuple[str, list[dict[str, Any]]]:
    """desk → outer → inner, where the inner call says nothing of any trace; then a call that is refused."""
    async with arena_on(lab) as arena:
        desk, outer, inner = [await arena.agent(name) for name in ("desk", "outer", "inner")]

        async def through(taken: Taken) -> None:
            await outer.result("agent/inner/work", taken.dispatch.txn, taken.grant)
            await taken.done()

        inner.handlers["work"] = Taken.done
        outer.handlers["work"] = through
        await inner.serve(skill("work"))
        await outer.serve(skill("work"))
        opened = await lab.grant("desk", "agent/**")
        await desk.result("agent/outer/work", opened.txn, opened.grant, trace=trace)
        await desk.error("agent/outer/missing", opened.txn, opened.grant)
    return opened.txn, await lab.records(opened.txn)


async def test_one_trace_with_the_ids_and_the_tree_of_the_ledger(tmp_path: Path):
    async with otlp_sink() as sink, running_broker(tmp_path, {"traces": {"endpoint": sink.url}}) as lab:
        txn, records = await _two_hops(lab, {"traceparent": FOREIGN})
        opened = {record["hop"]: record for record in records if record["kind"] == "hop.opened"}
        refused = await lab.refusals(txn)
        spans = await sink.wait_for(records[0]["hop"], *opened, refused[0]["hop"])
    assert {span.trace_id.hex() for span in spans.values()} == {txn}
    assert spans[records[0]["hop"]].parent_span_id == b""
    for hop, record in opened.items():
        span = spans[hop]
        assert span.parent_span_id.hex() == record["parent"]
        assert span.kind == Span.SPAN_KIND_CLIENT
        seen = attributes(span)
        assert seen["remit.record.hash"] == record["hash"]
        assert seen["remit.grant.jti"] == record["jti"]
        assert seen["gen_ai.operation.name"] == "invoke_agent"
        assert seen["enduser.pseudo.id"] == "ann"
    outer = next(spans[hop] for hop, record in opened.items() if record["resource"] == "agent/outer/work")
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in outer.links] == [tuple(FOREIGN.split("-")[1:3])]
    no = spans[refused[0]["hop"]]
    assert no.status.code == Status.STATUS_CODE_ERROR
    assert attributes(no)["error.type"] == "UNKNOWN_TARGET"
    assert sink.resources[0]["service.name"] == "remit-broker"


async def test_a_traceparent_that_is_none_makes_no_link_and_no_fault(tmp_path: Path):
    async with otlp_sink() as sink, running_broker(tmp_path, {"traces": {"endpoint": sink.url}}) as lab:
        _, records = await _two_hops(lab, {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"})
        hops = [record["hop"] for record in records if record["kind"] == "hop.opened"]
        spans = await sink.wait_for(*hops)
    assert all(not spans[hop].links for hop in hops)


async def test_records_do_not_need_a_collector(lab: Lab):
    _, records = await _two_hops(lab, {"traceparent": FOREIGN})
    assert [record["link"] for record in records if record["kind"] == "hop.opened"] == [FOREIGN, None]
    assert NEW not in {record["txn"] for record in records}
