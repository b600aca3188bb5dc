"""HTTP requests to hosts that somebody else than the operator named: to the very address that was checked, without redirections,
over TLS, bounded in time and size. The one way out for every such URL.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import httpx

from remit_broker.core.addresses import Address, Network, address, may_connect

SECONDS: Final = 10.0
"""For all of a request: the name, the connection, the answer."""
MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer that are read."""

Resolve = Callable[[str, int], Awaitable[list[str]]]


class Forbidden(Exception):  # noqa: N818 - an answer
    """The host has an address that nothing is sent to, or the URL is none that anything is sent to."""


class Answer(NamedTuple):
    """What came back; ``body`` is as it was sent, never unpacked."""

    status: int
    headers: httpx.Headers
    body: bytes


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system resolves it. Raises ``OSError``."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError("that is no name of a host") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@functools.cache
def tls() -> ssl.SSLContext:
    """Checks certificates against the usual authorities. Read once: that takes 40 ms, in which nothing else would run."""
    return httpx.create_ssl_context()


class Outbound:
    """Sends to public hosts, and to ``allowed`` networks. Plain ``http`` goes to allowed networks only.

    ``named`` is the key of the configuration where networks are allowed, for what is said.
    """

    def __init__(
        self, allowed: Iterable[Network] = (), resolver: Resolve = resolve, named: str = "approvals.webhook_allow"
    ) -> None:
        self._allowed, self._resolve, self._named = tuple(allowed), resolver, named

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of the answer, of which little is read. Raises as :meth:`send` does."""
        return (await self.send("POST", url, headers, body, cut=True)).status

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> bytes:
        """The body of an answer with status 200. Raises :class:`Forbidden` for another one, else as :meth:`send` does."""
        answer = await self.send("GET", url, headers or {})
        if answer.status != 200:
            raise Forbidden(f"it answers with status {answer.status}")
        return answer.body

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None, *, cut: bool = False
    ) -> Answer:
        """One request. With ``cut`` an answer that is too large is cut, else it is :class:`Forbidden`.

        Raises :class:`Forbidden`, ``OSError``, ``TimeoutError``, ``httpx.HTTPError``, or ``ValueError`` for what is no URL.
        """
        async with asyncio.timeout(SECONDS):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or "@" in parts.netloc or not parts.netloc.isascii():
                raise Forbidden("that is no URL that anything is sent to")
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
            to = await self._checked(host, port, plain=parts.scheme != "https")
            shown = f"[{to}]" if to.version == 6 else str(to)
            # INVARIANT: the address that was checked is the one that is connected to: a name that resolves otherwise a moment later
            # changes nothing (test_a_name_that_resolves_otherwise_later_changes_nothing).
            try:
                at = httpx.URL(url).copy_with(host=shown)
            except httpx.InvalidURL as error:
                raise ValueError(str(error)) from None
            # A client for each: connections that are kept are told apart by address alone, cookies not at all.
            async with httpx.AsyncClient(
                trust_env=False, follow_redirects=False, timeout=SECONDS, verify=tls()
            ) as client:
                request = client.build_request(
                    method,
                    at,
                    content=body,
                    # INVARIANT: nothing is unpacked that somebody else packed (test_an_answer_that_is_packed_is_not_unpacked).
                    headers={**headers, "Host": parts.netloc, "Accept-Encoding": "identity"},
                    extensions={"sni_hostname": host},
                )
                answer = await client.send(request, stream=True)
                try:
                    if not cut and answer.headers.get("content-encoding", "identity") != "identity":
                        raise Forbidden("its answer is packed")
                    return Answer(answer.status_code, answer.headers, await _read(answer, cut=cut))
                finally:
                    await answer.aclose()

    async def _checked(self, host: str, port: int, *, plain: bool) -> Address:
        found = [address(text) for text in await self._resolve(host, port)]
        if not found:
            raise OSError(f"{host} has no address")
        for one in found:
            # INVARIANT: nothing is sent into a network by way of a name or a form of an address
            # (test_nothing_is_sent_to_an_address_that_is_not_public).
            if not may_connect(one, self._allowed):
                raise Forbidden(f"{host} is at {one}, which is not public; name its network in {self._named}")
            if plain and not any(one.version == net.version and one in net for net in self._allowed):
                raise Forbidden(f"{host} is reached by http, which is for networks in {self._named} alone")
        return found[0]


async def _read(answer: httpx.Response, *, cut: bool) -> bytes:
    data = bytearray()
    async for piece in answer.aiter_raw():
        data += piece
        if len(data) > MAX_ANSWER:
            if cut:
                break
            # INVARIANT: an answer without end is not read to its end (test_an_answer_that_is_too_large_is_none).
            raise Forbidden(f"it answers with more than {MAX_ANSWER} bytes")
    return bytes(data)
