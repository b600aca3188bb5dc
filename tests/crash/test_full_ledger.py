"""A ledger that is full: nothing new is opened, what is open is closed, and work goes on by itself once there is room."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest

from remit_broker.testing import running_broker
from remit_schemas.envelope import Error, Frame, Result
from tests.support.process import ProcessLab, process_lab
from tests.support.raw import Arena, RawAgent, Taken, arena_on, skill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can mount a file system that is small enough to fill"
)


async def _work(taken: Taken) -> None:
    await taken.done("x" * 300)


class Gate:
    """A callee that waits until it is let go on."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def work(self, taken: Taken) -> None:
        await self.open.wait()
        await taken.done("late")


async def _running(desk: RawAgent, worker: RawAgent, txn: str, grant: str, gate: Gate) -> asyncio.Future[list[Frame]]:
    """A call that has reached its callee and is not answered yet."""
    before = len(worker.work(txn))
    honest, worker.handlers["work"] = worker.handlers["work"], gate.work
    request = {"v": 1, "args": {}, "grant": grant, "want": {"ttl_ms": 60_000}}
    subject = desk.subject("agent/worker/work", txn)
    calling = asyncio.ensure_future(desk.ask(subject, json.dumps(request).encode(), seconds=60))
    await worker.took(txn, before + 1)
    worker.handlers["work"] = honest
    return calling


async def _until_refused(desk: RawAgent, txn: str, grant: str, pause: float = 0) -> Error:
    """Call until a call is refused, with a ``pause`` in seconds between calls."""
    async with asyncio.timeout(60):
        while True:
            final = (await desk.call("agent/worker/work", txn, grant))[-1]
            if isinstance(final, Error):
                return final
            await asyncio.sleep(pause)


async def _until_done(desk: RawAgent, txn: str, grant: str, seconds: float = 30) -> None:
    """Call until a call is made; meanwhile nothing but LEDGER_UNAVAILABLE is said."""
    async with asyncio.timeout(seconds):
        while isinstance(final := (await desk.call("agent/worker/work", txn, grant))[-1], Error):
            assert final.error.code == "LEDGER_UNAVAILABLE", final
            await asyncio.sleep(0.2)


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Arena]:
    """A broker whose ledger has room for some dozen hops."""
    async with running_broker(tmp_path, {"bus": {"ledger_bytes": 120_000}}) as lab, arena_on(lab) as arena:
        yield arena


async def test_what_is_open_is_closed_in_a_ledger_that_is_nearly_full(small: Arena):
    desk, worker = await small.agent("desk"), await small.agent("worker")
    worker.handlers["work"] = _work
    await worker.serve(skill("work"))
    root = await small.lab.grant("desk", "agent/worker/work", budget="usd=1,calls=500")
    gate = Gate()
    calls = [await _running(desk, worker, root.txn, root.grant, gate) for _ in range(4)]
    no = await _until_refused(desk, root.txn, root.grant)
    assert (no.error.code, no.error.rule, no.error.effect) == ("LEDGER_UNAVAILABLE", "ledger.soft-mark", "none")
    gate.open.set()
    for calling in calls:
        assert isinstance((await calling)[-1], Result), "what was open is closed, and its result released"
    assert "room" in small.lab.broker.health.problems(), "whoever asks whether a hop would be taken hears no"
    js = small.lab.broker.nats.core.jetstream()
    config = (await js.stream_info("LEDGER")).config
    config.max_bytes = 240_000
    await js.update_stream(config)
    await _until_done(desk, root.txn, root.grant)
    assert "room" not in small.lab.broker.health.problems()


async def test_a_larger_cap_in_the_configuration_is_one_after_a_restart(tmp_path: Path):
    async with running_broker(tmp_path, {"bus": {"ledger_bytes": 60_000}}) as lab, arena_on(lab) as arena:
        desk, worker = await arena.agent("desk"), await arena.agent("worker")
        worker.handlers["work"] = _work
        await worker.serve(skill("work"))
        root = await lab.grant("desk", "agent/worker/work", budget="usd=1,calls=500")
        await _until_refused(desk, root.txn, root.grant)
        seeds = dict(lab.seeds)
    async with running_broker(tmp_path, {"bus": {"ledger_bytes": 120_000}}) as lab, arena_on(lab) as arena:
        lab.seeds.update(seeds)
        desk, worker = await arena.agent("desk"), await arena.agent("worker")
        worker.handlers["work"] = _work
        await worker.serve(skill("work"))
        for _ in range(15):  # more than the smaller cap had left
            assert isinstance((await desk.call("agent/worker/work", root.txn, root.grant))[-1], Result)


