"""The fixture ``desk``: a NATS server, a scripted broker, and attached servers (``import desk_fixture  # noqa: F401``)."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remit_broker.edges.attach.credentials import read_credentials
from remit_broker.edges.attach.source import Source, source
from remit_broker.edges.attach.timing import Timing
from remit_broker.edges.attach.worker import AttachWorker, Report
from tests.support.attach_broker import FakeBroker
from tests.support.local_nats import local_nats

SERVERS = Path(__file__).parent / "mcp_servers"
HASTY = Timing(start=50, listing=10, probe=1, first_restart=0.2, last_restart=1, steady=30, finish=2)


def well_behaved() -> Source:
    return source([sys.executable, str(SERVERS / "well_behaved.py")])


def hostile(mode: str, argument: object = "") -> Source:
    return source([sys.executable, str(SERVERS / "hostile.py"), mode, str(argument)])


def alive(pid: int) -> bool:
    """Whether a process runs (one that only waits to be reaped does not)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def eventually(condition: Any, seconds: float = 10) -> None:
    """Wait until ``condition()`` holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


class Attached:
    """A running worker."""

    def __init__(self, worker: AttachWorker, reports: list[Report]) -> None:
        self.worker = worker
        self.reports = reports
        self.task = asyncio.create_task(worker.run())

    async def until(self, state: str, seconds: float = 50) -> Report:
        """The current report once its state is ``state``."""
        await eventually(lambda: self.worker.report.state == state or self.task.done(), seconds)
        assert self.worker.report.state == state, self.worker.report
        return self.worker.report

    async def stop(self) -> None:
        self.worker.stop()
        await asyncio.gather(self.task, return_exceptions=True)


class Desk:
    """Where a test attaches servers and plays the broker."""

    def __init__(self, broker: FakeBroker, folder: Path) -> None:
        self.broker = broker
        self.folder = folder
        self._attached: list[Attached] = []

    def begin(self, what: Source, name: str = "files", **timing: Any) -> Attached:
        """Start a worker and return at once."""
        reports: list[Report] = []
        worker = AttachWorker(
            name, what, read_credentials(self.broker.credentials(name)), log=self.folder / f"{name}.log",
            timing=replace(HASTY, **timing), on_report=reports.append,
        )  # fmt: skip
        attached = Attached(worker, reports)
        self._attached.append(attached)
        return attached

    async def attach(self, what: Source, name: str = "files", **timing: Any) -> Attached:
        """Start a worker and wait until it serves."""
        attached = self.begin(what, name, **timing)
        await attached.until("running")
        return attached

    async def close(self) -> None:
        await asyncio.gather(*(attached.stop() for attached in self._attached))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.fixture(name="desk")
async def desk_fixture(tmp_path: Path) -> AsyncIterator[Desk]:
    async with local_nats(tmp_path) as server:
        broker = FakeBroker(server.url, tmp_path)
        await broker.start()
        desk = Desk(broker, tmp_path)
        try:
            yield desk
        finally:
            await desk.close()
            await broker.stop()


async def listens(port: int) -> None:
    """Wait until somebody does."""
    async with asyncio.timeout(30):
        while True:
            try:
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                return
            except OSError:
                await asyncio.sleep(0.05)
