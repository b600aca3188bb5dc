"""The broker on a real cluster of three NATS servers: nodes come and go, what was acknowledged stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remit_broker.testing import running_broker
from tests.support.cluster import Cluster, running_cluster


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
