"""The command line as people use it: the real command in a process of its own, and a broker that it started."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from remit_broker.cli.main import main

SECONDS = 30.0
REMIT = (sys.executable, "-m", "remit_broker.cli.main")
SERVER = Path(__file__).parent / "mcp_servers" / "well_behaved.py"


for heavy in ("httpx", "uvloop", "remit.agent"):
    importlib.import_module(heavy)


@dataclass(frozen=True)
class Result:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one JSON document on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def error(self) -> dict[str, Any]:
        """The error body."""
        found: dict[str, Any] = self.json()["error"]
        return found


def remit(
    *words: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    width: int | None = None,
    fresh: bool = False,
    seconds: float | None = None,
) -> Result:
    """Run a command to its end in a process of its own; it never shows a traceback.

    Where a new interpreter makes no difference it is a fork of this one, which has loaded everything.
    """
    if fresh or cwd or env or width or seconds:
        more = {**(env or {}), **({"COLUMNS": str(width)} if width else {})}
        done = _started(words, cwd, more, stdin, seconds or SECONDS)
    else:
        done = _forked(words, stdin)
    assert "Traceback" not in done.out + done.err, done.err
    assert "this should not happen" not in done.err, done.err
    return done


def _started(words: tuple[str, ...], cwd: Path | None, env: Mapping[str, str], stdin: str, seconds: float) -> Result:
    done = subprocess.run(
        [*REMIT, *words], cwd=cwd, env={**os.environ, **env}, input=stdin, capture_output=True, text=True,
        timeout=seconds, encoding="utf-8",
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


def _forked(words: tuple[str, ...], stdin: str) -> Result:
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        pid = os.fork()
        if pid == 0:
            _run(words, (given.fileno(), out.fileno(), err.fileno()))
        deadline = time.monotonic() + SECONDS
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise TimeoutError(f"remit {' '.join(words)} did not end")
            time.sleep(0.005)
        out.seek(0)
        err.seek(0)
        return Result(os.waitstatus_to_exitcode(ended[1]), out.read().decode(), err.read().decode())


def _run(words: tuple[str, ...], files: tuple[int, int, int]) -> NoReturn:
    """The command, in the child: as ``python -m remit_broker.cli.main`` does it."""
    code = 70
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.stdin, sys.stdout, sys.stderr = (
            io.TextIOWrapper(
                io.BufferedReader(io.FileIO(0)) if mode == "r" else io.BufferedWriter(io.FileIO(number, "w")), "utf-8"
            )
            for number, mode in enumerate("rww")
        )
        sys.argv = ["remit", *words]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def bad_start(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> Result:
    """``remit up`` where it cannot start."""
    return remit("up", "--json", "--quiet", "-c", str(folder), *words, env=env)


def new_folder(folder: Path) -> Path:
    """A folder as ``remit init`` makes it, with free ports."""
    done = remit("init", str(folder), "--port", "0")
    assert done.code == 0, done.err
    return folder


class Running:
    """A broker process on a folder."""

    def __init__(self, folder: Path, process: subprocess.Popen[str], ready: dict[str, Any]) -> None:
        self.folder, self.process, self.ready = folder, process, ready

    def remit(self, *words: str, **rest: Any) -> Result:
        """A command on this broker."""
        before = words.index("--") if "--" in words else len(words)
        return remit(*words[:before], "-c", str(self.folder), *words[before:], **rest)

    def json(self, *words: str, **rest: Any) -> Any:
        """A command that works, and its JSON."""
        before = words.index("--") if "--" in words else len(words)
        done = self.remit(*words[:before], "--json", *words[before:], **rest)
        assert done.code == 0, done.err + (self.folder / "up.log").read_text(encoding="utf-8")
        return done.json()

    def agent(self, name: str) -> None:
        """Register an agent."""
        self.json("agents", "add", name)

    def server(self, name: str) -> None:
        """Add the well-behaved MCP server, and wait until its tools are there."""
        self.json("servers", "add", name, "--", sys.executable, str(SERVER))
        self.server_runs(name)

    def server_runs(self, name: str) -> None:
        """Wait until a server's tools are there."""
        until(lambda: [s["state"] for s in self.json("servers", "list") if s["name"] == name] == ["running"])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(SECONDS)


def start(folder: Path, env: Mapping[str, str] | None = None) -> Running:
    """Start ``remit up`` and wait for its first line."""
    with (folder / "up.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*REMIT, "up", "--json", "-c", str(folder)], stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (folder / "up.log").read_text(encoding="utf-8")
    return Running(folder, process, json.loads(line))


@contextmanager
def running(folder: Path) -> Iterator[Running]:
    """A broker on ``folder``, stopped at the end."""
    broker = start(folder)
    try:
        yield broker
    finally:
        broker.stop()
        assert broker.process.stdout is not None
        broker.process.stdout.close()


def until(true: Callable[[], bool]) -> None:
    """Ask again until it is so, at most :data:`SECONDS`."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.05)


def lives(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes below one, all the way down."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(
                line.split(":\t", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":\t" in line
            )
        except OSError:
            continue
        if int(lines.get("PPid", 0)) == pid:
            found += [int(lines["Pid"]), *children(int(lines["Pid"]))]
    return found
