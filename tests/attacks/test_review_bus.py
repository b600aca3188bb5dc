"""Attacks found by reading the code: names that come back under another key, frames that fill memory, a scan that one txn stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import nats.errors
import pytest

from remit_broker.adapters.nats_bus import BACKLOG, FrameQueue
from remit_broker.adapters.nats_evict import Evictor
from remit_broker.edges.attach.servers_file import ServerEntry, write_servers
from remit_broker.edges.attach.source import StdioSource
from remit_broker.edges.attach.supervisor import ServerState, ServerSupervisor
from remit_broker.hop.scan import close_expired, close_orphans
from remit_broker.testing import running_broker
from remit_schemas.envelope import Error, Event, Result, encode
from tests.support.raw import Taken, arena_on, skill


async def test_whoever_holds_the_old_key_of_a_name_is_nobody_under_the_new_one(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as lab, arena_on(lab) as arena:
        lab.broker.registry.evict = Evictor(lab.broker.nats.sys)
        thief, other = await arena.agent("alice"), await arena.agent("alice2")
        await lab.broker.registry.remove("alice")
        lab.seeds.pop("alice")
        await arena.agent("alice")  # the key was stolen, so the operator gave the name a new one
        root = await lab.grant("alice", "mcp/**")
        heard: list[object] = []
        # Either the connection is gone, or the broker knows that it is not alice's any more.
        with contextlib.suppress(TimeoutError, nats.errors.Error):
            heard = [*await thief.call("mcp/files/read", root.txn, root.grant)]
        assert [frame.error.code for frame in heard if isinstance(frame, Error)] in ([], ["UNAUTHENTICATED"])
        assert thief.nc.is_closed and other.nc.is_connected


async def test_frames_that_wait_for_a_slow_caller_do_not_fill_the_memory() -> None:
    queue = FrameQueue()
    for _ in range(BACKLOG):
        queue.put(b"x" * 900_000)
    last = encode(Result(value="the end"))
    queue.put(last)
    waiting = []
    with contextlib.suppress(TimeoutError):
        while True:
            waiting.append(await queue.next(0.01))
    assert waiting[-1] == last
    assert sum(len(frame or b"") for frame in waiting) <= 8 * 1024 * 1024


async def test_a_callee_that_pours_out_data_before_its_end_is_cut_off(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as lab, arena_on(lab) as arena:
        alice, eve = await arena.agent("alice"), await arena.agent("eve")

        async def pour(taken: Taken) -> None:
            for _ in range(60):
                await taken.say(Event(data="x" * 800_000))

        eve.handlers["pour"] = pour
        await eve.serve(skill("pour"))
        root = await lab.grant("alice", "agent/**")
        body = await alice.error("agent/eve/pour", root.txn, root.grant, want={"ttl_ms": 3500})
        assert (body.code, body.rule) == ("RESULT_INVALID", "dispatch.frames")


class _Poisoned:
    """A ledger in which one txn cannot be looked at without a fault."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def newest(self, tenant: str, txn: str) -> Any:
        self.asked.append(txn)
        raise ValueError("a fault of ours")

    @contextlib.asynccontextmanager
    async def turn(self, tenant: str, txn: str) -> AsyncIterator[Any]:
        self.asked.append(txn)
        raise ValueError("a fault of ours")
        yield


async def test_a_txn_that_cannot_be_closed_keeps_no_other_from_being_closed(tmp_path: Path) -> None:
    class Ports:
        ledger = _Poisoned()

        class observer:  # noqa: N801
            faults: ClassVar[list[str]] = []

            @classmethod
            def fault(cls, where: str, error: BaseException) -> None:
                cls.faults.append(where)

    await close_orphans([("default", "a" * 32, "1" * 16), ("default", "b" * 32, "1" * 16)], Ports())  # type: ignore[arg-type]
    await close_expired([("default", "c" * 32), ("default", "d" * 32)], Ports())  # type: ignore[arg-type]
    assert [txn[0] for txn in Ports.ledger.asked] == ["a", "b", "c", "d"]
    assert Ports.observer.faults == ["scan"] * 4


async def test_an_index_that_fails_once_does_not_end_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    from remit_broker import upkeep

    monkeypatch.setattr(upkeep, "SCAN_SECONDS", 0.02)
    async with running_broker(tmp_path) as lab:
        asked = asyncio.Queue[int]()

        async def overdue(now_ms: int, grace_ms: int) -> list[Any]:
            asked.put_nowait(now_ms)
            raise sqlite3.OperationalError("database is locked")

        monkeypatch.setattr(lab.broker.index, "overdue", overdue)
        async with asyncio.timeout(2):
            for _ in range(3):
                await asked.get()


async def test_a_module_in_the_current_folder_is_not_run_by_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Somebody runs `remit up` in a folder that somebody else filled.
    (tmp_path / "nats.py").write_text('open("ran", "w").close()\nraise SystemExit("taken over")\n')
    (tmp_path / "servers.toml").touch(mode=0o600)
    entries = {"files": ServerEntry("files", StdioSource(("true",)))}
    write_servers(tmp_path / "servers.toml", entries)
    monkeypatch.chdir(tmp_path)
    failed: asyncio.Queue[ServerState] = asyncio.Queue()
    supervisor = ServerSupervisor(
        tmp_path / "servers.toml", lambda name: tmp_path / "none.json", on_state=failed.put_nowait
    )
    await supervisor.start()
    try:
        async with asyncio.timeout(4.5):
            state = await failed.get()
    finally:
        await supervisor.stop()
    assert not (tmp_path / "ran").exists()
    assert "none.json" in state.reason
