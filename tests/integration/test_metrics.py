"""``/metrics``: what it says is so, nobody can blow it up, and it tells of no tenant, user, agent or tool."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from remit_broker.adapters.jetstream_ledger import JetStreamLedger
from remit_broker.adapters.observer import SERIES, RecordObserver
from remit_broker.adapters.refusal_stream import RefusalStream
from remit_broker.core.listing import ChainFilter
from remit_broker.testing import Lab, running_broker
from remit_schemas.budget import Budget
from tests.support.raw import Taken, arena_on, error_of, skill
from tests.support.story import opened, refused

ROOT = Path(__file__).parents[2]
CONFIG = {"caps": {"user": {"ann": {"day": "usd=1,calls=10"}}}, "tenants": {"acme": {}}}


async def samples(lab: Lab) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    async with httpx.AsyncClient(trust_env=False) as web:
        text = (await web.get(f"{lab.broker.http}/metrics")).raise_for_status().text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


async def busy(lab: Lab, tenant: str = "default") -> str:
    """A hop that goes well, one that waits, one call that is refused; the txn."""
    async with arena_on(lab) as arena:
        desk, worker = await arena.agent("desk", tenant=tenant), await arena.agent("worker", tenant=tenant)

        async def leaky(taken: Taken) -> None:
            await taken.done("write to ann.smith@example.org", Budget(10, 20, 0))

        worker.handlers |= {"work": Taken.done, "leak": leaky}
        await worker.serve(skill("work"), skill("leak"), skill("slow"))
        opened = await lab.grant("desk", "agent/**", tenant=tenant, budget="usd=1,tokens=1000,calls=20")
        one = {"budget": {"usd_micros": 100, "tokens": 100, "calls": 1}}
        await desk.result("agent/worker/work", opened.txn, opened.grant, want=one)
        await desk.call("agent/worker/leak", opened.txn, opened.grant, want=one)
        await desk.error("agent/worker/none", opened.txn, opened.grant)
        return opened.txn


async def test_metrics_say_what_happened_and_what_is(tmp_path: Path) -> None:
    async with running_broker(tmp_path, CONFIG) as lab:
        await busy(lab)
        await lab.broker.caught_up()
        found = await samples(lab)
        assert value(found, "remit_hops_total", kind="agent", outcome="ok") == 2
        assert value(found, "remit_refusals_total", stage="resolve", code="UNKNOWN_TARGET") == 1
        assert value(found, "remit_decisions_total", effect="allow") == 2
        assert value(found, "remit_decision_seconds_count", kind="agent") == 2
        assert value(found, "remit_findings_total", kind="pii.email", where="result") >= 1
        assert value(found, "remit_open", what="tasks") == 1
        assert value(found, "remit_open", what="hops") == 0
        assert value(found, "remit_hops_in_hand") == 0 and value(found, "remit_hops_room") == 2048
        assert value(found, "remit_index_lag_records", stream="ledger") == 0
        assert value(found, "remit_ready") == 1 and value(found, "remit_trouble", part="ledger") == 0
        assert value(found, "remit_caps_used_ratio", kind="user", window="day", unit="calls") == pytest.approx(0.2)
        assert value(found, "process_resident_memory_bytes") > 1e6


async def test_the_lag_is_what_the_streams_have_and_the_index_has_not(lab: Lab) -> None:
    """Also what another replica wrote, of which this one has heard nothing."""

    async def lag() -> tuple[float, float]:
        found = await samples(lab)
        return tuple(value(found, "remit_index_lag_records", stream=name) for name in ("ledger", "refusals"))  # type: ignore[return-value]

    await lab.broker.caught_up()
    assert await lag() == (0, 0)
    other = await JetStreamLedger.start(lab.broker.nats.core)
    others = await RefusalStream.start(lab.broker.nats.core)
    index = lab.broker.index
    async with index._writing:  # nothing is projected meanwhile
        for number in range(1, 4):
            await other.create(opened(f"{number:032x}"), "grant")
        await others.write(refused(txn="1".zfill(32)))
        assert await lag() == (3, 1)
        await other.create(opened(f"{4:032x}"), "grant")
        assert await lag() == (4, 1)
        reading = asyncio.create_task(lab.broker.caught_up())
        await asyncio.sleep(0)
        assert not reading.done()
    await reading
    assert await lag() == (0, 0)
    assert len((await index.chains("default", ChainFilter())).rows) == 4, "whoever reads has what another replica wrote"


async def test_no_series_tells_of_a_tenant_a_user_an_agent_or_a_tool(tmp_path: Path) -> None:
    async with running_broker(tmp_path, CONFIG) as lab:
        await busy(lab, "acme")
        await busy(lab)
        values = {text for _, labels in await samples(lab) for _, text in labels}
    assert values.isdisjoint({"acme", "default", "ann", "desk", "worker", "work", "agent/worker/work"})


async def test_no_caller_makes_series_without_end(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as lab, arena_on(lab) as arena:
        desk = await arena.agent("desk")
        opened = await lab.grant("desk", "agent/**")
        before = len(await samples(lab))
        for number in range(20):
            error_of(await desk.call(f"agent/nobody{number}/x{number}", opened.txn, opened.grant))
        assert len(await samples(lab)) < before + 10


def test_no_label_has_values_without_end() -> None:
    observer = RecordObserver(None)
    before = len(observer.metrics().splitlines())
    for number in range(3 * SERIES):
        observer.fault(f"where {number}", RuntimeError("x"))
    text = observer.metrics().decode()
    assert f'remit_faults_total{{where="other"}} {2 * SERIES:.1f}' in text
    assert len(text.splitlines()) <= before + 2 * (SERIES + 1) + 2


async def test_where_issuers_prove_users_metrics_are_for_operators_and_scrapers(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "http": {"port": 0, "auth": "issuer"},
        "development": {"issuer": True, "users": {"ann": {}}},
    }
    async with (
        running_broker(tmp_path, config) as lab,
        httpx.AsyncClient(base_url=lab.broker.http, trust_env=False) as web,
    ):
        answer = await web.get("/metrics")
        assert answer.status_code == 401 and answer.json()["error"]["rule"] == "http.metrics"
        token = (tmp_path / "data" / "keys" / "metrics.token").read_text(encoding="utf-8").strip()
        assert (await web.get("/metrics", headers={"Authorization": f"Bearer {token}x"})).status_code == 401
        assert (await web.get("/metrics", headers={"Authorization": f"Bearer {token}"})).status_code == 200
        assert (await web.get("/api/agents", headers={"Authorization": f"Bearer {token}"})).status_code == 401


def _named(text: str) -> set[str]:
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\b((?:remit|process)_\w+)", text)}


async def test_every_metric_of_the_dashboard_and_of_the_alerts_is_there(tmp_path: Path) -> None:
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))
    shown = " ".join(target["expr"] for panel in board["panels"] for target in panel.get("targets", ()))
    rules = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    told = " ".join(rule["expr"] for rule in rules)
    config = {**CONFIG, "traces": {"endpoint": "http://127.0.0.1:9"}}
    async with running_broker(tmp_path, config) as lab:
        await busy(lab)
        lab.broker.observer.fault("test", RuntimeError("x"))
        there = {re.sub(r"_(bucket|count|sum)$", "", name) for name, _ in await samples(lab)}
    assert _named(shown) - there == {"remit_servers"} & _named(shown)
    assert _named(told) - there == {"remit_servers"} & _named(told)
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in rules if f"`{rule['alert']}`" not in text] == []
    own = {name for name in there if name.startswith("remit_")} - {name for name in there if name.endswith("_created")}
    assert [name for name in sorted(own) if f"`{name}`" not in text] == []
