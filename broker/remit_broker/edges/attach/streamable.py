"""The streamable HTTP transport of MCP, with failures of the network as answers instead of the end of the session."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Final

import anyio
import httpx2
from mcp.client._transport import TransportStreams
from mcp.client.streamable_http import streamable_http_client
from mcp_types import ErrorData

from remit_broker.edges.attach.child import MAX_LINE
from remit_broker.edges.attach.lenient import readable

CONNECT: Final = 10.0
"""Seconds for connecting and for writing a request. How long an answer may take is decided by the call's deadline."""

END: Final = 0.25
"""Seconds, and bytes, for what may follow an answer: nothing but the end of its stream should."""
END_BYTES: Final = 4096

UNREACHABLE: Final = -32000

AGAIN: Final = (0.2, 10.0)
"""First and last pause, in seconds, before a stream that cannot be opened is asked for again."""
PATIENCE: Final = 300.0
"""Seconds for which it is asked for."""
_AWAY: Final = frozenset({502, 503, 504})

_LISTING: Final = re.compile(rb'"method"\s*:\s*"[a-z/]{1,40}/list"')


class Http:
    """One upstream. Its answers about the network carry a secret, so that the upstream cannot pretend that nothing was sent."""

    def __init__(self, url: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.url = url
        self._headers = dict(headers)
        self._secret = secrets.token_hex(16)

    def never_sent(self, error: ErrorData) -> bool:
        """Whether this error is our own and says that the request did not leave."""
        return isinstance(error.data, dict) and error.data.get("unsent") == self._secret

    def failed(self, error: ErrorData) -> bool:
        """Whether this error is our own: the upstream did not answer it."""
        return isinstance(error.data, dict) and self._secret in (error.data.get("unsent"), error.data.get("broken"))

    @asynccontextmanager
    async def streams(self) -> AsyncGenerator[TransportStreams, None]:
        """The message streams of a session with the upstream."""
        timeout = httpx2.Timeout(CONNECT, read=None)
        # Not the environment's proxies or netrc: a grant must not travel by a way nobody configured here.
        async with (
            httpx2.AsyncClient(
                transport=_Answering(self._secret), timeout=timeout, trust_env=False, headers=self._headers
            ) as client,
            streamable_http_client(self.url, http_client=client, max_sse_event_size=MAX_LINE) as streams,
        ):
            yield streams


class _Answering(httpx2.AsyncBaseTransport):
    def __init__(self, secret: str) -> None:
        self._inner = httpx2.AsyncHTTPTransport(trust_env=False)
        self._secret = secret

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await (self._stream(request) if request.method == "GET" else self._once(request))

    async def _stream(self, request: httpx2.Request) -> httpx2.Response:
        """The stream on which a server speaks of its own accord, or one of a request that broke off and is taken up where it was.

        The library asks for it, with ``Last-Event-ID``, and gives up for good after two failures in a row: sooner than a server is
        started again.
        """
        # INVARIANT: a server that comes back is heard again (test_a_stream_of_a_server_that_was_away_is_taken_up_again).
        pause, longest = AGAIN
        until = anyio.current_time() + PATIENCE
        while (response := await self._once(request)).status_code in _AWAY and anyio.current_time() < until:
            await response.aclose()
            await anyio.sleep(pause)
            pause = min(pause * 2, longest)
        return response

    async def _once(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = await self._inner.handle_async_request(request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol) as error:
            return _own(503, f"cannot be reached: {str(error) or type(error).__name__}", {"unsent": self._secret})
        except httpx2.TransportError as error:
            return _own(502, f"broke off: {str(error) or type(error).__name__}", {"broken": self._secret})
        if response.status_code >= 400 and not _is_json(response) and response.status_code != 404:
            await response.aclose()
            return _own(response.status_code, f"answered HTTP {response.status_code}", {"broken": self._secret})
        if not isinstance(response.stream, httpx2.AsyncByteStream):
            return response
        if _is_json(response):
            response.stream = _Capped(response.stream)
        elif request.method == "POST":
            response.stream = _Finished(response.stream)
        if request.method == "POST" and _LISTING.search(await request.aread()):
            response.stream = _Readable(response.stream, whole=_is_json(response))
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Capped(httpx2.AsyncByteStream):
    """A body that ends in an error where it grows beyond what is read from any server."""

    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            if size > MAX_LINE:
                raise httpx2.StreamError(f"an answer of more than {MAX_LINE} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Finished(httpx2.AsyncByteStream):
    """A stream of events that is read to its end, if that is near, when nobody wants more of it.

    The library closes it once it has the answer, with the end of the body unread: then the connection is of no more use, and
    every call makes a new one (test_a_call_makes_no_new_connection_to_its_server).
    """

    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner
        self._pieces = aiter(inner)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._pieces:
            yield piece

    async def aclose(self) -> None:
        try:
            with anyio.move_on_after(END), contextlib.suppress(httpx2.HTTPError, httpx2.StreamError):
                left = END_BYTES
                async for piece in self._pieces:
                    left -= len(piece)
                    if left < 0:
                        break
        finally:
            await self._inner.aclose()


class _Readable(httpx2.AsyncByteStream):
    """The answer to a listing, in which one entry that cannot be read does not keep the library from reading the others."""

    def __init__(self, inner: httpx2.AsyncByteStream, *, whole: bool) -> None:
        """``whole``: one document, else a stream of events."""
        self._inner, self._whole = inner, whole

    async def __aiter__(self) -> AsyncIterator[bytes]:
        kept: list[bytes] = []
        size = 0
        async for piece in self._inner:
            kept.append(piece)
            size += len(piece)
            if not self._whole and b"\n" in piece:
                *lines, rest = b"".join(kept).split(b"\n")
                kept, size = [rest], len(rest)
                yield b"".join(_event(line) + b"\n" for line in lines)
            # INVARIANT: a line that never ends is not kept (test_a_line_of_a_listing_that_never_ends_is_given_up).
            if size > MAX_LINE:
                raise httpx2.StreamError(f"an event of more than {MAX_LINE} bytes")
        yield readable(b"".join(kept)) if self._whole else _event(b"".join(kept))

    async def aclose(self) -> None:
        await self._inner.aclose()


def _event(line: bytes) -> bytes:
    """A line of a stream of events."""
    name, sign, said = line.partition(b":")
    return b"data: " + readable(said.strip()) if name == b"data" and sign else line


def _is_json(response: httpx2.Response) -> bool:
    return bool(response.headers.get("content-type", "").lower().startswith("application/json"))


def _own(status: int, message: str, data: dict[str, Any]) -> httpx2.Response:
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": UNREACHABLE, "message": message, "data": data}}
    return httpx2.Response(status, headers={"content-type": "application/json"}, content=json.dumps(body).encode())
