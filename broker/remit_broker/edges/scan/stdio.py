"""A server that is started here, spoken to line by line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from remit_broker.core.scan.surface import Talk
from remit_broker.edges.attach.child import MAX_LINE, Child, start, stop
from remit_broker.edges.attach.server_log import ServerLog
from remit_broker.edges.attach.source import StdioSource
from remit_broker.edges.scan.inbox import Broken, Inbox
from remit_broker.edges.scan.talk import ANSWER, META, patience


class StdioWire:
    """The lines of a started server."""

    def __init__(self, child: Child, talk: Talk) -> None:
        self.modern = False
        self._child = child
        self._inbox = Inbox(talk)
        self._ids = count(1)

    async def ask(self, method: str, params: dict[str, Any], ident: int | str | None = None) -> dict[str, Any]:
        """See :class:`~remit_broker.edges.scan.talk.Wire`."""
        ident = next(self._ids) if ident is None else ident
        answer = self._inbox.expect(ident)
        params = {**params, "_meta": META} if self.modern else params
        async with asyncio.timeout(patience(method)):
            await self._say({"jsonrpc": "2.0", "id": ident, "method": method, "params": params})
            return await answer

    async def tell(self, method: str) -> None:
        """A notification."""
        async with asyncio.timeout(ANSWER):
            await self._say({"jsonrpc": "2.0", "method": method})

    async def _say(self, message: dict[str, Any]) -> None:
        assert self._child.process.stdin is not None  # noqa: S101 - spawned with pipes
        try:
            self._child.process.stdin.write(json.dumps(message).encode() + b"\n")
            await self._child.process.stdin.drain()
        except OSError:
            raise Broken("it closed its input") from None

    async def hear(self) -> None:
        """Read until it ends; what it asks of us is refused."""
        assert self._child.process.stdout is not None  # noqa: S101 - spawned with pipes
        try:
            async for line in self._child.process.stdout:
                if line.strip():
                    self._inbox.hear(line)
                while self._inbox.requests:
                    await self._refuse(self._inbox.requests.pop())
                if self._inbox.over is not None:
                    return
            self._inbox.end("it ended" if self._child.process.returncode is not None else "it closed its output")
        except ValueError:
            self._inbox.hear(b" " * (MAX_LINE + 1))
        except (OSError, Broken):
            self._inbox.end("its output broke")

    async def _refuse(self, request: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
        if request["method"] == "ping":
            await self._say({**answer, "result": {}})
        else:
            await self._say({**answer, "error": {"code": -32601, "message": "a scan answers nothing"}})


@asynccontextmanager
async def started(source: StdioSource, talk: Talk, log: ServerLog) -> AsyncGenerator[StdioWire, None]:
    """Start the server; leaving ends it and all of its processes. Raises ``SourceError``."""
    child = await start(source)
    wire = StdioWire(child, talk)
    tasks = [asyncio.create_task(wire.hear()), asyncio.create_task(_keep(child, log))]
    try:
        yield wire
    finally:
        await stop(child)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep(child: Child, log: ServerLog) -> None:
    assert child.process.stderr is not None  # noqa: S101 - spawned with pipes
    while data := await child.process.stderr.read(64 * 1024):
        log.write(data)
