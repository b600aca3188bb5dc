"""Servers on the broker's own machine: what ``servers.toml`` says runs, and nothing else does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remit_broker.edges.attach.containment import HOME, Room, unavailable
from remit_broker.edges.attach.servers_file import ServerEntry, ServersFileError, write_servers
from remit_broker.edges.attach.source import source
from remit_broker.edges.attach.supervisor import ServerState, ServerSupervisor
from remit_schemas.envelope import Started
from tests.support.attach_broker import FakeBroker
from tests.support.attach_fixture import HASTY, SERVERS, alive, eventually, free_port
from tests.support.local_nats import local_nats


class Machine:
    """A supervisor with a file that the test writes."""

    def __init__(self, broker: FakeBroker, folder: Path) -> None:
        self.broker = broker
        self.file = folder / "servers.toml"
        self.supervisor = ServerSupervisor(self.file, lambda name: folder / f"{name}.json", timing=HASTY)

    def entry(self, name: str, *words: str, **options: object) -> ServerEntry:
        if not (self.broker.folder / f"{name}.json").exists():
            self.broker.credentials(name)
        return ServerEntry(name, source([sys.executable, *words], **options))  # type: ignore[arg-type]

    def write(self, *entries: ServerEntry) -> None:
        write_servers(self.file, {entry.name: entry for entry in entries})

    def good(self, name: str, **options: object) -> ServerEntry:
        return self.entry(name, str(SERVERS / "well_behaved.py"), **options)

    def state(self, name: str) -> ServerState:
        return next(state for state in self.supervisor.states() if state.name == name)

    async def until(self, name: str, state: str) -> ServerState:
        await eventually(lambda: self.state(name).state == state, 50)
        return self.state(name)


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    async with local_nats(tmp_path) as server:
        broker = FakeBroker(server.url, tmp_path)
        await broker.start()
        machine = Machine(broker, tmp_path)
        try:
            yield machine
        finally:
            await machine.supervisor.stop()
            await broker.stop()


async def test_each_server_of_the_file_runs_and_answers(machine: Machine) -> None:
    machine.write(machine.good("one"), machine.good("two", env={"TOKEN": "t"}))
    await machine.supervisor.start()
    for name in ("one", "two"):
        state = await machine.until(name, "running")
        assert (state.tools, state.server, state.reason) == (9, "well-behaved 1.2.3", "")
        assert state.pid is not None and alive(state.pid)
    one, two = [
        (await (await machine.broker.call(name, "environment")).value())["structuredContent"] for name in ("one", "two")
    ]
    assert two["TOKEN"] == "t"
    assert "TOKEN" not in one
    assert "PYTHONPATH" not in one


async def test_reload_starts_what_is_new_ends_what_is_gone_and_leaves_the_rest(machine: Machine) -> None:
    machine.write(machine.good("stays"), machine.good("goes"))
    await machine.supervisor.start()
    stays, goes = await machine.until("stays", "running"), await machine.until("goes", "running")
    machine.write(machine.good("stays"), machine.good("comes"))
    await machine.supervisor.reload()
    await machine.until("comes", "running")
    assert [state.name for state in machine.supervisor.states()] == ["comes", "stays"]
    assert machine.state("stays") == stays
    assert goes.pid is not None and not alive(goes.pid)


async def test_a_changed_entry_starts_anew(machine: Machine) -> None:
    machine.write(machine.good("files"))
    await machine.supervisor.start()
    before = await machine.until("files", "running")
    machine.write(machine.good("files", env={"MORE": "1"}))
    await machine.supervisor.reload()
    after = await machine.until("files", "running")
    assert after.pid != before.pid


async def test_a_server_that_hangs_delays_no_other(machine: Machine) -> None:
    machine.write(
        machine.entry("dead", str(SERVERS / "hostile.py"), "hangs-on-initialize"),
        machine.entry("slow", str(SERVERS / "hostile.py"), "hangs-on-call"),
        machine.good("good"),
    )
    await machine.supervisor.start()
    await machine.until("good", "running")
    await machine.until("slow", "running")
    assert machine.state("dead").state == "starting"
    # A call that is never answered is under way at one of them.
    waiting = await machine.broker.call("slow", "act", {"forever": True})
    for _ in range(3):
        assert (await (await machine.broker.call("good", "echo", {"text": "x"})).value())["isError"] is False
    assert not [frame for frame in waiting.frames if not isinstance(frame, Started)]
    assert machine.state("dead").state == "starting"


@pytest.mark.skipif(bool(unavailable()), reason=f"nothing can be contained here: {unavailable()}")
async def test_a_contained_server_serves_from_its_room_and_others_are_shown_as_not_contained(machine: Machine) -> None:
    machine.write(machine.good("open"), machine.good("room", room=Room((SERVERS,))))
    await machine.supervisor.start()
    assert (await machine.until("open", "running")).contained == "not contained"
    assert (await machine.until("room", "running")).contained == "bubblewrap, no network"
    seen = (await (await machine.broker.call("room", "environment")).value())["structuredContent"]
    assert (seen["HOME"], seen["TMPDIR"]) == (HOME, "/tmp")
    assert (machine.file.parent / "room.home").stat().st_mode & 0o777 == 0o700


async def test_a_server_that_is_to_be_contained_and_cannot_be_says_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = str(Path(sys.executable))
    monkeypatch.setenv("PATH", "/nowhere")
    machine.write(replace_source(machine.good("room"), python))
    await machine.supervisor.start()
    assert "bubblewrap (bwrap) is not installed" in (await machine.until("room", "failed")).reason


def replace_source(entry: ServerEntry, python: str) -> ServerEntry:
    return ServerEntry(entry.name, source([python, str(SERVERS / "well_behaved.py")], room=Room()))


async def test_a_server_at_a_url_is_one_like_the_others(machine: Machine) -> None:
    port = free_port()
    words = [sys.executable, str(SERVERS / "well_behaved.py"), "http", str(port)]
    process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.DEVNULL)
    try:
        machine.broker.credentials("web")
        machine.write(ServerEntry("web", source(url=f"http://127.0.0.1:{port}/mcp")))
        await machine.supervisor.start()
        await eventually(lambda: machine.state("web").state == "running", 50)
        assert (machine.state("web").tools, machine.state("web").contained) == (9, "")
        assert (await (await machine.broker.call("web", "echo", {"text": "x"})).value())["isError"] is False
    finally:
        process.kill()  # asked politely it would wait for our connection to end
        await process.wait()


async def test_a_bad_file_changes_nothing(machine: Machine) -> None:
    machine.write(machine.good("files"))
    await machine.supervisor.start()
    before = await machine.until("files", "running")
    machine.file.write_text("[servers.files]\ncommand = 3\n")
    with pytest.raises(ServersFileError):
        await machine.supervisor.reload()
    assert machine.state("files") == before


async def test_a_server_that_cannot_start_is_failed_with_its_reason_and_tried_again(machine: Machine) -> None:
    machine.write(machine.entry("bad", str(SERVERS / "hostile.py"), "dies-at-start"), machine.good("good"))
    await machine.supervisor.start()
    failed = await machine.until("bad", "failed")
    assert "I cannot find my configuration" in failed.reason
    await eventually(lambda: "1 s" in machine.state("bad").reason, 20)
    await machine.until("good", "running")


async def test_a_killed_worker_is_started_again_and_leaves_no_server_behind(machine: Machine, tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    machine.write(machine.entry("files", str(SERVERS / "hostile.py"), "grandchild", str(note)))
    await machine.supervisor.start()
    before = await machine.until("files", "running")
    grandchild = int(note.read_text())
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    await eventually(lambda: machine.state("files").pid not in (None, before.pid), 20)
    await machine.until("files", "running")
    await eventually(lambda: not alive(grandchild))
    await (await machine.broker.call("files", "fine")).value()


SUPERVISE = """
import asyncio, sys
from pathlib import Path
from remit_broker.edges.attach.supervisor import ServerSupervisor

