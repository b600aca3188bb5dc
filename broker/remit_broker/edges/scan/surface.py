"""How an HTTP server is guarded: TLS, redirects, tokens, metadata of the protected resource, and what a web page could do with it.

The server itself is asked, and for metadata the authorization servers that it names, as far as they are public (``Foreign``). Where it
leads to another place (a redirect, metadata of the resource elsewhere), that is told and not followed: the URL was the operator's,
what the server names is not.
"""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import httpx

from remit_broker.core.scan import authorization
from remit_broker.core.scan.finding import Finding, Severity, quoted
from remit_broker.edges.scan.http import ACCEPT, body, initialize
from remit_broker.edges.scan.inbox import Broken

_STRANGE: Final = "https://remit-scan.invalid"
_METADATA: Final = re.compile(r'resource_metadata\s*=\s*"?([^",\s]+)')
_SMALL: Final = 64 * 1024
_SERVERS: Final = 5
"""Authorization servers that are looked at."""
_SOON: Final = 14 * 86400
"""Seconds before the end of a certificate in which it should have been replaced."""


Foreign = Callable[[str], Awaitable[bytes]]
"""A document at a URL that the server named: from a public address, the one that was checked, small, in time, without a token.
Raises for all else."""


class Surface:
    """Looks at one URL; what it finds is in :attr:`found`. Without ``foreign`` no other server is asked for anything."""

    def __init__(self, client: httpx.AsyncClient, url: str, token: str | None, foreign: Foreign | None = None) -> None:
        self._client, self._token, self._foreign = client, token, foreign
        self.url = url
        self.found: list[Finding] = []
        self.open = False
        """Whether it answers without a token."""

    @property
    def _near(self) -> bool:
        return is_loopback(urlsplit(self.url).hostname or "")

    def _note(self, rule: str, severity: Severity, message: str, evidence: object = "", ask: str = "") -> None:
        self.found.append(
            Finding(
                rule=rule,
                severity=severity,
                where=quoted(self.url),
                message=message,
                evidence=quoted(evidence),
                ask=ask,
            )
        )

    async def look(self) -> None:
        """Everything that can be seen without speaking the protocol further than its first request. Raises :class:`Broken`."""
        if urlsplit(self.url).scheme == "http":
            self._note(
                "http.plain", "info" if self._near else "high", "is reached without TLS",
                ask="give it a certificate" if not self._near else "nothing to do as long as it is on this machine alone",
            )  # fmt: skip
        answer = await self._knock()
        for _ in range(2):
            if not answer.is_redirect or not self._follows(answer):
                break
            answer = await self._knock()
        self._certificate(answer)
        if answer.status_code in (401, 403):
            await self._challenge(answer)
        elif answer.is_success:
            self.open = True
            self._note(
                "auth.none", "low" if self._near else "high", "answers whoever asks, without a token",
                ask="have it ask for a token, or let only the broker reach it: it cannot tell who calls",
            )  # fmt: skip
        else:
            self._note(
                "http.status", "medium", f"a handshake without a token is answered with HTTP {answer.status_code}"
            )
        if self._token:
            await self._wrong_token()
        await self._strangers()

    async def _knock(self, headers: dict[str, str] | None = None) -> httpx.Response:
        try:
            request = self._client.build_request(
                "POST", self.url, content=initialize(),
                headers={"content-type": "application/json", "accept": ACCEPT, **(headers or {})},
            )  # fmt: skip
            answer = await self._client.send(request, stream=True)
            await answer.aclose()
        except httpx.ConnectError as error:
            if isinstance(cause := _cause(error), ssl.SSLError):
                self._note(
                    "http.tls",
                    "critical",
                    "its certificate or its TLS is not to be trusted",
                    cause.reason or cause,
                    "mend its TLS",
                )
                raise Broken("no connection is made to a server whose certificate is not to be trusted") from None
            raise Broken(f"it cannot be reached: {str(error) or type(error).__name__}") from None
        except httpx.HTTPError as error:
            raise Broken(f"it does not answer: {str(error) or type(error).__name__}") from None
        return answer

    def _follows(self, answer: httpx.Response) -> bool:
        """Whether a redirect stays at this very server; then that is the URL."""
        to = urljoin(self.url, answer.headers.get("location", ""))
        same = _origin(to) == _origin(self.url)
        worse = urlsplit(self.url).scheme == "https" and urlsplit(to).scheme == "http"
        self._note(
            "http.redirect", "high" if worse else "low" if same else "medium",
            "redirects to itself" if same else "redirects to somewhere else, which was not followed", to,
            "use the URL it leads to" if same else "use the URL it leads to, if it is the one you mean: a token must not go along",
        )  # fmt: skip
        if same:
            self.url = to
        return same

    def _certificate(self, answer: httpx.Response) -> None:
        stream = answer.extensions.get("network_stream")
        tls = stream.get_extra_info("ssl_object") if stream is not None else None
        if tls is None:
            return
        left = (
            ssl.cert_time_to_seconds((tls.getpeercert() or {}).get("notAfter", "Jan  1 00:00:00 2100 GMT"))
            - time.time()
        )
        if left < _SOON:
            self._note(
                "http.certificate",
                "medium",
                f"its certificate ends in {max(0, round(left / 86400))} days",
                ask="renew it",
            )

    async def _challenge(self, answer: httpx.Response) -> None:
        said = answer.headers.get("www-authenticate", "")
        if answer.status_code == 403:
            self._note(
                "auth.status",
                "low",
                "answers 403 to who has no token",
                ask="the protocol says 401 with WWW-Authenticate",
            )
        elif not said.lower().startswith("bearer"):
            self._note(
                "auth.challenge", "medium", "asks for a token without saying where to get one", said,
                "answer 401 with WWW-Authenticate: Bearer resource_metadata=… (RFC 9728)",
            )  # fmt: skip
        named = _METADATA.search(said)
        await self._metadata(named[1] if named else "")

    async def _metadata(self, named: str) -> None:
        parts = urlsplit(self.url)
        base = f"{parts.scheme}://{parts.netloc}/.well-known/oauth-protected-resource"
        places = [urljoin(self.url, named)] if named else [base + parts.path.rstrip("/"), base]
        if named and _origin(places[0]) != _origin(self.url):
            self._note(
                "auth.metadata", "medium", "its resource metadata is at another server, which was not asked", places[0],
                "serve it under /.well-known/oauth-protected-resource at the server itself",
            )  # fmt: skip
            return
        for place in places:
            if (told := await self._document(place)) is not None:
                self.found.extend(_metadata(quoted(place), told, self.url))
                await self._authorization(told.get("authorization_servers"))
                return
        self._note(
            "auth.metadata", "medium", "has no metadata of a protected resource (RFC 9728)", places[0],
            "clients cannot log their users in without it",
        )  # fmt: skip

    async def _authorization(self, servers: Any) -> None:
        """The authorization servers, whose metadata is looked at."""
        for issuer in [one for one in servers if isinstance(one, str)][:_SERVERS] if isinstance(servers, list) else ():
            if _origin(issuer) != _origin(self.url):
                if self._foreign is not None:
                    await self._elsewhere(issuer, self._foreign)
                continue
            for place in authorization.places_of(issuer):
                if (told := await self._document(place)) is not None:
                    self.found.extend(authorization.judged(quoted(place), told, issuer, self._near))
                    break
            else:
                self._note(
                    "auth.server", "high", "its authorization server has no metadata", issuer,
                    "serve /.well-known/oauth-authorization-server (RFC 8414)",
                )  # fmt: skip

    async def _elsewhere(self, issuer: str, get: Foreign) -> None:
        """The metadata of an authorization server at another place.

        INVARIANT: what a server names is asked for from public addresses alone, and gets no token
        (test_metadata_elsewhere_is_asked_for_from_public_addresses_alone).
        """
        why = ""
        for place in authorization.places_of(issuer):
            try:
                told = json.loads(await get(place))
            except (ValueError, RecursionError):
                why = "its answer is no JSON"
                continue
            except Exception as error:  # a network's, or the refusal to go there
                why = str(error) or type(error).__name__
                continue
            if isinstance(told, dict):
                self.found.extend(authorization.judged(quoted(place), told, issuer, near=False))
                return
        self._note(
            "auth.server", "medium", f"the metadata of its authorization server elsewhere was not had: {quoted(why)[:200]}", issuer,
            "look at it by hand; a network of yours is asked for with --allow NETWORK",
        )  # fmt: skip

    async def _document(self, url: str) -> dict[str, Any] | None:
        try:
            async with self._client.stream("GET", url, headers={"accept": "application/json"}) as answer:
                if not answer.is_success:
                    return None
                found = json.loads(await body(answer, _SMALL))
        except (httpx.HTTPError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    async def _wrong_token(self) -> None:
        answer = await self._knock({"authorization": "Bearer remit-scan.not-a-token.at-all"})
        if answer.is_success and not self.open:
            self._note(
                "auth.any_token",
                "critical",
                "takes any token",
                ask="have it verify tokens: signature, audience, expiry",
            )

    async def _strangers(self) -> None:
        """A web page that somebody looks at can send requests from their machine, with its own Origin, or under its own Host."""
        headers = {"authorization": f"Bearer {self._token}"} if self._token else {}
        if not (self.open or self._token):
            return
        severity: Severity = "high" if self._near else "medium"
        answer = await self._knock({**headers, "origin": _STRANGE})
        if answer.is_success:
            self._note(
                "http.origin", severity, "answers requests of foreign web pages (Origin)", _STRANGE,
                "refuse an Origin that is not known: 2025-11-25, Transports, Security",
            )  # fmt: skip
        if "access-control-allow-origin" in answer.headers and answer.headers["access-control-allow-origin"] in (
            "*",
            _STRANGE,
        ):
            self._note(
                "http.cors", severity, "lets foreign web pages read its answers (Access-Control-Allow-Origin)",
                answer.headers["access-control-allow-origin"], "name the pages that may",
            )  # fmt: skip
        if self._near and (await self._knock({**headers, "host": "remit-scan.invalid"})).is_success:
            self._note(
                "http.host", "high", "answers by any name (Host): DNS rebinding reaches it from a web page", "remit-scan.invalid",
                "refuse a Host that is not its own",
            )  # fmt: skip


def _metadata(where: str, told: dict[str, Any], url: str) -> Iterator[Finding]:
    """What the metadata of a protected resource lacks (RFC 9728 section 2, and the MCP authorization chapter)."""
    resource = told.get("resource")
    if not isinstance(resource, str) or not _covers(resource, url):
        yield Finding(
            rule="auth.resource", severity="high", where=where, message="its metadata is about another resource",
            evidence=quoted(resource), ask="a token for the one must not be good for the other (RFC 9728 section 3.3)",
        )  # fmt: skip
    servers = told.get("authorization_servers")
    if not isinstance(servers, list) or not servers:
        yield Finding(
            rule="auth.servers", severity="medium", where=where, message="its metadata names no authorization server",
            ask="name one in authorization_servers",
        )  # fmt: skip
        return
    for one in servers[:20]:
        parts = urlsplit(str(one))
        if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            yield Finding(
                rule="auth.servers", severity="high", where=where, message="its authorization server has no TLS",
                evidence=quoted(one), ask="name one with https",
            )  # fmt: skip
    methods = told.get("bearer_methods_supported")
    if isinstance(methods, list) and "query" in methods:
        yield Finding(
            rule="auth.query", severity="medium", where=where, message="takes tokens in URLs, where they are logged",
            ask="take them in the header Authorization alone",
        )  # fmt: skip


def _covers(resource: str, url: str) -> bool:
    one, other = urlsplit(resource), urlsplit(url)
    return _origin(resource) == _origin(url) and f"{other.path}/".startswith(f"{one.path.rstrip('/')}/")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    return parts.scheme, parts.hostname, port or {"http": 80, "https": 443}.get(parts.scheme)


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine by its very spelling."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _cause(error: BaseException) -> BaseException | None:
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__ or found.__context__
    return found