@asynccontextmanager
async def _on_a_small_disk(folder: Path, mebibytes: int) -> AsyncIterator[tuple[ProcessLab, Path]]:
    """A broker whose store is on a file system of its own, and a place on it."""
    store = folder / "data" / "jetstream"
    store.mkdir(parents=True, mode=0o700)
    (folder / "data").chmod(0o700)
    options = f"size={mebibytes}m,mode=700"
    await asyncio.to_thread(subprocess.run, ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(store)], check=True)
    try:
        async with process_lab(folder) as lab:
            await lab.start()
            await lab.agent("desk")
            await lab.agent("worker")
            yield lab, store / "filler"
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "-l", str(store)], check=True)


async def _agents(lab: ProcessLab) -> tuple[RawAgent, RawAgent]:
    desk = await RawAgent(lab, "desk", "agent").connect()  # type: ignore[arg-type]
    worker = await RawAgent(lab, "worker", "agent").connect()  # type: ignore[arg-type]
    worker.handlers["work"] = _work
    await worker.serve(skill("work"))
    return desk, worker


def _fill(file: Path, leave: int) -> None:
    """Take what is free on a disk but for ``leave`` bytes."""
    with file.open("ab", buffering=0) as filler:
        disk = os.statvfs(file)
        for size in (1024**2, 4096):
            while disk.f_bavail * disk.f_frsize - size >= leave:
                filler.write(bytes(size))
                disk = os.statvfs(file)


async def _problems(lab: ProcessLab) -> dict[str, Any]:
    assert lab.http is not None
    problems: dict[str, Any] = (await lab.http.get("/readyz")).json()["problems"]
    return problems


@needs_root
async def test_the_last_of_a_disk_is_for_closing_what_is_open(tmp_path: Path):
    async with _on_a_small_disk(tmp_path / "broker", 60) as (lab, filler):
        desk, worker = await _agents(lab)
        txn, grant = await lab.grant("desk", "agent/worker/work", calls=500)
        gate = Gate()
        calling = await _running(desk, worker, txn, grant, gate)
        _fill(filler, 3 * 1024**2)
        no = await _until_refused(desk, txn, grant, 0.02)  # the disk is looked at once a second
        assert (no.error.code, no.error.rule) == ("LEDGER_UNAVAILABLE", "ledger.disk")
        gate.open.set()
        assert isinstance((await calling)[-1], Result)
        filler.unlink()
        await _until_done(desk, txn, grant)
        await desk.close()
        await worker.close()


@needs_root
async def test_a_broker_whose_disk_was_full_goes_on_by_itself(tmp_path: Path):
    """Somebody else fills the disk to the last byte, and takes it back: the server's streams take nothing more until it starts anew."""
    async with _on_a_small_disk(tmp_path / "broker", 24) as (lab, filler):
        desk, worker = await _agents(lab)
        txn, grant = await lab.grant("desk", "agent/worker/work", calls=500)
        gate = Gate()
        # Of what was taken already, the rest of a page is still free: room for the records of some hops, not of all these.
        calls = [await _running(desk, worker, txn, grant, gate) for _ in range(8)]
        _fill(filler, 0)
        gate.open.set()
        async with asyncio.timeout(60):
            finals = [(await calling)[-1] for calling in calls]
        unclosed = [final for final in finals if isinstance(final, Error)]
        assert unclosed and {final.error.code for final in unclosed} == {"LEDGER_UNAVAILABLE"}, (
            "what cannot be closed is not released"
        )
        assert await _problems(lab)
        filler.unlink()
        async with asyncio.timeout(60):
            while True:
                # The server is started anew some time from now, and its clients are cut off then.
                with contextlib.suppress(nats.errors.Error, OSError, TimeoutError, AssertionError):
                    await desk.close()
                    await worker.close()
                    desk, worker = await _agents(lab)
                    await _until_done(desk, txn, grant)
                    break
                await asyncio.sleep(0.2)
        kinds = [record["kind"] for record in await lab.records(txn)]
        assert kinds[:2] == ["txn.opened", "hop.opened"] and "hop.closed" in kinds
        assert lab.process is not None and lab.process.returncode is None, "nobody started it again"
        await desk.close()
        await worker.close()