async def main():
    folder = Path(sys.argv[1])
    say = lambda state: print(state.state, state.pid, flush=True)
    await ServerSupervisor(folder / "servers.toml", lambda name: folder / f"{name}.json", on_state=say).start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_worker_ends_when_its_supervisor_is_killed(machine: Machine, tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    machine.write(machine.entry("files", str(SERVERS / "hostile.py"), "grandchild", str(note)))
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SUPERVISE, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert supervisor.stdout is not None
    state, pid = (await asyncio.wait_for(supervisor.stdout.readline(), 20)).split()
    grandchild = int(note.read_text())
    assert (state, alive(int(pid)), alive(grandchild)) == (b"running", True, True)
    supervisor.kill()
    await supervisor.wait()
    await eventually(lambda: not alive(int(pid)) and not alive(grandchild))


async def test_stop_ends_every_process(machine: Machine, tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    machine.write(machine.entry("files", str(SERVERS / "hostile.py"), "grandchild", str(note)), machine.good("other"))
    await machine.supervisor.start()
    pids = [(await machine.until(name, "running")).pid for name in ("files", "other")] + [int(note.read_text())]
    async with asyncio.timeout(20):
        await machine.supervisor.stop()
    assert not [pid for pid in pids if pid is not None and alive(pid)]
    assert machine.supervisor.states() == []
