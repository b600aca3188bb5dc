"""kill -9 at the points of long work: a parked hop stays what it is, a resumption happens once, what was moved is charged."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from remit_broker.adapters.cedar import packaged
from remit_broker.core.fold import Fold, fold_all
from remit_broker.starter import write_policies
from remit_schemas.envelope import InputRequired, Result
from tests.crash.test_failpoints import _connected
from tests.support.process import ProcessLab, process_lab
from tests.support.raw import RawAgent, Taken

pytestmark = pytest.mark.slow

WORK = "agent/worker/work"
BUDGET = {"usd_micros": 1000, "tokens": 0, "calls": 3}
WANT: dict[str, Any] = {"want": {"budget": BUDGET, "ttl_ms": 2500}}


async def _ask_once(taken: Taken) -> None:
    if taken.dispatch.resumed is None:
        await taken.park("may I?")
    else:
        await taken.done(taken.dispatch.resumed.input)


async def _together(lab: ProcessLab) -> tuple[RawAgent, RawAgent]:
    desk, worker = await _connected(lab)
    worker.handlers["work"] = _ask_once
    await worker.wait_for_input()
    return desk, worker


async def _fold(lab: ProcessLab, txn: str) -> Fold:
    return fold_all(await lab.records(txn))


async def _hop(lab: ProcessLab, txn: str) -> str:
    return next(record["hop"] for record in await lab.records(txn) if record["kind"] == "hop.opened")


async def test_a_broker_killed_after_parking_leaves_a_hop_that_can_be_resumed(tmp_path: Path) -> None:
    async with process_lab(tmp_path) as lab:
        await lab.start(failpoint="park")
        await lab.agent("desk")
        await lab.agent("worker")
        desk, worker = await _together(lab)
        txn, grant = await lab.grant("desk", WORK)
        with suppress(Exception):
            await desk.call(WORK, txn, grant, **WANT)
        assert await lab.died() == -signal.SIGKILL
        await desk.close()
        await worker.close()

        await lab.start()
        desk, worker = await _together(lab)
        hop = await _hop(lab, txn)
        fold = await _fold(lab, txn)
        assert fold.nodes[hop].state == "parked" and fold.totals.held.calls == 1, "it keeps its one call, no more"
        # Nobody told the caller; it tries, and the connection that parked is gone as well.
        final = (await desk.call(WORK, txn, grant, resume=hop, input="yes", **WANT))[-1]
        assert isinstance(final, Result) and final.value == "yes"
        assert len(worker.work(txn)) == 1
        await desk.close()
        await worker.close()


@pytest.mark.parametrize("point", ["resume", "sent"])
async def test_a_broker_killed_while_it_resumes_dispatches_at_most_once(tmp_path: Path, point: str) -> None:
    async with process_lab(tmp_path) as lab:
        await lab.start()
        await lab.agent("desk")
        await lab.agent("worker")
        desk, worker = await _together(lab)
        txn, grant = await lab.grant("desk", WORK)
        assert isinstance((await desk.call(WORK, txn, grant, **WANT))[-1], InputRequired)
        await desk.close()
        await worker.close()
        await lab.stop()

        await lab.start(failpoint=point)
        desk, worker = await _together(lab)
        hop = await _hop(lab, txn)
        with suppress(Exception):
            await desk.call(WORK, txn, grant, resume=hop, input="yes", **WANT)
        assert await lab.died() == -signal.SIGKILL
        assert len(worker.work(txn)) <= (0 if point == "resume" else 1)
        await desk.close()
        await worker.close()

        await lab.start()
        records = await lab.settled(txn)
        assert [record["kind"] for record in records][-2:] == ["hop.resumed", "hop.closed"]
        assert records[-1]["outcome"] == "unknown"
        assert records[-1]["spent"] == {**BUDGET, "calls": 4}, "the call before, and all that was held for the input"
        assert fold_all(records).totals.held.calls == 0


async def test_a_broker_killed_while_it_detaches_leaves_the_hold_charged_and_one_task(tmp_path: Path) -> None:
    detach = '@id("d") @reason("yes") permit (principal, action == Action::"detach", resource);'
    async with process_lab(tmp_path) as lab:
        write_policies(tmp_path / "policies", [("default.cedar", packaged("default.cedar")), ("d.cedar", detach)])
        await lab.start(failpoint="detach")
        await lab.agent("desk")
        await lab.agent("worker")
        desk, worker = await _together(lab)
        txn, grant = await lab.grant("desk", WORK)
        with suppress(Exception):
            deadline = int((time.time() + 3) * 1000)
            await desk.call(WORK, txn, grant, detach=True, deadline=deadline, **WANT)
        assert await lab.died() == -signal.SIGKILL
        await desk.close()
        await worker.close()

        await lab.start()
        records = await lab.settled(txn)
        assert (records[-1]["outcome"], records[-1]["spent"]) == ("unknown", BUDGET)
        continued = [
            row
            for row in (await lab.api("GET", "/api/chains"))["chains"]
            if row["continues"] == f"{txn}.{records[1]['hop']}"
        ]
        assert len(continued) == 1 and continued[0]["limit"]["calls"] == BUDGET["calls"] - 1
