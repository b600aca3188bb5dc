"""kill -9 at named points of a hop: nothing lost, the hold settled or charged, nothing dispatched twice."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from remit_broker.core.fold import fold_all
from remit_schemas.envelope import Result, Started
from tests.support.process import ProcessLab, process_lab
from tests.support.raw import RawAgent, Taken, error_of, skill

pytestmark = pytest.mark.slow

BUDGET = {"usd_micros": 1000, "tokens": 0, "calls": 3}
CALL: dict[str, Any] = {"key": "once", "want": {"budget": BUDGET, "ttl_ms": 1500}}

# Where it dies → was the hop opened, was it dispatched, how does it end.
POINTS = {
    "admit": (False, 0, None),
    "approve": (False, 0, None),
    "open": (True, 0, "unknown"),
    "started": (True, 1, "unknown"),
    "dispatch": (True, 1, "unknown"),
    "inspect_result": (True, 1, "unknown"),
    "close": (True, 1, "ok"),
}


async def _work(taken: Taken) -> None:
    await taken.say(Started(connection=taken.callee.connection))
    await taken.done()


async def _connected(lab: ProcessLab) -> tuple[RawAgent, RawAgent]:
    desk = await RawAgent(lab, "desk", "agent").connect()  # type: ignore[arg-type]
    worker = await RawAgent(lab, "worker", "agent").connect()  # type: ignore[arg-type]
    worker.handlers["work"] = _work
    await worker.serve(skill("work"))
    return desk, worker


@pytest.mark.parametrize("point", POINTS)
async def test_a_broker_killed_at_any_point_loses_and_repeats_nothing(tmp_path: Path, point: str):
    opened, dispatches, outcome = POINTS[point]
    async with process_lab(tmp_path) as lab:
        await lab.start(failpoint=point)
        await lab.agent("desk")
        await lab.agent("worker")
        desk, worker = await _connected(lab)
        txn, grant = await lab.grant("desk", "agent/worker/work")
        with suppress(Exception):
            await desk.call("agent/worker/work", txn, grant, **CALL)
        assert await lab.died() == -signal.SIGKILL
        before = len(worker.work(txn))
        assert before == dispatches
        await desk.close()
        await worker.close()

        await lab.start()
        desk, worker = await _connected(lab)
        records = await lab.settled(txn)
        fold = fold_all(records)  # hashes, order, accounts: as the stream has them
        closings = [record for record in records if record["kind"] == "hop.closed"]
        assert len(closings) == (1 if opened else 0)
        root = fold.nodes[fold.root]
        assert root.held.calls == 0
        if outcome == "unknown":
            assert closings[0]["outcome"] == "unknown"
            assert closings[0]["spent"] == BUDGET, "nobody knows what it did, so all that it held is charged"
        elif outcome == "ok":
            assert closings[0]["outcome"] == "ok"
            assert closings[0]["spent"]["calls"] == 1
        # The caller tries again with its key: what was opened is never dispatched a second time.
        again = (await desk.call("agent/worker/work", txn, grant, **CALL))[-1]
        if opened:
            assert error_of([again]).code == "DUPLICATE"
            assert len(worker.work(txn)) == 0
        else:
            assert isinstance(again, Result)
            assert len(worker.work(txn)) == 1
        await desk.close()
        await worker.close()


async def test_a_killed_broker_takes_its_nats_server_with_it_and_comes_back_with_its_data(tmp_path: Path):
    async with process_lab(tmp_path) as lab:
        await lab.start()
        await lab.agent("desk")
        txn, _ = await lab.grant("desk", "agent/**")
        assert lab.process is not None
        lab.process.kill()
        assert await lab.died() == -signal.SIGKILL
        await lab.start()  # the lock on the data folder is free only when the old server has gone
        assert [record["kind"] for record in await lab.records(txn)] == ["txn.opened"]
        assert [agent["name"] for agent in (await lab.api("GET", "/api/agents"))["agents"]] == ["desk"]
