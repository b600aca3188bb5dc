"""The trace of a chain is the chain: span for span as the ledger has it, in a collector and in a real Jaeger."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest

from remit_broker.adapters.cedar import packaged
from remit_broker.core.retrace import of_chain, of_refusal
from remit_broker.hop.decide import Approver, decide
from remit_broker.testing import Lab, running_broker
from remit_schemas.envelope import Accepted, InputRequired, Result
from tests.support.cli import remit
from tests.support.jaeger import running_jaeger
from tests.support.otlp import attributes, otlp_sink
from tests.support.process import process_lab
from tests.support.raw import Arena, RawAgent, Taken, arena_on, skill, tool
from tests.support.tracing import Seen, cached_jaeger, drawn, expected, fetched, of_collector

FOREIGN = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
HOLD = {"usd_micros": 1000, "tokens": 0, "calls": 10}
DETACH = '@id("may-detach") @reason("yes") permit (principal, action == Action::"detach", resource);'
POLICIES = [("default.cedar", packaged("default.cedar")), ("detach.cedar", DETACH)]


async def _chain(arena: Arena) -> tuple[str, str]:
    """A task with everything in it that a trace could lose; its txn, and that of the task that it was carried on in.

    desk → outer → inner, and inner says nothing of any trace. Then: a call that fails and is made again, one that a person
    approves, one that is parked and resumed, one that is refused, one that is detached.
    """
    lab = arena.lab
    desk, outer, inner = [await arena.agent(name) for name in ("desk", "outer", "inner")]
    mail = await arena.agent("mail", "mcp")
    told: dict[str, str] = {}
    failures = ["once"]

    async def through(taken: Taken) -> None:
        await outer.result("agent/inner/work", taken.dispatch.txn, taken.grant, want={"budget": {**HOLD, "calls": 2}})
        frames = await outer.call(
            "agent/inner/later", taken.dispatch.txn, taken.grant, detach=True, want={"budget": {**HOLD, "calls": 3}}
        )
        assert isinstance(frames[-1], Result), frames
        told.update(frames[-1].value)
        await outer.result("agent/inner/later", told["txn"], told["grant"])
        await taken.done()

    async def flaky(taken: Taken) -> None:
        await taken.say(Result(value="no", failed=bool(failures)))
        failures.clear()

    async def asking(taken: Taken) -> None:
        if taken.dispatch.resumed is None:
            await taken.park()
        else:
            await taken.done()

    inner.handlers |= {"work": Taken.done, "later": Taken.done, "ask": asking}
    outer.handlers["work"] = through
    mail.handlers |= {"send": Taken.done, "flaky": flaky}
    await mail.serve({"name": "send", "inputSchema": {"type": "object"}}, tool("flaky"))
    await inner.serve(skill("work"), skill("later"), skill("ask"))
    await inner.wait_for_input()
    await outer.serve(skill("work"))
    opened = await lab.grant("desk", "agent/**", "mcp/**")
    txn, grant = opened.txn, opened.grant

    await desk.result("agent/outer/work", txn, grant, trace=FOREIGN, want={"budget": HOLD})
    await desk.result("mcp/mail/flaky", txn, grant, {"n": 1})
    await desk.result("mcp/mail/flaky", txn, grant, {"n": 1})
    await desk.result("mcp/mail/flaky", txn, grant, {"n": 2})
    asked = await desk.error("mcp/mail/send", txn, grant, {"to": "ann"})
    assert asked.code == "APPROVAL_REQUIRED" and asked.approval
    eve = Approver(who="test:eve", user="eve", tenant="default", auth="test", roles=("approver",))
    await decide(txn, asked.approval.rpartition(".")[2], "approve", "fine", eve, lab.broker.ports)
    await desk.result("mcp/mail/send", txn, grant, {"to": "ann"})
    frames = await desk.call("agent/inner/ask", txn, grant, want={"budget": {**HOLD, "calls": 2}})
    assert isinstance(frames[0], Accepted) and isinstance(frames[-1], InputRequired), frames
    hop = frames[0].hop
    await desk.result("agent/inner/ask", txn, grant, resume=hop, input="yes", want={"budget": {**HOLD, "calls": 2}})
    assert (await desk.error("agent/outer/missing", txn, grant)).code == "UNKNOWN_TARGET"
    too_much = {"budget": {**HOLD, "calls": 10_000}}
    assert (await desk.error("agent/inner/work", txn, grant, want=too_much)).code == "BUDGET_EXCEEDED"
    return txn, told["txn"]


async def _of_ledger(lab: Lab, txn: str) -> dict[str, Seen]:
    return expected(await lab.records(txn), await lab.refusals(txn))


def _said(spans: Iterable[Seen]) -> set[str]:
    return {why for span in spans for _, _, why in span.links}


async def test_a_collector_has_the_tree_of_the_ledger_span_for_span(tmp_path: Path):
    async with otlp_sink() as sink, running_broker(tmp_path, {"traces": {"endpoint": sink.url}}, POLICIES) as lab:
        async with arena_on(lab) as arena:
            txn, later = await _chain(arena)
        ledger = await _of_ledger(lab, txn)
        carried = await _of_ledger(lab, later)
        await sink.wait_for(*ledger, *carried)
        records, refusals = await lab.records(txn), await lab.refusals(txn)
    again = {told.span.span: told.span for told in (*of_chain(records), *map(of_refusal, refusals))}
    assert again.keys() == ledger.keys()
    for span, one in again.items():
        sent = {key: list(value) if isinstance(value, tuple) else value for key, value in one.attributes.items()}
        assert attributes(sink.spans[span]) == sent, "what is made of the records later is what was sent then"
    got = {span: of_collector(one) for span, one in sink.spans.items()}
    assert {span: seen for span, seen in got.items() if seen.trace == txn} == ledger
    assert {span: seen for span, seen in got.items() if seen.trace == later} == carried
    assert _said(ledger.values()) == {"caller", "approval", "retry"} and _said(carried.values()) == {"continues"}
    errors = {seen.error for seen in ledger.values() if seen.failed}
    assert errors >= {"tool_error", "APPROVAL_REQUIRED", "UNKNOWN_TARGET", "BUDGET_EXCEEDED"}


@pytest.mark.slow
async def test_jaeger_gives_back_the_tree_of_the_ledger_span_for_span(tmp_path: Path):
    binary = cached_jaeger()
    if binary is None:
        pytest.skip("no Jaeger was built on this machine: make jaeger")
    (tmp_path / "jaeger").mkdir()
    async with running_jaeger(binary, tmp_path / "jaeger") as jaeger:
        config = {"traces": {"endpoint": jaeger.otlp}}
        async with running_broker(tmp_path / "broker", config, POLICIES) as lab, arena_on(lab) as arena:
            txn, later = await _chain(arena)
            ledger, carried = await _of_ledger(lab, txn), await _of_ledger(lab, later)
            got = await fetched(jaeger.query, txn, set(ledger))
            also = await fetched(jaeger.query, later, set(carried))
    assert got == ledger
    assert also == carried
    print(f"\n{len(got)} spans of txn {txn}\n{drawn(got)}\n\n{len(also)} spans of txn {later}\n{drawn(also)}")


@pytest.mark.slow
async def test_a_replica_that_is_killed_leaves_the_trace_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The hop that it had in hand is closed by the other one, and its span is the other one's."""
    async with otlp_sink() as sink, process_lab(tmp_path) as lab:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
        ready = await lab.start("", "--replicas", "2")
        for name in ("desk", "worker"):
            await lab.agent(name)
        desk, worker = [await RawAgent(lab, name, "agent").connect() for name in ("desk", "worker")]  # type: ignore[arg-type]
        worker.handlers["work"] = Taken.done
        await worker.serve(skill("work"), skill("slow"))
        txn, grant = await lab.grant("desk", "agent/**")
        await desk.result("agent/worker/work", txn, grant)
        calling = asyncio.ensure_future(desk.call("agent/worker/slow", txn, grant, want={"ttl_ms": 3000}))
        await worker.took(txn, 2)
        records = await lab.records(txn)
        await sink.wait_for(records[0]["hop"], records[1]["hop"])
        victim = next(one for one in ready["replicas"] if one["replica"] == records[-1]["by"])
        os.kill(victim["pid"], signal.SIGKILL)
        async with asyncio.timeout(40):
            while records[-1]["kind"] != "hop.closed":
                await asyncio.sleep(0.2)
                with contextlib.suppress(httpx.TransportError, httpx.HTTPStatusError):  # it may have been the HTTP edge
                    records = await lab.records(txn)
        assert records[-1]["by"] != victim["replica"] and records[-1]["outcome"] == "unknown"
        ledger = expected(records, [])
        spans = await sink.wait_for(*ledger)
        assert {span: of_collector(one) for span, one in spans.items()} == ledger
        # Whoever closed the hop sent its span: the other one, or the one that was started in the place of the killed one.
        told = {record["by"] for record in records if record["kind"] in ("txn.opened", "hop.closed")}
        assert told <= {resource["service.instance.id"] for resource in sink.resources}
        await asyncio.gather(calling, return_exceptions=True)
        await desk.close()
        await worker.close()


