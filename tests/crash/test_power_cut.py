"""The power goes: what was on the disk at that moment is there afterwards, and nothing of what was still on its way.

The store is on a file system in a file. A copy of that file, taken while the file system is mounted and its server stands still, holds
exactly what had been written to the disk; the pages that only the kernel had are not in it. The index is on another disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.chaos.processes import children
from tests.crash.test_storage import audited
from tests.support.process import NotReady, ProcessLab
from tests.support.raw import RawAgent, Taken, skill

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system in a file"),
]

MEBIBYTES = 96


async def _run(*words: str) -> None:
    await asyncio.to_thread(subprocess.run, words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def _done(taken: Taken) -> None:
    await taken.done("x" * 200)


async def _calls(lab: ProcessLab, txns: int) -> None:
    desk = await RawAgent(lab, "desk", "agent").connect()  # type: ignore[arg-type]
    worker = await RawAgent(lab, "worker", "agent").connect()  # type: ignore[arg-type]
    worker.handlers["work"] = _done
    await worker.serve(skill("work"))
    for _ in range(txns):
        txn, grant = await lab.grant("desk", "agent/worker/work")
        await desk.result("agent/worker/work", txn, grant)
    await desk.close()
    await worker.close()


@pytest.mark.parametrize("sync", ["always", "default"])
async def test_a_power_cut_loses_nothing_or_is_noticed(tmp_path: Path, sync: str):
    disk, folder = tmp_path / "disk.img", tmp_path / "broker"
    disk.write_bytes(b"")
    os.truncate(disk, MEBIBYTES * 1024**2)
    await _run("mkfs.ext4", "-q", "-F", str(disk))
    lab = ProcessLab(folder)
    text = lab.config.read_text(encoding="utf-8")
    lab.config.write_text(text.replace("[bus]\n", f'[bus]\nsync = "{sync}"\n'), encoding="utf-8")
    store = folder / "data" / "jetstream"
    store.mkdir(parents=True, mode=0o700)
    store.parent.chmod(0o700)
    await _run("mount", "-o", "loop", str(disk), str(store))
    try:
        store.chmod(0o700)
        await lab.start()
        await lab.agent("desk")
        await lab.agent("worker")
        await _calls(lab, 8)
        listed = (await lab.api("GET", "/api/chains"))["chains"]
        chains = {row["txn"]: await lab.records(row["txn"]) for row in listed}
        assert len(chains) == 8
        assert lab.process is not None
        (server,) = children(lab.process.pid)
        os.kill(server, signal.SIGSTOP)
        after = tmp_path / "after.img"
        await asyncio.to_thread(shutil.copyfile, disk, after)
        lab.process.kill()
        await lab.died()
        os.kill(server, signal.SIGKILL)
        await _unmounted(store)
        await _run("mount", "-o", "loop", str(after), str(store))
        code, report = await audited(folder)
        again = ProcessLab.on(folder, lab.seeds)
        lab = again
        try:
            await lab.start()
        except NotReady:
            assert sync == "default", "an acknowledged record was on the disk"
            assert "lost records that were acknowledged" in lab.said
            assert code == 1
            return
        assert (code, report["bad"]) == (0, [])
        assert {txn: await lab.records(txn) for txn in chains} == chains
    finally:
        with contextlib.suppress(ProcessLookupError):
            await lab.stop()
        await _unmounted(store)


async def _unmounted(store: Path) -> None:
    """Unmounted, once the server that had it open has gone."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                return await _run("umount", str(store))
            await asyncio.sleep(0.1)
