"""Where an issuer's keys come from: its discovery document, then its key set; fetched rarely, and used a bounded time in an outage.

A set replaces the one before it whole, so a key that the issuer took back is not accepted after the next fetch.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.request import getproxies

import httpx

from remit_broker.adapters.jwks import MAX_JWKS, BadKeys, IssuerKeys
from remit_broker.adapters.outbound import tls
from remit_broker.core.addresses import address, is_near
from remit_broker.core.issuers import IssuerConfig, is_loopback, secure
from remit_schemas.canonical import loads
from remit_schemas.errors import Code, Refusal, refusal

DISCOVERY: Final = "/.well-known/openid-configuration"
SECONDS: Final = 5.0
"""Longest wait for one document."""
PAUSE: Final = 15.0
"""Seconds until an issuer that did not answer is asked again."""

log = logging.getLogger("remit.identity")


class Failed(Exception):  # noqa: N818 - an answer
    """Why a fetch brought nothing."""


class IssuerSource:
    """The keys of one issuer. ``clock`` is monotonic seconds; ``transport`` is replaced in tests of time alone."""

    def __init__(
        self, issuer: IssuerConfig, clock: Callable[[], float], transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.issuer, self._clock, self._transport = issuer, clock, transport
        self._keys: IssuerKeys | None = None
        self._fetched = 0.0
        self._tried = float("-inf")
        self._asked_for = float("-inf")
        self._why = ""
        self._lock = asyncio.Lock()

    @property
    def trouble(self) -> str | None:
        """Why the newest fetch failed; None where it did not."""
        return self._why or None

    async def keys_for(self, kid: str | None, alg: str) -> IssuerKeys:
        """Keys that may be used now, fetched again where ``kid`` is not among them.

        Refuses TARGET_UNAVAILABLE where the issuer cannot be asked and what is known is too old or does not suffice,
        UNAUTHENTICATED for an unknown key, without asking where the keys were fetched a moment ago.
        """
        keys = await self._current()
        if keys.knows(kid, alg):
            return keys
        # One at a time: whoever comes while the keys are fetched waits for them.
        async with self._lock:
            keys = self._usable()
            if keys.knows(kid, alg):
                return keys
            # INVARIANT: tokens with invented keys make nobody fetch (test_a_flood_of_unknown_keys_is_one_fetch).
            wait = self.issuer.refetch - (self._clock() - max(self._asked_for, self._fetched))
            if wait > 0:
                raise self._no_key(wait)
            self._asked_for = self._clock()
            if not await self._fetch():
                raise self._unavailable()
            keys = self._usable()
            if not keys.knows(kid, alg):
                raise self._no_key(self.issuer.refetch)
            return keys

    def _no_key(self, wait: float) -> Refusal:
        return refusal(
            Code.UNAUTHENTICATED, f"the user's token is refused: {self.issuer.name} has no such key", rule="identity.key",
            ask=f"if the issuer has just changed its keys, try again in {wait:.0f} s", retry_after=round(wait, 3),
        )  # fmt: skip

    async def look(self) -> int:
        """Fetch now; how many keys there are. Refuses TARGET_UNAVAILABLE."""
        async with self._lock:
            if not await self._fetch():
                raise self._unavailable()
        return len(self._usable())

    async def _current(self) -> IssuerKeys:
        if self._due():
            async with self._lock:
                if self._due():  # nobody else did it meanwhile
                    await self._fetch()
        return self._usable()

    def _due(self) -> bool:
        now = self._clock()
        stale = self._keys is None or now - self._fetched >= self.issuer.refresh
        return stale and now - self._tried >= (PAUSE if self._why else 0.0)

    def _usable(self) -> IssuerKeys:
        # INVARIANT: keys that cannot be confirmed are used for a bounded time
        # (test_cached_keys_are_used_in_an_outage_and_only_so_long).
        age = self._clock() - self._fetched
        if self._keys is None or (self._why and age > self.issuer.refresh + self.issuer.outage):
            raise self._unavailable()
        return self._keys

    def _unavailable(self) -> Refusal:
        return refusal(
            Code.TARGET_UNAVAILABLE, f"the issuer {self.issuer.name} cannot be asked for its keys: {self._why or 'not yet'}",
            rule="identity.unavailable", ask="try again when it answers", retry_after=PAUSE,
        )  # fmt: skip

    async def _fetch(self) -> bool:
        self._tried = self._clock()
        try:
            async with asyncio.timeout(2 * SECONDS):
                keys = await self._download()
        except (Failed, BadKeys) as failed:
            why = str(failed)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError, ssl.SSLError) as error:
            why = f"{type(error).__name__} {error}".strip()[:200]
        else:
            if self._why:
                log.warning("issuer %s answers again", self.issuer.name)
            self._keys, self._fetched, self._why = keys, self._clock(), ""
            return True
        if why != self._why:
            log.warning("issuer %s: %s", self.issuer.name, why)
        self._why = why
        return False

    async def _download(self) -> IssuerKeys:
        # A proxy of the environment is for the way out; this very machine is asked directly.
        direct = is_loopback(self.issuer.issuer)
        async with httpx.AsyncClient(
            timeout=SECONDS,
            follow_redirects=False,
            trust_env=not direct,
            verify=trust(self.issuer),
            transport=self._transport,
        ) as client:
            url = self.issuer.jwks or await self._discover(client)
            return IssuerKeys.parse(await document(client, url, self.issuer))

    async def _discover(self, client: httpx.AsyncClient) -> str:
        data = await document(client, self.issuer.issuer.rstrip("/") + DISCOVERY, self.issuer)
        try:
            about = loads(data, max_bytes=MAX_JWKS)
        except Refusal as no:
            raise Failed(f"its discovery document is refused: {no.body.message}") from None
        if not isinstance(about, dict):
            raise Failed("its discovery document is no JSON object")
        # INVARIANT: the document is this very issuer's (OIDC Discovery §4.3; test_a_discovery_document_of_another_issuer_is_refused).
        if about.get("issuer") != self.issuer.issuer:
            raise Failed("its discovery document says that it is of another issuer")
        url = about.get("jwks_uri")
        # INVARIANT: nobody is sent from an issuer elsewhere to plain HTTP, nor by its name to this machine
        # (test_a_discovery_document_sends_nobody_to_plain_http); a name that leads here is seen when it is connected to.
        if (
            not isinstance(url, str)
            or not secure(url.partition("?")[0])
            or (is_loopback(url) and not is_loopback(self.issuer.issuer))
        ):
            raise Failed("jwks_uri of its discovery document is no https URL")
        return url


def trust(issuer: IssuerConfig) -> ssl.SSLContext:
    """Which certificates count for an issuer."""
    return _trusted(issuer.ca) if issuer.ca else tls()


@functools.lru_cache(maxsize=16)
def _trusted(file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=file)


async def document(client: httpx.AsyncClient, url: str, issuer: IssuerConfig) -> bytes:
    """A JSON document, capped while it is read, never unpacked. Redirections are not followed: an issuer is where it says it is.

    Raises :class:`Failed`.
    """
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    async with client.stream("GET", url, headers=headers, extensions={"trace": elsewhere(issuer)}) as response:
        if response.is_redirect:
            raise Failed("it answers with a redirection, which is not followed")
        if response.status_code != 200:
            raise Failed(f"it answers with status {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Failed("its answer is packed")
        data = bytearray()
        async for chunk in response.aiter_bytes():  # as it was sent: it is not packed
            data += chunk
            if len(data) > MAX_JWKS:
                raise Failed(f"it answers with more than {MAX_JWKS} bytes")
        return bytes(data)


def elsewhere(issuer: IssuerConfig) -> Callable[[str, Any], Awaitable[None]]:
    """Looks at each connection before anything is sent on it: an issuer elsewhere leads to no service of this very machine, nor to a
    metadata service of its cloud, whatever its name resolves to. A proxy of the environment is none of its business.

    INVARIANT: an issuer elsewhere sends nobody to this machine (test_a_name_of_an_issuer_that_leads_to_this_machine_is_not_followed).
    """
    here = is_loopback(issuer.issuer) or bool(getproxies())

    async def look(event: str, info: Any) -> None:
        if here or event != "connection.connect_tcp.complete":
            return
        to = info["return_value"].get_extra_info("server_addr")
        if isinstance(to, tuple) and is_near(address(str(to[0]))):
            raise Failed("its name leads to this machine or to the metadata service of a cloud")

    return look
