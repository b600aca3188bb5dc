"""Replicas that die or freeze with hops in hand: closed by the others, once, and never acted on later."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remit_broker.adapters.revocations import KvRevocations
from remit_broker.adapters.world import SystemClock
from remit_broker.core.times import rfc3339
from remit_broker.hop.close import sweep
from remit_broker.testing import Lab, running_broker
from remit_schemas.envelope import Accepted, Error, Frame, Result
from remit_schemas.names import Jti
from remit_schemas.records import HopOpened, parse_record, seal
from tests.support.process import process_lab
from tests.support.raw import RawAgent, Taken, arena_on, error_of, skill, tool

QUICK = {"limits": {"replica_silence": 3.0, "orphan_grace": 0.2}}


async def opened_by(lab: Lab, txn: str, like: dict[str, Any], by: str, exp: float, deadline: float) -> str:
    """Append a hop like one that was there, as another replica would have opened it; its id."""
    hop = os.urandom(8).hex()
    async with lab.broker.ledger.turn("default", txn) as turn:
        model = parse_record(like)
        assert isinstance(model, HopOpened)
        record = seal(
            msgspec.structs.replace(
                model, hop=hop, by=by, seq=turn.fold.seq + 1, prev=turn.fold.hash, veil=turn.fold.veil, at=rfc3339(time.time()),
                jti=str(Jti(txn, hop, 1)), exp=int(exp), deadline=int(deadline * 1000), hash="",
            )
        )  # fmt: skip
        await turn.append(record, None)
    return hop


async def test_a_hop_of_a_silent_replica_is_closed_only_after_its_grant(tmp_path: Path):
    """Two hops of one that is dead: the grant of the first runs out soon, that of the other one much later, both in time."""
    async with running_broker(tmp_path, QUICK) as lab, arena_on(lab) as arena:
        alice, files = await arena.agent("alice"), await arena.agent("files", "mcp")

        async def answer(taken: Taken) -> None:
            await taken.done()

        files.handlers["read"] = answer
        await files.serve(tool("read"))
        root = await lab.grant("alice", "mcp/**")
        await alice.result("mcp/files/read", root.txn, root.grant)
        like = next(record for record in await lab.records(root.txn) if record["kind"] == "hop.opened")
        began = time.time()
        exp = int(began) + 6
        soon = await opened_by(lab, root.txn, like, "deadbeef", exp, began + 300)
        late = await opened_by(lab, root.txn, like, "deadbeef", began + 120, began + 300)
        mine = await opened_by(lab, root.txn, like, lab.broker.replica, exp, began + 300)
        async with asyncio.timeout(15):
            while (await lab.broker.ledger.newest("default", root.txn)).is_open(soon):
                await asyncio.sleep(0.05)
        assert time.time() >= exp + 0.2, (
            "its replica had been silent for three seconds long before, and that alone closed nothing"
        )
        fold = await lab.broker.ledger.newest("default", root.txn)
        assert fold.is_open(late), "its grant is still good, so its replica, if only frozen, could still act"
        assert fold.is_open(mine), "this replica lives"
        closing = (await lab.records(root.txn))[-1]
        assert (closing["hop"], closing["outcome"], closing["reason"]) == (soon, "unknown", "its replica fell silent")


async def test_a_replica_that_lost_time_before_its_dispatch_asks_the_ledger_again(tmp_path: Path):
    """Between opening and dispatch two seconds pass, in which another one closes the task. Heartbeats go on meanwhile."""
    async with running_broker(tmp_path) as lab, arena_on(lab) as arena:
        alice, files = await arena.agent("alice"), await arena.agent("files", "mcp")
        await files.serve(tool("read"))
        root = await lab.grant("alice", "mcp/**")
        bus: Any = lab.broker.ports.bus
        publish, accepted, go_on = bus.answer, asyncio.Event(), asyncio.Event()

        async def slow(reply: str, frame: Frame) -> None:
            await publish(reply, frame)
            if isinstance(frame, Accepted):
                accepted.set()
                await go_on.wait()

        bus.answer = slow
        calling = asyncio.ensure_future(alice.call("mcp/files/read", root.txn, root.grant))
        await asyncio.wait_for(accepted.wait(), 5)
        hop = next(iter((await lab.broker.ledger.newest("default", root.txn)).totals.open_children))
        async with lab.broker.ledger.turn("default", root.txn) as turn:
            await sweep(hop, lab.broker.ports, turn, "another one closed it")
        await asyncio.sleep(2.1)
        go_on.set()
        body = error_of(await calling)
        assert body.code == "CANCELLED"
        await arena.silent(files)
        assert files.work(root.txn) == []


async def test_a_watch_that_hears_something_at_its_end_ends(lab: Lab):
    """What arrives in the same turn of the loop as the cancellation must not swallow it: the broker would never stop."""
    for _ in range(3):
        other = KvRevocations(SystemClock(), lab.broker.observer.fault, "other")
        await other.start(lab.broker.nats.core.jetstream(), 1)
        async with asyncio.timeout(5):
            await other.stop()  # its goodbye is heard by its own watch just then
    # The goodbye is on its way to the watch of this one too.
    async with asyncio.timeout(5):
        while [peer.replica for peer in lab.broker.revocations.presence.peers(time.monotonic(), 30.0)] != [
            lab.broker.replica
        ]:
            await asyncio.sleep(0.01)


async def _worker(lab: Any, name: str) -> RawAgent:
    return await RawAgent(lab, name, "agent").connect()


@pytest.mark.slow
async def test_a_replica_that_was_frozen_before_its_dispatch_sends_nothing_when_it_goes_on(tmp_path: Path):
    """SIGSTOP between the opening and the dispatch; the other replica closes the hop; SIGCONT: the callee hears nothing."""
    async with process_lab(tmp_path / "one") as lab:
        await lab.start(failpoint="freeze:open")
        await lab.agent("desk")
        await lab.agent("worker")
        desk, worker = await _worker(lab, "desk"), await _worker(lab, "worker")

        async def work(taken: Taken) -> None:
            await taken.done()

        worker.handlers["work"] = work
        await worker.serve(skill("work"))
        txn, grant = await lab.grant("desk", "agent/worker/work")
        request = {"v": 1, "args": {}, "grant": grant, "want": {"ttl_ms": 1500}}
        subject = desk.subject("agent/worker/work", txn)
        calling = asyncio.ensure_future(desk.ask(subject, msgspec.json.encode(request), seconds=30))
        assert lab.process is not None
        await _until_frozen(lab.process.pid)
        shutil.copytree(tmp_path / "one" / "data" / "keys", tmp_path / "two" / "data" / "keys")
        for folder in (tmp_path / "two" / "data", tmp_path / "two" / "data" / "keys"):
            folder.chmod(0o700)
        config = {**QUICK, "issuer": "http://127.0.0.1", "bus": {"url": lab.url}}
        async with running_broker(tmp_path / "two", config) as other:
            async with asyncio.timeout(20):
                while (records := await other.records(txn))[-1]["kind"] != "hop.closed":
                    await asyncio.sleep(0.1)
            assert [record["kind"] for record in records] == ["txn.opened", "hop.opened", "hop.closed"]
            assert records[1]["by"] != records[2]["by"] == other.broker.replica
            assert worker.work(txn) == []
            lab.process.send_signal(signal.SIGCONT)
            final = (await calling)[-1]
            assert isinstance(final, Error)
            # Its answer to the caller came after whatever it would have sent to the callee.
            await worker.nc.flush()
            assert worker.work(txn) == []
            async with asyncio.timeout(10):
                # The one that slept refuses until it has heard its own heartbeat again.
                while isinstance(again := (await desk.call("agent/worker/work", txn, grant))[-1], Error):
                    assert again.error.code == "LEDGER_UNAVAILABLE"
            assert isinstance(again, Result), "both go on"
        await desk.close()
        await worker.close()


async def _until_frozen(pid: int) -> None:
    async with asyncio.timeout(20):
        while not _frozen(pid):
            await asyncio.sleep(0.02)


def _frozen(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
