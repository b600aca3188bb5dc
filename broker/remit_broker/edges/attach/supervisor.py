"""The servers on the broker's own machine: one worker process for each entry of ``servers.toml``, started again when it ends.

Each worker is a process of its own with the credentials of its server, as it would be on another machine: a crash, a leak or
a flood in one server stays there, and the way of its calls is the same as everybody's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from remit_broker.edges.attach.servers_file import ServerEntry, read_servers
from remit_broker.edges.attach.source import INHERITED, HttpSource, Source, StdioSource
from remit_broker.edges.attach.timing import Timing

_STOP: Final = 15.0
"""Seconds in which a worker ends its server and itself, before both are killed."""
_LINE: Final = 512 * 1024
_PYTHON: Final = ("PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV", "SYSTEMROOT")
"""What a worker needs beside :data:`INHERITED` to find the same packages."""


@dataclass(frozen=True)
class ServerState:
    """One server, for a listing. ``pid`` is the worker's; ``reason`` is one line, empty while all is well.

    ``contained`` says how a server that is started here is contained, or that it is not.
    """

    name: str
    state: Literal["running", "starting", "failed", "stopped"]
    reason: str = ""
    pid: int | None = None
    tools: int = 0
    server: str = ""
    contained: str = ""
    processes: int = 0
    """Of users or tasks that have one of their own."""


class ServerSupervisor:
    """Runs what ``servers.toml`` says. ``credentials`` names the credentials file of a server."""

    def __init__(
        self,
        servers_file: Path,
        credentials: Callable[[str], Path],
        *,
        timing: Timing = Timing(),  # noqa: B008 - frozen
        on_state: Callable[[ServerState], None] = lambda _: None,
    ) -> None:
        self._file = servers_file
        self._credentials = credentials
        self._timing = timing
        self._on_state = on_state
        self._running: dict[str, _Runner] = {}

    async def start(self) -> None:
        """Start every server of the file. Raises :class:`~remit_broker.edges.attach.servers_file.ServersFileError`."""
        await self.reload()

    async def reload(self) -> None:
        """Make what runs what the file says now: new ones start, changed ones start anew, others go on undisturbed.

        Raises :class:`~remit_broker.edges.attach.servers_file.ServersFileError`, and then leaves everything as it was.
        """
        wanted = read_servers(self._file)
        gone = [name for name, runner in self._running.items() if wanted.get(name) != runner.entry]
        await asyncio.gather(*(self._running.pop(name).stop() for name in gone))
        for name, entry in wanted.items():
            if name not in self._running:
                runner = _Runner(entry, self._credentials(name), self._timing, self._on_state)
                self._running[name] = runner
                runner.start()

    def states(self) -> list[ServerState]:
        """Every server, by name."""
        return [self._running[name].state for name in sorted(self._running)]

    async def stop(self) -> None:
        """End all workers and their servers."""
        runners, self._running = tuple(self._running.values()), {}
        await asyncio.gather(*(runner.stop() for runner in runners))


class _Runner:
    """One worker process and its restarts."""

    def __init__(
        self, entry: ServerEntry, credentials: Path, timing: Timing, on_state: Callable[[ServerState], None]
    ) -> None:
        self.entry = entry
        self._contained = entry.source.contained if isinstance(entry.source, StdioSource) else ""
        self.state = ServerState(entry.name, "starting", contained=self._contained)
        self._credentials = credentials
        self._timing = timing
        self._on_state = on_state
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._server_pid: int | None = None
        self._user_pids: list[int] = []

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._end()
        self._say(ServerState(self.entry.name, "stopped"))

    async def _keep_running(self) -> None:
        pause = self._timing.first_restart
        while True:
            began = asyncio.get_running_loop().time()
            reason = await self._once()
            if asyncio.get_running_loop().time() - began > self._timing.steady:
                pause = self._timing.first_restart
            self._say(ServerState(self.entry.name, "failed", f"{reason}; tried again in {pause:g} s"))
            await asyncio.sleep(pause)
            pause = min(pause * 2, self._timing.last_restart)

    async def _once(self) -> str:
        """One worker from start to end; why it ended."""
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._words(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={name: os.environ[name] for name in (*INHERITED, *_PYTHON) if name in os.environ},
                start_new_session=True,
                limit=_LINE,
            )
        except OSError as error:
            return f"the worker cannot be started: {error.strerror}"
        last = asyncio.create_task(_last_line(process.stderr))
        await self._give_variables(process)
        assert process.stdout is not None  # noqa: S101 - spawned with a pipe
        try:
            with contextlib.suppress(ValueError):
                async for line in process.stdout:
                    self._heard(line)
            code = await process.wait()
        except asyncio.CancelledError:
            last.cancel()
            raise
        await self._end()
        return (await last) or f"the worker ended with exit code {code}"

    def _words(self) -> list[str]:
        source = self.entry.source
        # INVARIANT: -P: nothing in the folder the broker was started in is imported
        # (test_a_module_in_the_current_folder_is_not_run_by_a_worker).
        words = [sys.executable, "-P", "-m", "remit_broker.edges.attach", self.entry.name, "--json", "--supervised"]
        words += ["--credentials", str(self._credentials)]
        if isinstance(source, HttpSource):
            return [*words, "--url", source.url]
        if source.cwd is not None:
            words += ["--cwd", str(source.cwd)]
        return [*words, "--", *source.command]

    async def _give_variables(self, process: asyncio.subprocess.Process) -> None:
        """What was declared for the server goes through a pipe: neither the worker nor a list of processes is to see it.

        The pipe stays open: when we are killed, its end tells the worker.
        """
        assert process.stdin is not None  # noqa: S101 - spawned with a pipe
        process.stdin.write(json.dumps(_given(self.entry.source)).encode() + b"\n")
        with contextlib.suppress(OSError):
            await process.stdin.drain()

    def _heard(self, line: bytes) -> None:
        try:
            said = json.loads(line)
            state, reason, tools, server = said["state"], said["reason"], said["tools"], said["server"]
        except (ValueError, KeyError, TypeError):
            return
        self._server_pid = said.get("pid") or self._server_pid
        self._user_pids = [pid for pid in said.get("others", []) if isinstance(pid, int)]
        pid = self._process.pid if self._process else None
        if state in ("running", "starting"):
            others = len(self._user_pids)
            self._say(ServerState(self.entry.name, state, str(reason), pid, int(tools), str(server), processes=others))

    async def _end(self) -> None:
        """End the worker politely, then kill it and whatever is left of its server."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(_STOP):
                    await process.wait()
            except TimeoutError:
                _kill(process.pid)
        # A worker that was killed could not end its server, which is in a session of its own.
        if process.returncode != 0:
            for pid in (*self._user_pids, *([] if self._server_pid is None else [self._server_pid])):
                _kill(pid)
        self._server_pid, self._user_pids = None, []

    def _say(self, state: ServerState) -> None:
        state = replace(state, contained=self._contained)
        if state != self.state:
            self.state = state
            self._on_state(self.state)


def _given(source: Source) -> dict[str, Any]:
    """What a worker is told of its server beside the command."""
    if isinstance(source, HttpSource):
        return {"env": {}}
    room = source.room
    told = (
        None
        if room is None
        else {"read": [*map(str, room.read)], "write": [*map(str, room.write)], "network": room.network}
    )
    return {"env": dict(source.env), "room": told, "limits": source.limits.set(), "sharing": asdict(source.sharing)}


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


async def _last_line(stream: asyncio.StreamReader | None) -> str:
    """The last line of a worker's standard error: the worker prints one line when it fails."""
    last = ""
    with contextlib.suppress(ValueError):
        async for line in stream or ():  # type: ignore[union-attr]
            last = line.decode(errors="replace").strip()[:500] or last
    return last
