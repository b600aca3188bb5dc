"""An attached server on the bus as it really is: with the auth callout and the permissions of a server of tools."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remit_broker.adapters.keyfiles import new_user_seed
from remit_broker.edges.attach.credentials import read_credentials
from remit_broker.edges.attach.worker import AttachWorker
from remit_schemas.errors import Code
from tests.support.attach_broker import FakeBroker
from tests.support.attach_fixture import HASTY, Attached, eventually, well_behaved
from tests.support.nats import Bus, running_bus


class Guarded:
    """A bus with callout, and a scripted broker on the broker's own connection."""

    def __init__(self, bus: Bus, folder: Path) -> None:
        self.bus = bus
        self.broker = FakeBroker(bus.url, folder, bus.broker.bus)

    def worker(self, seed: str) -> AttachWorker:
        path = self.broker.credentials("files", nkey_seed=seed)
        return AttachWorker("files", well_behaved(), read_credentials(path), timing=HASTY)


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    async with running_bus(tmp_path, {"files": "mcp", "alice": "agent"}) as bus:
        guarded = Guarded(bus, tmp_path)
        await guarded.broker.start()
        yield guarded


async def test_the_permissions_of_a_server_are_enough_for_every_frame(guarded: Guarded) -> None:
    attached = Attached(guarded.worker(guarded.bus.people.seeds["files"]), [])
    try:
        await attached.until("running")
        hop = await guarded.broker.call("files", "slow", {"seconds": 0.5})
        assert (await hop.value())["structuredContent"] == {"result": "done"}
        assert hop.progress
        cancelled = await guarded.broker.call("files", "slow", {"seconds": 30})
        await guarded.broker.cancel("files", cancelled)
        assert (await cancelled.error()).code is Code.CANCELLED
    finally:
        await attached.stop()


async def test_it_comes_back_after_the_callout_was_away_while_it_reconnected(guarded: Guarded) -> None:
    attached = Attached(guarded.worker(guarded.bus.people.seeds["files"]), [])
    try:
        await attached.until("running")
        await guarded.broker.registered()
        people, seeds = guarded.bus.people, dict(guarded.bus.people._by_nkey)
        people.forget("files")
        client = attached.worker._link._client
        assert client is not None
        refused = len(guarded.bus.told)
        await client.force_reconnect()
        await eventually(lambda: len(guarded.bus.told) >= refused + 3, 20)
        people._by_nkey = seeds
        await guarded.broker.registered(30)
        await (await guarded.broker.call("files", "echo", {"text": "back"})).value()
    finally:
        await attached.stop()


async def test_it_comes_back_after_the_bus_closed_its_connection_for_good(guarded: Guarded) -> None:
    attached = Attached(guarded.worker(guarded.bus.people.seeds["files"]), [])
    try:
        await attached.until("running")
        await guarded.broker.registered()
        client = attached.worker._link._client
        assert client is not None
        # What the client does when the server says that the credential has run out.
        await client._process_err("'User Authentication Expired'")
        await guarded.broker.registered(20)
        await (await guarded.broker.call("files", "echo", {"text": "back"})).value()
    finally:
        await attached.stop()


async def test_an_unknown_key_is_refused_with_a_reason(guarded: Guarded) -> None:
    attached = Attached(guarded.worker(new_user_seed()), [])
    report = await attached.until("failed", 30)
    assert "credentials" in report.reason
    await attached.stop()
