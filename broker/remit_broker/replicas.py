"""``remit up --replicas N``: one process owns the NATS server and the HTTP port; it starts N broker processes and keeps them.

The first has the HTTP edge, the index, the scan and the MCP servers; all take requests from one queue group. One that is killed is
started again, and what it had open is closed by the scan, as after any crash. The supervisor handles no hop and no secret of one,
so there is little in it to go wrong; if it is killed all the same, the kernel asks its children to end (``adapters/leash.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec

from remit_broker.adapters import leash
from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.private_files import private_folder
from remit_broker.adapters.tasks import ended
from remit_broker.config import Settings
from remit_broker.identity import marked
from remit_broker.premises import Place, bind_http, embed

READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 10.0
"""Beside what running hops get (``limits.drain``, twice), before a replica that does not end is killed."""
BACK_OFF: Final = (0.2, 5.0)
STEADY: Final = 10.0
"""Seconds after which a replica counts as well, and a next end of it as a first one."""
WRONG: Final = 2
"""Exit code of a replica whose configuration or ledger is not as it must be: starting it again would change nothing."""


class Replicas:
    """The supervisor. ``async with`` it; :attr:`ended` is set when it cannot go on, and :attr:`why` says why."""

    def __init__(self, settings: Settings, count: int, words: Sequence[str] = ()) -> None:
        self._settings, self._count, self._options = settings, count, tuple(words)
        self.ended = asyncio.Event()
        self.why = ""
        self.http = ""
        self.bus = ""
        self.replicas: list[Replica] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Replicas:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        settings = self._settings
        private_folder(settings.data, create=True)
        keys = KeyFiles.open(settings.data, create=True)
        # Held here: callers that come while the replica behind it is started again wait, and are not refused.
        server = bind_http(settings)
        self._stack.push_async_callback(server.stop)
        self.http, self.bus = server.url, settings.config.bus.url
        if not self.bus:
            embedded = await embed(settings, keys, self._server_died)
            self._stack.push_async_callback(embedded.stop)
            self.bus = embedded.url
        self._stack.push_async_callback(self._stop)
        place = Place(bus=self.bus, url=self.http, pid=os.getpid(), group=secrets.token_hex(4), size=self._count)
        places = [msgspec.structs.replace(place, http=server.listen())]
        places += [msgspec.structs.replace(place, edge=False)] * (self._count - 1)
        self.replicas = [Replica(settings, at, self._options, self._cannot) for at in places]
        # The first alone: it compares the ledger with its witness, and nobody builds on one that lost something.
        for some in (self.replicas[:1], self.replicas[1:]):
            for one in some:
                one.start()
            await asyncio.gather(*(one.until_ready() for one in some))

    async def _stop(self) -> None:
        await asyncio.gather(*(one.stop() for one in self.replicas))

    async def _server_died(self, status: int) -> None:
        self._cannot(f"the NATS server ended with {status}")

    def _cannot(self, why: str) -> None:
        self.why = self.why or why
        self.ended.set()

    @property
    def ready(self) -> dict[str, Any]:
        """The first line of ``remit up --json``."""
        told = [{"replica": one.name, "pid": one.pid} for one in self.replicas]
        ready = {"ready": True, "http": self.http, "nats": self.bus, "pid": os.getpid(), "replicas": told}
        return ready | marked(self._settings.config, self.http)


class Replica:
    """One broker process and its restarts."""

    def __init__(self, settings: Settings, place: Place, words: Sequence[str], cannot: Any) -> None:
        self.name, self.pid = "", 0
        self._settings, self._place, self._options, self._cannot = settings, place, words, cannot
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self._failed: ConfigError | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._keep_running())

    async def until_ready(self) -> None:
        """Wait for the first time it takes requests. Raises :class:`ConfigError` where it cannot."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready.wait()
        except TimeoutError:
            raise ConfigError(f"a replica was not ready after {READY_SECONDS:.0f} s", "read what it logged") from None
        if self._failed is not None:
            raise self._failed

    async def stop(self) -> None:
        """End it politely, then for certain."""
        if self._task is not None:
            await ended(self._task)
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(2 * self._settings.config.limits.drain + STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _keep_running(self) -> None:
        pause, longest = BACK_OFF
        while True:
            began = asyncio.get_running_loop().time()
            code = await self._once()
            if not self._ready.is_set() or code == WRONG:
                # It never worked, or cannot work any more: then it is not for us to hide that.
                self._failed = self._failed or ConfigError(
                    f"a replica ended with exit code {code}", "read what it logged"
                )
                self._ready.set()
                self._cannot(str(self._failed))
                return
            if asyncio.get_running_loop().time() - began > STEADY:
                pause = BACK_OFF[0]
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _once(self) -> int:
        """One process from start to end; its exit code."""
        self._process = process = await asyncio.create_subprocess_exec(
            *self._words(),
            stdin=asyncio.subprocess.PIPE,  # where the kernel does not watch, its end tells that we are gone
            stdout=asyncio.subprocess.PIPE,
            pass_fds=() if self._place.http is None else (self._place.http,),
            start_new_session=True,  # a terminal's Ctrl-C is ours to pass on
            limit=64 * 1024,
        )
        assert process.stdout is not None  # noqa: S101 - spawned with a pipe
        with contextlib.suppress(ValueError):
            async for line in process.stdout:
                self._heard(line)
        return await process.wait()

    def _heard(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            return
        if said.get("ready"):
            self.name, self.pid = str(said["replica"]), int(said["pid"])
            self._ready.set()
        elif "error" in said and not self._ready.is_set():
            self._failed = ConfigError(str(said["error"]["message"]), str(said["error"]["ask"]))

    def _words(self) -> list[str]:
        place = msgspec.json.encode(self._place).decode()
        words = [sys.executable, "-P", "-m", "remit_broker.cli.replica", str(self._settings.file), place]
        words += self._options
        return [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), "--", *words]
