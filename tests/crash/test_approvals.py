"""kill -9 around an approval: a request is there or not, a decision counts once it was written, and it is used once."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from remit_broker.core.fold import fold_all
from remit_broker.starter import write_policies
from remit_schemas.envelope import Result
from tests.crash.test_failpoints import _connected
from tests.support.process import ProcessLab, process_lab
from tests.support.raw import RawAgent, error_of

pytestmark = pytest.mark.slow

WORK = "agent/worker/work"
ARGS = {"n": 1}
POLICY = """
    @id("all") @reason("all") @approve("look") permit (principal, action == Action::"delegate", resource);
    @id("back") @reason("back") permit (principal, action == Action::"release", resource);
    @id("who") @reason("who") permit (principal in Role::"approver", action == Action::"approve", resource);
"""
WANT: dict[str, Any] = {"want": {"budget": {"usd_micros": 0, "tokens": 0, "calls": 1}, "ttl_ms": 1500}}


async def _begun(lab: ProcessLab, folder: Path, failpoint: str) -> tuple[RawAgent, RawAgent, str, str]:
    write_policies(folder / "policies", [("own.cedar", POLICY)])
    await lab.start(failpoint=failpoint)
    await lab.agent("desk")
    await lab.agent("worker")
    desk, worker = await _connected(lab)
    return (desk, worker, *(await lab.grant("desk", WORK)))


async def _asked(desk: RawAgent, txn: str, grant: str) -> str:
    body = error_of(await desk.call(WORK, txn, grant, ARGS, **WANT))
    assert body.code == "APPROVAL_REQUIRED" and body.approval, body
    return body.approval


async def _kinds(lab: ProcessLab, txn: str) -> list[str]:
    records = await lab.records(txn)
    fold_all(records)
    return [record["kind"] for record in records]


@pytest.mark.parametrize(("point", "there"), [("asking", False), ("asked", True)])
async def test_a_broker_killed_while_it_asks_leaves_a_whole_request_or_none(
    tmp_path: Path, point: str, there: bool
) -> None:
    async with process_lab(tmp_path) as lab:
        desk, worker, txn, grant = await _begun(lab, tmp_path, point)
        with suppress(Exception):
            await desk.call(WORK, txn, grant, ARGS, **WANT)
        assert await lab.died() == -signal.SIGKILL
        await desk.close()
        await worker.close()

        await lab.start()
        desk, worker = await _connected(lab)
        assert await _kinds(lab, txn) == ["txn.opened", *(["approval.requested"] if there else [])]
        name = await _asked(desk, txn, grant)
        assert (await _kinds(lab, txn)).count("approval.requested") == 1, "who repeats the call finds what was asked"
        shown = await lab.api("GET", f"/api/approvals/{name}")
        assert (shown["args"], shown["match"]) == (ARGS, True), "what is asked about can be shown"
        await desk.close()
        await worker.close()


async def test_a_broker_killed_between_decision_and_use_has_decided_and_uses_it_once(tmp_path: Path) -> None:
    async with process_lab(tmp_path) as lab:
        desk, worker, txn, grant = await _begun(lab, tmp_path, "decided")
        name = await _asked(desk, txn, grant)
        with suppress(Exception):
            await lab.api("POST", f"/api/approvals/{name}", {"verdict": "approve"})
        assert await lab.died() == -signal.SIGKILL
        await desk.close()
        await worker.close()

        await lab.start()
        desk, worker = await _connected(lab)
        assert (await lab.api("GET", f"/api/approvals/{name}"))["state"] == "approved"
        assert isinstance((await desk.call(WORK, txn, grant, ARGS, **WANT))[-1], Result)
        assert await _asked(desk, txn, grant) != name, "it was used"
        assert len(worker.work(txn)) == 1
        await desk.close()
        await worker.close()


async def test_a_broker_killed_between_use_and_dispatch_has_used_it_up(tmp_path: Path) -> None:
    async with process_lab(tmp_path) as lab:
        desk, worker, txn, grant = await _begun(lab, tmp_path, "open")
        name = await _asked(desk, txn, grant)
        await lab.api("POST", f"/api/approvals/{name}", {"verdict": "approve"})
        with suppress(Exception):
            await desk.call(WORK, txn, grant, ARGS, **WANT)
        assert await lab.died() == -signal.SIGKILL
        assert worker.work(txn) == []
        await desk.close()
        await worker.close()

        await lab.start()
        desk, worker = await _connected(lab)
        body = error_of(await desk.call(WORK, txn, grant, ARGS, approval=name, **WANT))
        assert (body.code, body.rule) == ("APPROVAL_INVALID", "approve.used")
        records = await lab.settled(txn)
        assert [record["outcome"] for record in records if record["kind"] == "hop.closed"] == ["unknown"]
        assert worker.work(txn) == [], "nothing is done twice, and nothing is done late"
        await desk.close()
        await worker.close()
