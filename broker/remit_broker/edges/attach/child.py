"""An MCP server that was started here, as a process that is ended as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import Final

from remit_broker.edges.attach.containment import ContainmentError, launch
from remit_broker.edges.attach.source import SourceError, StdioSource

MAX_LINE: Final = 16 * 1024 * 1024
"""Longest line in bytes that is read from a server; one that sends more has broken the protocol and is ended."""

GRACE: Final = 2.0
"""Seconds a server has after its input closed, and again after SIGTERM."""

_POLL: Final = 0.02


class Child:
    """A running server. ``ended`` is set when it can no longer answer, ``reason`` then says why."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.ended = asyncio.Event()
        self.reason = ""

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self.process.pid

    def end(self, reason: str) -> None:
        """Note why no more answers will come; the first reason stays."""
        if not self.ended.is_set():
            self.reason = reason
            self.ended.set()


async def start(source: StdioSource, home: Path | None = None) -> Child:
    """Start the server in a session of its own; ``home`` is that of a contained one. Raises :class:`SourceError`."""
    env = source.environment()
    try:
        made = launch(source.command, env, source.cwd, source.room, source.limits, home)
        if made.words[0] != source.command[0] and shutil.which(source.command[0], path=env.get("PATH")) is None:
            raise FileNotFoundError(2, "No such file or directory")
        process = await asyncio.create_subprocess_exec(
            *made.words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=source.cwd,
            env=made.env,
            start_new_session=True,
            limit=MAX_LINE,
        )
    except ContainmentError as error:
        raise SourceError(str(error)) from None
    except OSError as error:
        raise SourceError(f"cannot run {source.command[0]!r}: {error.strerror}") from None
    return Child(process)


async def stop(child: Child) -> None:
    """Close the input, wait, then end the process group: SIGTERM, wait, SIGKILL. Bounded by three times :data:`GRACE`."""
    process = child.process
    if process.stdin is not None:
        process.stdin.close()
    await _gone(child, leader_only=True)
    for number in (signal.SIGTERM, signal.SIGKILL):
        # INVARIANT: the group is signalled even when its leader left by itself (test_stopping_ends_grandchildren_too).
        if not _signal(child.pid, number):
            break
        if await _gone(child, leader_only=False):
            break
    # A grandchild that escaped into a session of its own may still hold the pipes: never wait for their end.
    transport = getattr(process, "_transport", None)
    if transport is not None:
        with contextlib.suppress(PermissionError):
            transport.close()


async def _gone(child: Child, *, leader_only: bool) -> bool:
    for _ in range(round(GRACE / _POLL)):
        if child.process.returncode is not None and (leader_only or not _signal(child.pid, 0)):
            return True
        await asyncio.sleep(_POLL)
    return False


def _signal(group: int, number: int) -> bool:
    """Send a signal to a process group; whether there still was one (0 only asks)."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
