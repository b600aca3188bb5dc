"""The command line as people use it: the real command in a process of its own, and a broker that it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 30.0
REMIT = (sys.executable, "-m", "remit_broker.cli.main")
SERVER = Path(__file__).parent / "mcp_servers" / "well_behaved.py"


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
) -> Result:
    """Run a command to its end; it never shows a traceback."""
    surroundings = {**os.environ, **(env or {})}
    surroundings.pop("COLUMNS", None)
    if width:
        surroundings["COLUMNS"] = str(width)
    done = subprocess.run(
        [*REMIT, *words], cwd=cwd, env=surroundings, input=stdin, capture_output=True, text=True, timeout=SECONDS,
        encoding="utf-8",
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "this should not happen" not in done.stderr, done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


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
        assert done.code == 0, done.err
        return done.json()

    def agent(self, name: str) -> None:
        """Register an agent."""
        self.json("agents", "add", name)

    def server(self, name: str) -> None:
        """Add the well-behaved MCP server, and wait until its tools are there."""
        self.json("servers", "add", name, "--", sys.executable, str(SERVER))
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
