"""The store of a real server, damaged while nobody runs on it: nothing is dispatched on a prefix, and the audit names the place."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from remit_schemas.envelope import Error, Result
from tests.support.process import NotReady, ProcessLab
from tests.support.raw import RawAgent, Taken, skill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

STREAM = Path("data") / "jetstream" / "CORE" / "streams" / "LEDGER"
BLOCK = STREAM / "msgs" / "1.blk"
TXNS = 12


class Base(NamedTuple):
    """A folder that nobody runs on. ``grants`` are root grants by txn, ``chains`` the records of each."""

    folder: Path
    seeds: dict[str, str]
    grants: dict[str, str]
    chains: dict[str, list[dict[str, Any]]]

    def copy(self, to: Path) -> Base:
        shutil.copytree(self.folder, to)
        return self._replace(folder=to)


async def _done(taken: Taken) -> None:
    await taken.done("x" * 200)


@asynccontextmanager
async def _agents(lab: ProcessLab) -> AsyncIterator[tuple[RawAgent, RawAgent]]:
    desk = await RawAgent(lab, "desk", "agent").connect()  # type: ignore[arg-type]
    worker = await RawAgent(lab, "worker", "agent").connect()  # type: ignore[arg-type]
    worker.handlers["work"] = _done
    await worker.serve(skill("work"))
    try:
        yield desk, worker
    finally:
        await desk.close()
        await worker.close()


async def _make(folder: Path, how: signal.Signals) -> Base:
    lab = ProcessLab(folder)
    await lab.start()
    await lab.agent("desk")
    await lab.agent("worker")
    grants: dict[str, str] = {}
    async with _agents(lab) as (desk, _):
        for number in range(TXNS):
            txn, grant = await lab.grant("desk", "agent/worker/work")
            grants[txn] = grant
            await desk.result("agent/worker/work", txn, grant)
            if number % 2:
                await desk.result("remit/txn/close", txn, grant)
        chains = {txn: await lab.records(txn) for txn in grants}
    assert lab.process is not None
    lab.process.send_signal(how)
    await lab.died()
    await _free(folder)
    return Base(folder, lab.seeds, grants, chains)


async def _free(folder: Path) -> None:
    """The server of a broker that was killed ends by itself."""
    import fcntl

    async with asyncio.timeout(20):
        with (folder / "data" / "nats.lock").open() as lock:
            while True:
                try:
                    return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """What a broker left that was killed with SIGKILL, and its server with it."""
    return asyncio.run(_make(tmp_path_factory.mktemp("killed") / "base", signal.SIGKILL))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """What a broker left that was stopped as an operator does."""
    return asyncio.run(_make(tmp_path_factory.mktemp("stopped") / "base", signal.SIGTERM))


@pytest.fixture(params=["killed", "stopped"])
def base(request: pytest.FixtureRequest) -> Base:
    """Either."""
    found: Base = request.getfixturevalue(request.param)
    return found


async def audited(folder: Path) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of ``remit audit verify``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "remit_broker.cli.main", "audit", "verify", "--json", "-c", str(folder),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, json.loads(out)


def bad(report: dict[str, Any]) -> set[str]:
    return {check["check"] for check in report["checks"] if not check["ok"]}


@asynccontextmanager
async def started(base: Base) -> AsyncIterator[ProcessLab | str]:
    """A broker on the folder, or what it said instead of starting."""
    lab = ProcessLab.on(base.folder, base.seeds)
    try:
        try:
            await lab.start()
        except NotReady:
            assert lab.process is not None and await lab.died() != 0
            yield lab.said
            return
        yield lab
    finally:
        await lab.stop()


def flip(file: Path, at: int) -> None:
    """One bit."""
    data = bytearray(file.read_bytes())
    data[at] ^= 0x04
    file.write_bytes(bytes(data))


def place_of(base: Base, record: dict[str, Any]) -> int:
    """Where in its block the message of a record is."""
    return (base.folder / BLOCK).read_bytes().index(record["hash"].encode())


async def test_a_whole_store_is_verified_whatever_ended_its_server(base: Base, tmp_path: Path):
    whole = base.copy(tmp_path / "work")
    code, report = await audited(whole.folder)
    assert (code, report["verified"], report["bad"]) == (0, True, [])
    assert report["records"] == sum(map(len, base.chains.values()))
    assert report["txns"] == TXNS


async def test_a_flipped_bit_in_the_end_of_a_txn_is_not_taken_for_its_end(base: Base, tmp_path: Path):
    """The server drops the one message in silence: the txn looks like one that was never closed."""
    hurt = base.copy(tmp_path / "work")
    txn = next(txn for txn, chain in base.chains.items() if chain[-1]["kind"] == "txn.closed")
    flip(hurt.folder / BLOCK, place_of(hurt, base.chains[txn][-1]))
    async with started(hurt) as lab:
        assert isinstance(lab, ProcessLab), lab
        async with _agents(lab) as (desk, worker):
            final = (await desk.call("agent/worker/work", txn, base.grants[txn]))[-1]
            assert isinstance(final, Error) and final.error.code == "LEDGER_UNAVAILABLE", final
            assert final.error.rule == "ledger.halted"
            assert worker.work(txn) == []
            other = next(other for other, chain in base.chains.items() if chain[-1]["kind"] == "hop.closed")
            assert (await desk.error("agent/worker/work", other, base.grants[other])).rule == "ledger.halted"
            assert worker.dispatched == []
    code, report = await audited(hurt.folder)
    assert code == 1
    assert {"stream", "index"} <= bad(report)
    assert any(finding["txn"] == txn for finding in report["bad"])


async def test_a_flipped_bit_in_the_middle_of_a_txn_stops_that_txn(killed: Base, tmp_path: Path):
    hurt = killed.copy(tmp_path / "work")
    txn = next(txn for txn, chain in killed.chains.items() if chain[-1]["kind"] == "hop.closed")
    flip(hurt.folder / BLOCK, place_of(hurt, killed.chains[txn][1]))
    async with started(hurt) as lab:
        assert isinstance(lab, ProcessLab), lab
        async with _agents(lab) as (desk, worker):
            assert (await desk.error("agent/worker/work", txn, killed.grants[txn])).code == "LEDGER_UNAVAILABLE"
            assert worker.work(txn) == []
    code, report = await audited(hurt.folder)
    assert code == 1
    assert {"stream", "records"} <= bad(report)


def _cut(part: float) -> Callable[[Path], None]:
    def cut(file: Path) -> None:
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])

    return cut


def _counted_anew(file: Path) -> None:
    """A flipped bit in the middle, and no description of the block: the server counts it anew, and stops there."""
    flip(file, file.stat().st_size // 2)
    file.with_name("index.db").unlink()


@pytest.mark.parametrize(
    "damage", [_cut(0.97), _cut(0.4), _cut(0.0), Path.unlink, _counted_anew], ids=["end", "half", "all", "gone", "anew"]
)
async def test_a_block_that_lost_its_end_is_not_written_on(
    killed: Base, tmp_path: Path, damage: Callable[[Path], None]
):
    hurt = killed.copy(tmp_path / "work")
    damage(hurt.folder / BLOCK)
    async with started(hurt) as said:
        assert isinstance(said, str) and "lost records that were acknowledged" in said
    code, report = await audited(hurt.folder)
    assert code == 1
    assert "witness" in bad(report)


@pytest.mark.parametrize("name", ["msgs/index.db", "meta.inf", "meta.sum"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
async def test_damaged_descriptions_of_a_stream_lose_nothing_in_silence(
    killed: Base, tmp_path: Path, name: str, damage: str
):
    """They are made again from the blocks, or the start is refused. Either way no record is missing that was there."""
    hurt = killed.copy(tmp_path / "work")
    file = hurt.folder / STREAM / name
    if damage == "flip":
        flip(file, file.stat().st_size // 2)
    elif damage == "cut":
        _cut(0.5)(file)
    else:
        file.unlink()
    code, report = await audited(hurt.folder)
    assert (code, bad(report)) in ((0, set()), (1, {"stream"})), report
    async with started(hurt) as lab:
        if isinstance(lab, ProcessLab):
            for txn, chain in killed.chains.items():
                assert (await lab.records(txn))[: len(chain)] == chain
            txn = next(txn for txn, chain in killed.chains.items() if chain[-1]["kind"] == "hop.closed")
            async with _agents(lab) as (desk, _):
                assert isinstance((await desk.call("agent/worker/work", txn, killed.grants[txn]))[-1], Result)


async def test_an_older_store_beside_a_newer_index_is_refused_and_named(killed: Base, tmp_path: Path):
    hurt = killed.copy(tmp_path / "work")
    backup = tmp_path / "backup"
    shutil.copytree(hurt.folder / "data" / "jetstream", backup)
    async with started(hurt) as lab:
        assert isinstance(lab, ProcessLab)
        txn, _ = await lab.grant("desk", "agent/worker/work")
        assert len(await lab.records(txn)) == 1  # so that the index has seen it
    shutil.rmtree(hurt.folder / "data" / "jetstream")
    shutil.copytree(backup, hurt.folder / "data" / "jetstream")
    async with started(hurt) as said:
        assert isinstance(said, str) and "lost records that were acknowledged" in said
    code, report = await audited(hurt.folder)
    assert (code, bad(report)) == (1, {"witness", "index", "tree"})
