"""``remit up --replicas N`` as a process: killed by parts and as a whole, it loses nothing and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remit_schemas.envelope import Result
from tests.attacks.test_budget_race import conserved
from tests.support.process import ProcessLab, process_lab
from tests.support.raw import RawAgent, Taken, skill

pytestmark = pytest.mark.slow
CALL = {"want": {"budget": {"usd_micros": 0, "tokens": 0, "calls": 1}, "ttl_ms": 3000}}


async def cast(lab: ProcessLab) -> tuple[RawAgent, RawAgent]:
    for name in ("desk", "worker"):
        if name not in lab.seeds:
            await lab.agent(name)
    desk, worker = [await RawAgent(lab, name, "agent").connect() for name in ("desk", "worker")]  # type: ignore[arg-type]

    async def work(taken: Taken) -> None:
        await taken.done()

    worker.handlers["work"] = work
    await worker.serve(skill("work"))
    return desk, worker


async def living(lab: ProcessLab) -> set[str]:
    """The replicas that were heard just now."""
    return {one["replica"] for one in (await lab.api("GET", "/api/status"))["replicas"] if one["silent"] < 2}


async def until(true: Callable[[], Any], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.05)


def tree(root: int) -> set[int]:
    """The processes below one, by /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def gone(pids: set[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() and not _zombie(pid) for pid in pids)


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_all_replicas_take_calls_and_are_told_of(tmp_path: Path):
    async with process_lab(tmp_path) as lab:
        ready = await lab.start("", "--replicas", "2")
        names = {one["replica"] for one in ready["replicas"]}
        assert list(ready)[:4] == ["ready", "http", "nats", "pid"] and len(names) == 2
        desk, worker = await cast(lab)
        txn, grant = await lab.grant("desk", "agent/worker/work", calls=60)
        ends = await asyncio.gather(*(desk.call("agent/worker/work", txn, grant, **CALL) for _ in range(20)))
        assert all(isinstance(frames[-1], Result) for frames in ends)
        records = await lab.records(txn)
        assert {record["by"] for record in records if record["kind"] == "hop.opened"} == names
        # What a replica says of itself comes with its heartbeat, the first of which may be from before it knew.
        status = await lab.api("GET", "/api/status")
        async with asyncio.timeout(10):
            while not all("edge" in one for one in status["replicas"]):
                await asyncio.sleep(0.1)
                status = await lab.api("GET", "/api/status")
        assert {one["replica"] for one in status["replicas"]} == names
        assert [one["edge"] for one in status["replicas"]].count(True) == 1
        assert {one["keys"] for one in status["replicas"]} == {status["replicas"][0]["keys"]}
        assert await lab.api("GET", "/readyz") == {
            "ready": True,
            "problems": {},
            "replicas": {"expected": 2, "alive": 2},
        }
        assert lab.http is not None
        metrics = (await lab.http.get("/metrics")).text
        counted = re.findall(r'remit_hops_total\{replica="(\w+)",kind="agent",outcome="ok"\} (\S+)', metrics)
        assert {name for name, _ in counted} == names and sum(float(number) for _, number in counted) == 20
        await desk.close()
        await worker.close()


async def test_a_replica_that_is_killed_comes_back_and_nothing_is_lost(tmp_path: Path):
    """Each in turn, the one with the HTTP edge too, with calls in flight the whole time."""
    async with process_lab(tmp_path) as lab:
        ready = await lab.start("", "--replicas", "2")
        desk, worker = await cast(lab)
        txn, grant = await lab.grant("desk", "agent/worker/work", calls=5000)
        ends: list[bool] = []
        calling = True

        async def caller() -> None:
            while calling:
                try:
                    frames = await desk.ask(desk.subject("agent/worker/work", txn), data, seconds=4)
                    ends.append(isinstance(frames[-1], Result))
                except TimeoutError:
                    ends.append(False)

        data = json.dumps({"v": 1, "args": {}, "grant": grant, **CALL}).encode()
        callers = [asyncio.ensure_future(caller()) for _ in range(4)]
        for victim in ready["replicas"]:
            await until(lambda: len(ends) > 5)
            os.kill(victim["pid"], signal.SIGKILL)
            ends.clear()
            await until(lambda: sum(ends) > 5)  # the other one goes on
            async with asyncio.timeout(30):  # and this one comes back, whoever answers for HTTP meanwhile
                while len(await living(lab) - {victim["replica"]}) < 2:
                    await asyncio.sleep(0.2)
        calling = False
        await asyncio.gather(*callers)
        records = await lab.settled(txn)
        fold = conserved(records)
        assert fold.totals.held.calls == 0
        outcomes = [record["outcome"] for record in records if record["kind"] == "hop.closed"]
        assert set(outcomes) <= {"ok", "unknown"} and len({record["by"] for record in records}) >= 3
        dispatched = [taken.dispatch.hop for taken in worker.work(txn)]
        assert len(dispatched) == len(set(dispatched))
        await desk.close()
        await worker.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["asked", "killed"])
async def test_when_the_supervisor_ends_nothing_is_left(tmp_path: Path, how: signal.Signals):
    async with process_lab(tmp_path) as lab:
        ready = await lab.start("", "--replicas", "2")
        assert lab.process is not None
        below = tree(ready["pid"])
        assert len(below) >= 3, "two replicas and the NATS server"
        lab.process.send_signal(how)
        code = await lab.died()
        assert code == (0 if how is signal.SIGTERM else -signal.SIGKILL)
        await until(lambda: gone(below))
        ready = await lab.start("", "--replicas", "2")  # and the folder is free again
        assert len(ready["replicas"]) == 2


async def test_all_replicas_take_an_edit_of_the_policies(tmp_path: Path):
    async with process_lab(tmp_path) as lab:
        await lab.start("", "--replicas", "2")

        async def told(key: str) -> set[str]:
            return {one[key] for one in (await lab.api("GET", "/api/status"))["replicas"]}

        (before,) = await told("policy")
        folder = tmp_path / "policies"
        (folder / "own.cedar").write_text(
            '@id("own") @reason("r") forbid (principal, action == Action::"call", resource);'
        )
        async with asyncio.timeout(30):
            while len(after := await told("policy")) != 1 or after == {before}:
                await asyncio.sleep(0.1)
        (folder / "own.cedar").write_text("forbid (")
        async with asyncio.timeout(30):
            while not all("own.cedar" in trouble for trouble in await told("policy_trouble")):
                await asyncio.sleep(0.1)
        assert await told("policy") == after


async def test_a_configuration_that_no_replica_can_start_on_ends_it_with_its_words(tmp_path: Path):
    async with process_lab(tmp_path) as lab:
        (tmp_path / "policies" / "default.cedar").write_text("permit(")
        process = await asyncio.create_subprocess_exec(
            *lab.command("--replicas", "2"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        told, said = await asyncio.wait_for(process.communicate(), 40)
        assert process.returncode == 2
        assert "default.cedar" in said.decode() and b"Traceback" not in said and b'"error"' in told
