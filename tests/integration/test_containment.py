"""A contained server sees and changes what was declared for it, and nothing else; what cannot be contained is not run."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from remit_broker.edges.attach import containment
from remit_broker.edges.attach.child import Child, start, stop
from remit_broker.edges.attach.containment import (
    HOME,
    NO_LIMITS,
    Limits,
    Room,
    installed_with,
    launch,
    named_in,
    unavailable,
)
from remit_broker.edges.attach.source import SourceError, StdioSource
from tests.support.attach_fixture import alive, eventually

contained = pytest.mark.skipif(bool(unavailable()), reason=f"nothing can be contained here: {unavailable()}")
PYTHON = sys.executable
TRUE = shutil.which("true") or "true"
ASK = """
import json, os, socket, sys
from pathlib import Path
PLACES = ["/usr", "/etc", "/", "/tmp"]
def tried(what):
    try:
        what()
        return "done"
    except OSError as error:
        return type(error).__name__
told = {
    "home": os.environ.get("HOME"), "env": sorted(os.environ), "pids": [p for p in os.listdir("/proc") if p.isdigit()],
    "sees": {path: os.path.exists(path) for path in sys.argv[1:]},
    "writes": {path: tried(lambda: Path(path, "new").write_text("x")) for path in [*sys.argv[1:], *PLACES, os.environ["HOME"]]},
    "net": tried(lambda: socket.create_connection(("127.0.0.1", int(os.environ["PORT"])), 2)),
}
print(json.dumps(told), flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def running(words: list[str], room: Room | None, home: Path | None = None, **more: Any) -> AsyncIterator[Child]:
    child = await start(StdioSource(tuple(words), room=room, **more), home)
    try:
        yield child
    finally:
        await stop(child)


async def told(words: list[str], room: Room | None, home: Path | None = None, **more: Any) -> Any:
    async with asyncio.timeout(20), running(words, room, home, **more) as child:
        assert child.process.stdout is not None and child.process.stderr is not None
        line = await child.process.stdout.readline()
        return json.loads(line or json.dumps((await child.process.stderr.read()).decode()))


@contained
async def test_a_contained_server_sees_and_changes_what_was_declared(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("read", "write", "secret", "home")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "file").write_text("x")
    words = [PYTHON, "-c", ASK, *(str(folders[name]) for name in ("read", "write", "secret"))]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        env = {"PORT": str(listening.getsockname()[1])}
        found = await told(words, Room((folders["read"],), (folders["write"],)), folders["home"], env=env)
        open_ = await told(words, Room(network=True), None, env=env)
    read, write, secret = (str(folders[name]) for name in ("read", "write", "secret"))
    assert found["sees"] == {read: True, write: True, secret: False}
    assert found["writes"][write] == found["writes"]["/tmp"] == found["writes"][HOME] == "done"
    assert [found["writes"][path] for path in (read, "/usr", "/etc", "/")] == ["OSError"] * 4
    assert found["writes"][secret] == "FileNotFoundError"
    assert (found["home"], found["net"]) == (HOME, "ConnectionRefusedError")
    assert len(found["pids"]) <= 3
    assert (folders["home"] / "new").read_text() == (folders["write"] / "new").read_text() == "x"
    assert not (folders["read"] / "new").exists() and not (folders["secret"] / "new").exists()
    assert open_["net"] == "done"


@contained
async def test_no_secret_of_the_machine_is_there() -> None:
    script = (
        "import json, os; print(json.dumps([p for p in ('/etc/shadow', '/etc/ssh', '/var', os.path.join('/proc/1', 'root', 'var'))"
        " if os.path.exists(p)]), flush=True)"
    )
    assert await told([PYTHON, "-c", script], Room()) == []


@contained
async def test_a_contained_server_ends_with_all_of_its_processes(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys; subprocess.Popen(['sleep', '3600'], start_new_session=True);"
        " print('1', flush=True); sys.stdin.read()"
    )
    async with running([PYTHON, "-c", script], Room()) as child:
        assert child.process.stdout is not None
        await child.process.stdout.readline()
        inside = _below(child.pid)
        assert len(inside) >= 2
    await eventually(lambda: not any(alive(pid) for pid in inside))


@contained
async def test_a_contained_server_ends_with_whoever_started_it(tmp_path: Path) -> None:
    made = launch(
        [PYTHON, "-c", "import time; print('1', flush=True); time.sleep(3600)"],
        os.environ,
        None,
        Room(),
        NO_LIMITS,
        None,
    )
    starter = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"
    process = await asyncio.create_subprocess_exec(
        PYTHON, "-c", starter, *made.words, env=made.env, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    inside = _below(process.pid)
    process.kill()
    await process.wait()
    await eventually(lambda: not any(alive(pid) for pid in inside))


def _below(pid: int) -> list[int]:
    """All processes below ``pid``."""
    found = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*found, *(below for one in found for below in _below(one))]


@contained
async def test_published_servers_run_contained(tmp_path: Path) -> None:
    from remit_broker.edges.scan.run import scan
    from tests.integration.test_scan_http import TOOLS

    _repository(tmp_path / "repository")
    words = (str(Path(PYTHON).with_name("mcp-server-git")), "--repository", str(tmp_path / "repository"))
    room = Room(tuple(named_in(words, None)))
    report = await scan(StdioSource(words, room=room), TOOLS, lambda: "2026-01-01T00:00:00.000Z")
    assert report.contained == "bubblewrap, no network"
    assert "git_log" in report.tools


def _repository(folder: Path) -> None:
    subprocess.run(["git", "init", "-q", str(folder)], check=True)


async def test_what_is_to_be_contained_is_not_run_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(containment, "unavailable", lambda: "bubblewrap (bwrap) is not installed")
    mark = tmp_path / "ran"
    with pytest.raises(SourceError, match="bwrap"):
        await start(StdioSource(("touch", str(mark)), room=Room()))
    assert not mark.exists()


def test_nothing_of_the_machine_is_bound_but_the_system_the_program_and_what_was_declared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(containment, "unavailable", lambda: "")
    room = Room((Path("/srv/docs"),), (Path("/srv/out"),))
    words = launch([TRUE], {}, None, room, NO_LIMITS, tmp_path / "home").words
    bound = {(words[i], words[i + 1]) for i, word in enumerate(words) if word in ("--bind", "--ro-bind")}
    assert {path for word, path in bound if word == "--bind"} == {"/srv/out", str(tmp_path / "home")}
    outside = [path for _, path in bound if not path.startswith(("/usr", "/bin", "/sbin", "/lib", "/opt", "/nix"))]
    assert sorted(outside) == sorted(["/srv/docs", "/srv/out", str(tmp_path / "home")])
    assert "--unshare-all" in words and "--share-net" not in words and "--die-with-parent" in words
    # Found from the folder the broker runs in, which the server is not in.
    monkeypatch.chdir(Path(TRUE).parent)
    assert launch(["./true"], {}, None, room, NO_LIMITS, None).words[-1] == TRUE
    assert "--share-net" in launch([TRUE], {}, None, Room(network=True), NO_LIMITS, None).words


def test_a_program_is_there_with_what_it_was_installed_with(tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "pyvenv.cfg").write_text("")
    base = tmp_path / "python" / "bin" / "python3"
    base.parent.mkdir(parents=True)
    base.write_text("")
    (environment / "bin" / "python").symlink_to(base)
    tool = environment / "bin" / "tool"
    tool.write_text(f"#!{environment}/bin/python\n")
    assert set(installed_with(tool)) == {environment, tmp_path / "python"}
    alone = Path.home() / "bin" / "tool"
    assert list(installed_with(alone)) == [alone]


def test_what_a_command_names_is_there(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "server.py").write_text("")
    (tmp_path / "docs").mkdir()
    words = ["python", "app/server.py", "--docs=docs", "/usr/share", "-v", "nothing-like-it", "."]
    assert named_in(words, tmp_path) == [tmp_path / "app", tmp_path / "docs"]


@pytest.mark.parametrize(
    ("limits", "script", "said"),
    [
        (Limits(memory=200_000_000), "bytearray(400_000_000)", "MemoryError"),
        (Limits(files=20), "x = [open('/dev/null') for _ in range(30)]", "Too many open files"),
        (
            Limits(file_size=1000),
            "open('big', 'wb', 0).write(b'x' * 1000 + b'x'); open('big', 'ab', 0).write(b'x')",
            "File too large",
        ),
    ],
)
async def test_a_server_gets_no_more_than_its_limits(limits: Limits, script: str, said: str, tmp_path: Path) -> None:
    code = f"import os; os.chdir({str(tmp_path)!r})\n{script}"
    assert said in await told([PYTHON, "-c", code], None, limits=limits)


async def test_limits_that_cannot_be_set_keep_a_server_from_running(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    made = launch(["touch", str(mark)], dict(os.environ), None, None, Limits(files=20), None)
    words = [word.replace("files=20", "files=none") for word in made.words]
    process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    assert process.returncode == 126 and b"files=none" in said
    assert not mark.exists()
