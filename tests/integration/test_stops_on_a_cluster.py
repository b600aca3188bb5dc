"""A revoked agent is cut on every server of a cluster, and its connections are counted over all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import nats
import pytest

from remit_broker.core.revocations import Entry
from remit_broker.testing import Lab, running_broker
from tests.support.cluster import Cluster, running_cluster
from tests.support.raw import RawAgent

pytestmark = pytest.mark.timeout(180)


class At:
    """What a raw agent needs of a lab, with another server's address."""

    def __init__(self, lab: Lab, url: str) -> None:
        self.seeds, self.url = lab.seeds, url


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path) as running:
        yield running


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.05)


async def connect(lab: Lab, name: str, url: str) -> RawAgent:
    return await RawAgent(At(lab, url), name, "agent").connect()  # type: ignore[arg-type]


async def test_a_revoked_agent_is_cut_on_every_server_and_counted_over_all(cluster: Cluster, tmp_path: Path) -> None:
    config = {"bus": {"url": cluster.url, "replicas": 3}, "limits": {"connections_per_agent": 3}}
    async with running_broker(tmp_path, config) as lab:
        for name in ("alice", "bob"):
            await lab.agent(name)
        urls = [node.url for node in cluster.nodes]
        mine = [await connect(lab, "alice", url) for url in urls]
        others = [await connect(lab, "bob", url) for url in urls]
        await until(lambda: lab.broker.connected.count("alice") == 3)
        for url in urls:
            with pytest.raises(nats.errors.Error):
                await connect(lab, "alice", url)
        await lab.broker.revocations.put(Entry(kind="agent", name="alice", who="ops", at="2026-01-01T00:00:00.000Z"))
        await until(lambda: all(one.nc.is_closed for one in mine))
        assert not any(one.nc.is_closed for one in others), "nobody else is cut"
        for url in urls:
            with pytest.raises(nats.errors.Error):
                await connect(lab, "alice", url)
        await until(lambda: lab.broker.connected.count("alice") == 0)
        for one in others:
            await one.close()
