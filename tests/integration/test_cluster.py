"""The broker on a real cluster of three NATS servers: nodes come and go, what was acknowledged stays."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remit import Agent
from remit_broker.edges.attach.credentials import read_credentials
from remit_broker.edges.attach.wire import connect, connection_name
from remit_broker.testing import Lab, running_broker
from remit_schemas.envelope import Result
from remit_schemas.errors import Refusal
from tests.attacks.test_budget_race import conserved
from tests.support.cluster import Cluster, running_cluster
from tests.support.process import ProcessLab, process_lab
from tests.support.raw import RawAgent, Taken, skill


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path) as running:
        yield running


async def test_a_node_can_be_killed_frozen_and_started_again(cluster: Cluster):
    async with cluster.client() as nc:
        await nc.jetstream().add_stream(name="S", subjects=["s"], num_replicas=3)
        await nc.jetstream().publish("s", b"1", timeout=5)
    await cluster.settled()
    first = await cluster.until_led("S")
    await first.kill()
    second = await cluster.until_led("S", not_by=first)
    await first.start()
    await cluster.settled()
    second.freeze()
    assert await cluster.until_led("S", not_by=second) is not second
    second.thaw()
    await cluster.settled()
    assert (await cluster.info("S"))["state"]["messages"] == 1


async def test_a_broker_runs_on_the_cluster_with_every_stream_on_three_nodes(cluster: Cluster, tmp_path: Path):
    async with running_broker(tmp_path, {"bus": {"url": cluster.url, "replicas": 3}}) as lab:
        await lab.agent("planner")
        async with cluster.client() as nc:
            streams = await nc.jetstream().streams_info()
        assert {stream.config.name for stream in streams} >= {"LEDGER", "REFUSALS", "KV_registry", "KV_revocations"}
        assert {stream.config.num_replicas for stream in streams} == {3}


async def test_an_attached_server_and_an_agent_find_the_bus_by_the_first_server_that_answers(lab: Lab):
    """``bus`` in their credentials names the servers of a cluster; the first of them is down."""
    several = f"nats://127.0.0.1:1,{lab.url}"

    async def nothing(*_: object) -> None:
        return None

    found = read_credentials(await lab.agent("files", kind="mcp"))
    client = await connect(
        found, connection_name(), bus=several, seconds=10, on_reconnect=nothing, on_error=nothing, on_closed=nothing
    )
    assert client.is_connected
    await client.close()
    agent = Agent("desk", await lab.agent("desk"), several)
    await agent.connect()
    assert agent.connected
    await agent.stop(0)


def on_cluster(lab: ProcessLab, cluster: Cluster) -> None:
    """Give the folder of a broker the bus and the keys of the cluster, as an operator does."""
    text = lab.config.read_text(encoding="utf-8")
    text = text.replace('# url = ""', f'url = "{cluster.url}"', 1).replace("# replicas = 1", "replicas = 3")
    lab.config.write_text(text, encoding="utf-8")
    data = lab.folder / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    shutil.copytree(cluster.keys.folder / "keys", data / "keys")


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_replica_and_the_leader_of_the_ledger_are_killed_mid_flight_and_nothing_is_lost(
    cluster: Cluster, tmp_path: Path
):
    """Two brokers, six callers on one budget; kill -9 of one broker and of the node that leads the ledger; all come back."""
    async with process_lab(tmp_path / "one") as one, process_lab(tmp_path / "two") as two:
        for lab in (one, two):
            on_cluster(lab, cluster)
            await lab.start()
        await one.agent("desk")
        await one.agent("worker")
        leader = await cluster.until_led("LEDGER")
        one.url = next(node.url for node in cluster.nodes if node is not leader)
        desk, worker = [await RawAgent(one, name, "agent").connect() for name in ("desk", "worker")]  # type: ignore[arg-type]

        working: dict[str, str] = {}
        """The hops that are being worked on, and the replica of each."""

        async def work(taken: Taken) -> None:
            working[taken.dispatch.hop] = taken.dispatch.replica
            await asyncio.sleep(0.05)
            del working[taken.dispatch.hop]
            await taken.done()

        worker.handlers["work"] = work
        await worker.serve(skill("work"))
        txn, grant = await one.grant("desk", "agent/worker/work", calls=400)
        other = (await two.api("GET", "/api/status"))["replica"]
        want = {"budget": {"usd_micros": 0, "tokens": 0, "calls": 1}, "ttl_ms": 3000}
        data = json.dumps({"v": 1, "args": {}, "grant": grant, "want": want}).encode()
        ends, calling = list[bool](), True

        async def caller() -> None:
            while calling:
                try:
                    frames = await desk.ask(desk.subject("agent/worker/work", txn), data, seconds=4)
                    ends.append(isinstance(frames[-1], Result))
                except (TimeoutError, Refusal):
                    ends.append(False)
                await asyncio.sleep(0.02)

        callers = [asyncio.ensure_future(caller()) for _ in range(6)]
        await _until_good(ends, 10)
        assert two.process is not None
        async with asyncio.timeout(60):
            while other not in working.values():
                await asyncio.sleep(0)
        two.process.send_signal(signal.SIGKILL)
        await leader.kill()
        assert await two.died() == -signal.SIGKILL
        await _until_good(ends, len(ends) + 10)  # one broker and two nodes go on
        released = sum(ends)
        await leader.start()
        await two.start()
        await _until_good(ends, len(ends) + 5)
        calling = False
        await asyncio.gather(*callers)
        records = await one.settled(txn)
        fold = conserved(records)
        assert fold.totals.held.calls == 0
        opened = [record for record in records if record["kind"] == "hop.opened"]
        outcomes = [record["outcome"] for record in records if record["kind"] == "hop.closed"]
        assert len({record["by"] for record in opened}) >= 2, "both took calls"
        assert "unknown" in outcomes, "a hop was in flight when its broker died, or this proved nothing"
        assert released <= sum(ends) <= outcomes.count("ok"), "no result without its close record"
        dispatched = [taken.dispatch.hop for taken in worker.work(txn)]
        assert len(dispatched) == len(set(dispatched)) and set(dispatched) <= {record["hop"] for record in opened}
        await cluster.settled()
        assert await two.records(txn) == records, "both indexes have the same"
        await desk.close()
        await worker.close()


async def _until_good(ends: list[bool], count: int) -> None:
    async with asyncio.timeout(60):
        while sum(ends[-count:]) < min(count, 5) or len(ends) < count:
            await asyncio.sleep(0.05)
