"""A server that is reached at a URL, spoken to by streamable HTTP (2025-11-25 and 2026-07-28, Transports)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from itertools import count
from typing import Any, Final

import httpx

from remit_broker.core.scan.surface import Talk
from remit_broker.edges.scan.inbox import MAX_MESSAGE, Broken, Inbox
from remit_broker.edges.scan.talk import ANSWER, HANDSHAKE, META, MODERN, patience

ACCEPT: Final = "application/json, text/event-stream"


class HttpWire:
    """Each request is a POST; its answer is a JSON body, or comes on a stream of events."""

    def __init__(self, client: httpx.AsyncClient, url: str, talk: Talk, headers: Mapping[str, str]) -> None:
        self.modern = False
        self._client, self._url, self._talk = client, url, talk
        self._headers = dict(headers)
        self._inbox = Inbox(talk)
        self._ids = count(1)

    async def ask(self, method: str, params: dict[str, Any], ident: int | str | None = None) -> dict[str, Any]:
        """See :class:`~remit_broker.edges.scan.talk.Wire`."""
        ident = next(self._ids) if ident is None else ident
        answer = self._inbox.expect(ident)
        params = {**params, "_meta": META} if self.modern else params
        async with asyncio.timeout(patience(method)):
            await self._post({"jsonrpc": "2.0", "id": ident, "method": method, "params": params}, answer)
            if not answer.done():
                raise Broken(f"the answer to {method} ended without a result")
            return answer.result()

    async def tell(self, method: str) -> None:
        """A notification."""
        async with asyncio.timeout(ANSWER):
            await self._post({"jsonrpc": "2.0", "method": method}, None)

    async def _post(self, message: dict[str, Any], answer: asyncio.Future[dict[str, Any]] | None) -> None:
        try:
            async with self._client.stream("POST", self._url, json=message, headers=self._with(message)) as response:
                if session := response.headers.get("mcp-session-id"):
                    self._talk.session = self._headers["mcp-session-id"] = session
                kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                if answer is None:
                    return
                if kind == "text/event-stream":
                    await self._events(response, answer)
                elif kind == "application/json":
                    self._inbox.hear(await body(response))
                else:
                    raise Broken(
                        f"{message['method']} was answered with HTTP {response.status_code} and {kind or 'no'} content"
                    )
        except httpx.HTTPError as error:
            raise Broken(f"the connection broke: {str(error) or type(error).__name__}") from None

    def _with(self, message: dict[str, Any]) -> dict[str, str]:
        found = {"accept": ACCEPT, "mcp-protocol-version": MODERN if self.modern else self._talk.protocol or HANDSHAKE}
        if message["method"] == "initialize":
            del found["mcp-protocol-version"]
        return {**found, **({"mcp-method": message["method"]} if self.modern else {}), **self._headers}

    async def _events(self, response: httpx.Response, answer: asyncio.Future[dict[str, Any]]) -> None:
        async for event in events(response):
            self._inbox.hear(event)
            # There may be nobody to refuse what it asks: an answer would go in a request of its own, and it is a finding anyway.
            self._inbox.requests.clear()
            if answer.done() or self._inbox.over is not None:
                return


async def body(response: httpx.Response, most: int = MAX_MESSAGE) -> bytes:
    """A body, as far as it is read: one byte more than ``most`` says that there was more."""
    found = bytearray()
    async for piece in response.aiter_bytes():
        found += piece
        if len(found) > most:
            return bytes(found[: most + 1])
    return bytes(found)


async def events(response: httpx.Response) -> AsyncIterator[bytes]:
    """The data of each event (WHATWG HTML, Server-sent events). Raises :class:`Broken` for one that does not end."""
    rest, data = b"", bytearray()
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            if not line and data:
                yield bytes(data)
                data.clear()
            elif line.startswith(b"data:"):
                data += line[5:].removeprefix(b" ")
        if len(rest) + len(data) > MAX_MESSAGE:
            raise Broken(f"an event of more than {MAX_MESSAGE} bytes")


def initialize() -> bytes:
    """A handshake, as it is sent to see how the server is guarded."""
    params = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "remit-scan", "version": "1"}}
    return json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}).encode()
