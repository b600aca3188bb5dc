"""Which programs people may log in with: those that register themselves (RFC 7591), and those that are a document on the web."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from remit_broker.core.login import LoginClient, registered
from remit_broker.core.oauth import CODE, REFRESH, OAuthError, invalid
from remit_broker.edges.http.oauth.forms import answer
from remit_broker.ports import Clock, RateLimit
from remit_schemas.canonical import loads
from remit_schemas.errors import Refusal

MAX_DOCUMENT: Final = 16 * 1024
REMEMBERED: Final = 300.0
"""Seconds for which the document of a client is used."""
KNOWN: Final = 256
"""Documents that are remembered at once."""


class Kept(Protocol):
    """Where registrations are kept."""

    async def put(self, kind: str, id_: str, value: Any) -> None:
        """Keep something new."""

    async def get(self, kind: str, id_: str, type_: type[Any]) -> tuple[Any, int] | None:
        """What is kept, and its revision."""


Fetch = Callable[[str], Awaitable[bytes]]
"""The JSON document at a URL, from a public address, capped. Raises where there is none."""


class Registration:
    """``redirects`` and ``documents`` are what the configuration allows beside this very machine."""

    def __init__(
        self, store: Kept, fetch: Fetch, clock: Clock, rates: RateLimit, *, opened: bool, redirects: tuple[str, ...],
        documents: tuple[str, ...],
    ) -> None:  # fmt: skip
        self._store, self._fetch, self._clock, self._rates = store, fetch, clock, rates
        self.opened, self._redirects, self._documents = opened, redirects, documents
        self.reads = bool(documents)
        """Whether any document is."""
        self._seen: dict[str, tuple[float, LoginClient]] = {}

    async def endpoint(self, request: Request) -> Response:
        """``POST /oauth/register``."""
        if not self.opened:
            raise invalid("access_denied", "clients do not register themselves here", "ask an operator: oauth.registration",
                          rule="oauth.registration", status=403)  # fmt: skip
        document = await self._document(request)
        id_ = "c_" + secrets.token_urlsafe(16)
        client = registered(document, id_, self._redirects, int(self._clock.now()))
        # INVARIANT: nobody fills the store by registering (test_registrations_are_limited).
        if wait := self._rates.admit("remit/register"):
            raise invalid("slow_down", "too many register", f"wait {wait:.1f} s", rule="admit.rate", status=429)
        await self._store.put("client", id_, client)
        return answer(
            {
                "client_id": id_,
                "client_id_issued_at": client.made,
                "client_name": client.name,
                "redirect_uris": list(client.redirects),
                "token_endpoint_auth_method": "none",
                "grant_types": [CODE, REFRESH],
                "response_types": ["code"],
            },
            201,
        )

    async def _document(self, request: Request) -> dict[str, Any]:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_DOCUMENT:
                raise invalid(
                    "invalid_client_metadata", "that is too large", f"at most {MAX_DOCUMENT} bytes", status=413
                )
        return _object(bytes(data))

    async def known(self, client_id: str) -> LoginClient:
        """A client by its id. Raises :class:`OAuthError`, refuses LEDGER_UNAVAILABLE."""
        if client_id.startswith("https://"):
            return await self._by_document(client_id)
        found = await self._store.get("client", client_id, LoginClient) if _drawn(client_id) else None
        if found is None:
            raise invalid(
                "invalid_client", "There is no such client", "Have the application register again", rule="oauth.client"
            )
        client: LoginClient = found[0]
        return client

    async def _by_document(self, url: str) -> LoginClient:
        # INVARIANT: only what the configuration names is fetched (test_a_client_document_is_fetched_from_where_it_may_be_alone).
        if not _plain(url) or not any(fnmatchcase(url, pattern) for pattern in self._documents):
            raise invalid("invalid_client", "That client is not known here", "An operator can name it in oauth.client_documents",
                          rule="oauth.client")  # fmt: skip
        now = self._clock.monotonic()
        at, client = self._seen.get(url, (float("-inf"), None))
        if client is not None and now - at < REMEMBERED:
            return client
        if wait := self._rates.admit("remit/register"):
            raise invalid(
                "slow_down", "Too many documents are asked for", f"Wait {wait:.1f} s", rule="admit.rate", status=429
            )
        try:
            document = _object(await self._fetch(url))
        except OAuthError:
            raise
        except Exception as error:
            raise invalid("invalid_client", f"The client's document cannot be had: {type(error).__name__}", "Try again later",
                          rule="oauth.client") from None  # fmt: skip
        # INVARIANT: a document is of the URL where it stands (test_a_client_document_is_fetched_from_where_it_may_be_alone).
        if document.get("client_id") != url:
            raise invalid(
                "invalid_client",
                "The client's document is of another client",
                "Its client_id must be its URL",
                rule="oauth.client",
            )
        parts = urlsplit(url)
        own = f"https://{parts.netloc}/*"
        client = registered(document, url, (*self._redirects, own), int(self._clock.now()))
        if len(self._seen) >= KNOWN:
            self._seen.clear()
        self._seen[url] = (now, client)
        return client


def _drawn(client_id: str) -> bool:
    return (
        client_id.startswith("c_")
        and len(client_id) == 24
        and client_id.replace("-", "a").replace("_", "a").isalnum()
        and client_id.isascii()
    )


def _plain(url: str) -> bool:
    parts = urlsplit(url)
    return (
        len(url) <= 512 and url.isascii() and url.isprintable() and parts.path not in ("", "/") and not parts.query
        and not parts.fragment and "@" not in parts.netloc and ".." not in parts.path.split("/") and "%" not in parts.path
    )  # fmt: skip


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = loads(data, max_bytes=MAX_DOCUMENT, max_depth=8)
    except Refusal:
        found = None
    if not isinstance(found, dict):
        raise invalid("invalid_client_metadata", "that is no JSON object", "send the client's metadata")
    return found
