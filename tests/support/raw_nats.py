"""A NATS client that says exactly what a test tells it to, over a plain socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

SECONDS = 6.0
"""Longer than the server waits for a proof."""


class RawNats:
    """One connection, greeted and not yet authenticated."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, info: dict[str, Any]) -> None:
        self._reader, self._writer = reader, writer
        self.info = info

    @classmethod
    @asynccontextmanager
    async def open(cls, host: str, port: int) -> AsyncIterator[RawNats]:
        """Connect and read the greeting."""
        reader, writer = await asyncio.open_connection(host, port, limit=2**20)
        try:
            line = await asyncio.wait_for(reader.readline(), SECONDS)
            yield cls(reader, writer, json.loads(line.removeprefix(b"INFO ")))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @property
    def nonce(self) -> str:
        """The server's challenge to this connection."""
        return str(self.info["nonce"])

    async def send(self, data: bytes) -> None:
        """Say ``data``, as far as the server still listens."""
        with contextlib.suppress(OSError):
            self._writer.write(data)
            await self._writer.drain()

    async def send_connect(self, options: Any) -> None:
        """CONNECT, and a PING whose answer says that it was accepted."""
        await self.send(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")

    async def verdict(self) -> str:
        """``in`` as soon as the server answers the PING, else everything it said until it hung up."""
        said = b""
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    line = await self._reader.readline()
                except OSError:
                    line = b""
                if line.startswith(b"PONG"):
                    return "in"
                said += line
                if not line:
                    return said.decode("utf-8", "replace") or "closed without a word"
