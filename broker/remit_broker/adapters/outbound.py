"""One HTTP request to a host that somebody named: to the very address that was checked, without redirects, bounded in time and size."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

import httpx

from remit_broker.core.addresses import Address, Network, address, may_connect

SECONDS: Final = 10.0
"""For all of a request: the name, the connection, the answer."""
MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer that are read."""

Resolve = Callable[[str, int], Awaitable[list[str]]]


class Forbidden(Exception):  # noqa: N818 - an answer
    """The host has an address that nothing is sent to."""


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system resolves it. Raises ``OSError``."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Outbound:
    """Sends to public hosts, and to ``allowed`` networks. Plain ``http`` goes to allowed networks only."""

    def __init__(self, allowed: Iterable[Network] = (), resolver: Resolve = resolve) -> None:
        self._allowed, self._resolve = tuple(allowed), resolver

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of the answer. Raises :class:`Forbidden`, ``OSError``, ``TimeoutError`` or ``httpx.HTTPError``."""
        async with asyncio.timeout(SECONDS):
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
            to = await self._checked(host, port, plain=parts.scheme != "https")
            shown = f"[{to}]" if to.version == 6 else str(to)
            # INVARIANT: the address that was checked is the one that is connected to: a name that resolves otherwise a moment later
            # changes nothing (test_a_name_that_resolves_otherwise_later_changes_nothing).
            at = httpx.URL(url).copy_with(host=shown)
            async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=SECONDS) as client:
                request = client.build_request(
                    "POST",
                    at,
                    content=body,
                    headers={**headers, "Host": parts.netloc},
                    extensions={"sni_hostname": host},
                )
                answer = await client.send(request, stream=True)
                try:
                    await _drain(answer)
                finally:
                    await answer.aclose()
                return answer.status_code

    async def _checked(self, host: str, port: int, *, plain: bool) -> Address:
        found = [address(text) for text in await self._resolve(host, port)]
        if not found:
            raise OSError(f"{host} has no address")
        for one in found:
            # INVARIANT: nothing is sent into a network by way of a name or a form of an address
            # (test_nothing_is_sent_to_an_address_that_is_not_public).
            if not may_connect(one, self._allowed):
                raise Forbidden(f"{host} is at {one}, which is not public; name its network in approvals.webhook_allow")
            if plain and not any(one.version == net.version and one in net for net in self._allowed):
                raise Forbidden(f"{host} is reached by http, which is for networks in approvals.webhook_allow alone")
        return found[0]


async def _drain(answer: httpx.Response) -> None:
    seen = 0
    async for piece in answer.aiter_raw():
        seen += len(piece)
        if seen > MAX_ANSWER:
            return