async def test_a_broker_that_is_asked_to_stop_sends_every_span_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with otlp_sink() as sink, process_lab(tmp_path) as lab:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
        await lab.start()
        for name in ("desk", "worker"):
            await lab.agent(name)
        desk, worker = [await RawAgent(lab, name, "agent").connect() for name in ("desk", "worker")]  # type: ignore[arg-type]
        worker.handlers["work"] = Taken.done
        await worker.serve(skill("work"))
        txn, grant = await lab.grant("desk", "agent/**", calls=100)
        one = {"budget": {"usd_micros": 0, "tokens": 0, "calls": 1}}
        await asyncio.gather(*(desk.result("agent/worker/work", txn, grant, want=one) for _ in range(50)))
        await lab.stop()  # at once: less than what a span waits for others to go with
        sent = {span: of_collector(one) for span, one in sink.spans.items()}
        await desk.close()
        await worker.close()
        await lab.start()
        ledger = expected(await lab.records(txn), [])
        assert len(ledger) == 51 and sent == ledger
        async with otlp_sink() as later:
            # A collector that was not there when it happened.
            told = await asyncio.to_thread(
                remit, "trace", "resend", txn[:8], "--to", later.url, "-c", str(tmp_path), "--json", fresh=True
            )
            assert json.loads(told.out) == {"spans": 51, "to": later.url}, told
            assert {span: of_collector(one) for span, one in later.spans.items()} == ledger
            assert {one["service.instance.id"] for one in later.resources} == {
                one["by"] for one in await lab.records(txn)
            }
        told = await asyncio.to_thread(
            remit, "trace", "resend", "--since", "1h", "--to", sink.url, "-c", str(tmp_path), "--json", fresh=True
        )
        assert json.loads(told.out)["spans"] == 51
