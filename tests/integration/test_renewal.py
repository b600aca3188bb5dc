"""Permissions of a connection run out while work is under way: nothing is lost, and nothing is heard twice."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from remit import Agent, Hop, open_task
from remit.overlap import End, Hand, Overlap, Renewing
from remit_broker.edges.attach.credentials import read_credentials
from remit_broker.edges.attach.worker import AttachWorker, Report
from remit_broker.testing import running_broker
from tests.support.attach_fixture import HASTY, Attached, well_behaved


@pytest.mark.slow
async def test_permissions_that_run_out_cost_no_reply(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Connections live for five seconds, a hop for eight; both sides renew, and a second caller never stops asking."""
    async with running_broker(tmp_path, {"bus": {"connection_ttl": 5}}) as lab:
        worker = Agent("worker", await lab.agent("worker"))

        @worker.skill
        async def slow(hop: Hop, seconds: float) -> str:
            await asyncio.sleep(seconds)
            return "done"

        desk = await lab.agent("desk")
        root = await lab.grant("desk", "agent/worker/slow", budget="calls=2000")
        async with worker, open_task(grant=root.grant, as_="desk", credentials=desk) as task:
            long = asyncio.ensure_future(task.call("agent/worker/slow", seconds=8.0, ttl=30))
            until, answered = time.monotonic() + 8, 0
            while time.monotonic() < until:
                assert await task.call("agent/worker/slow", seconds=0.01, ttl=5) == "done"
                answered += 1
            assert await long == "done" and answered > 20
        kinds = [record["kind"] for record in await lab.records(root.txn)]
        assert kinds.count("hop.opened") == kinds.count("hop.closed") == answered + 1
    lost = [record.message for record in caplog.records if "lost the bus" in record.message]
    assert not lost, "each side had its new connection before the old one ended"


@pytest.mark.slow
async def test_permissions_of_a_server_that_run_out_cost_no_call(tmp_path: Path):
    """Connections live for five seconds; a tool works for eight, another is called all the while."""
    policies = [("all.cedar", '@id("all") @reason("a test") permit (principal, action, resource);')]
    async with running_broker(tmp_path, {"bus": {"connection_ttl": 5}}, policies) as lab:
        credentials = read_credentials(await lab.agent("files", kind="mcp"))
        reports: list[Report] = []
        worker = AttachWorker("files", well_behaved(), credentials, timing=HASTY, on_report=reports.append)
        attached = Attached(worker, reports)
        await attached.until("running")
        ends: list[str] = []
        desk = await lab.agent("desk")
        root = await lab.grant("desk", "mcp/files/*", budget="calls=2000")
        async with open_task(grant=root.grant, as_="desk", credentials=desk) as task:
            long = asyncio.ensure_future(task.call("mcp/files/slow", seconds=8.0, ttl=30))
            until = time.monotonic() + 8
            while time.monotonic() < until:
                ends.append(str(await task.call("mcp/files/echo", text="again", ttl=5)))
            assert "done" in str(await long)
        await attached.stop()
        assert len(ends) > 20 and all("again" in end for end in ends)
        kinds = [record["kind"] for record in await lab.records(root.txn)]
        assert kinds.count("hop.opened") == kinds.count("hop.closed") == len(ends) + 1
    assert [report.state for report in reports].count("running") == 1, "it was never away"


async def test_while_two_connections_listen_each_message_is_handed_on_once_and_in_order():
    heard: list[str] = []

    async def hand(message: Msg) -> None:
        heard.append(message.subject)

    def message(name: str) -> Msg:
        return Msg(_client=None, subject=name, data=name.encode())  # type: ignore[arg-type]

    overlap = Overlap(hand)
    await overlap.hear_old(message("before the new one listens"))
    await overlap.hear_old(message("both"))
    await overlap.hear_new(message("both"))
    await overlap.hear_new(message("after the old one"))
    assert heard == ["before the new one listens", "both"]
    await overlap.end()
    await overlap.hear_new(message("alone"))
    assert heard == ["before the new one listens", "both", "after the old one", "alone"]


async def test_a_connection_renewed_twice_hears_once_and_a_failed_renewal_is_tried_again_soon(
    monkeypatch: pytest.MonkeyPatch,
):
    """Each connection hears every message, as on a real bus; the second renewal fails once."""
    monkeypatch.setattr("remit.overlap._BOTH", 0.02)
    monkeypatch.setattr("remit.overlap._SOON", 0.01)
    heard: list[str] = []
    listening: list[Hand] = []
    enough = asyncio.Event()
    dials = 0

    async def hand(message: Msg) -> None:
        heard.append(message.subject)

    renewal = Renewing(hand)
    listening.append(renewal.hearing())

    async def say(name: str) -> None:
        for hear in list(listening):
            await hear(Msg(_client=None, subject=name, data=name.encode()))  # type: ignore[arg-type]

    def current() -> End:
        old = listening[-1]

        async def end() -> None:
            await say(f"both {dials}")
            listening.remove(old)
            await say(f"new {dials}")

        return end

    async def renewed() -> bool:
        nonlocal dials
        dials += 1
        if dials == 2:
            return False
        if dials == 4:
            enough.set()
            await asyncio.Event().wait()
        listening.append(renewal.hearing())
        return True

    running = asyncio.create_task(renewal.run(0.1, current, renewed))
    async with asyncio.timeout(20):
        await enough.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await say("alone")
    assert heard == ["both 1", "new 1", "both 3", "new 3", "alone"]


async def test_a_connection_that_cannot_be_renewed_is_tried_again_before_its_permissions_run_out(
    monkeypatch: pytest.MonkeyPatch,
):
    """A life of a day: the next attempt does not wait for three fifths of another one."""
    monkeypatch.setattr("remit.overlap.RENEW", 0.0)
    waited: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        await real(0)

    async def nothing() -> None: ...

    async def renewed() -> bool:
        monkeypatch.setattr("remit.overlap.RENEW", 0.6)
        return len(waited) > 2

    monkeypatch.setattr("remit.overlap.asyncio.sleep", sleep)
    running = asyncio.create_task(Renewing(lambda _: nothing()).run(86400.0, lambda: nothing, renewed))
    while len(waited) < 5:
        await real(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert waited[:5] == [0.0, 1.0, 1.0, 0.5, 86400.0 * 0.6]
