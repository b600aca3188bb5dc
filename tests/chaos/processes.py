"""Processes that are killed, frozen and started again."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _leashed() -> None:
    """Between fork and exec: whatever becomes of the run, nothing of it stays behind."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def state_of(pid: int) -> str:
    """The letter of /proc: ``T`` is stopped; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(") ")[2][:1]
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    with contextlib.suppress(OSError):
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return []


def signal_to(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Process:
    """One process under a name. ``deaths`` counts how often it ended without being asked to."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.wanted = False
        self.starts = 0
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._running.pid if self._running is not None else 0

    @property
    def alive(self) -> bool:
        return self._running is not None and self._running.poll() is None

    @property
    def frozen(self) -> bool:
        return self.alive and state_of(self.pid) == "T"

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def launch(self) -> None:
        """Start it; what it says on standard error goes to a file."""
        self.wanted = True
        self.starts += 1
        with (
            (self.folder / f"{self.name}.stderr").open("ab") as errors,
            (self.folder / f"{self.name}.stdout").open("wb") as out,
        ):
            self._running = subprocess.Popen(  # a list, no shell
                [sys.executable, *self.command()], stdin=subprocess.DEVNULL, stdout=out, stderr=errors,
                env={**os.environ, **self.environment()}, preexec_fn=_leashed,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL, frozen or not; it is started again by whoever keeps it."""
        if self.alive:
            signal_to(self.pid, signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and says nothing."""
        if self.alive:
            signal_to(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        if self.alive:
            signal_to(self.pid, signal.SIGCONT)

    async def end(self, patience: float = 10.0) -> None:
        """End it for good: first as an operator would."""
        self.wanted = False
        if self._running is None:
            return
        self.thaw()
        with contextlib.suppress(ProcessLookupError):
            self._running.terminate()
        until = asyncio.get_running_loop().time() + patience
        while self.alive and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)
        self.kill()
        await asyncio.to_thread(self._running.wait)


class Person(Process):
    """A caller or a callee of :mod:`tests.chaos.people`."""

    def __init__(self, folder: Path, name: str, role: str, seed: str) -> None:
        super().__init__(folder, name)
        self.role, self._seed = role, seed

    def command(self) -> list[str]:
        return ["-m", "tests.chaos.people", self.role, str(self.folder), self.name, f"{self._seed}/{self.starts}"]
