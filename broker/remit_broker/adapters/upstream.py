"""Users' own logins at MCP servers that have OAuth: the MCP authorization flow, this broker being the client.

What a server says of its authorization server is hostile until checked: it is fetched by the one way out for what others name, and
leads to https alone. A login's tokens lie with the secrets of users, sealed; they are refreshed here, and nobody else sees them.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from base64 import b64encode
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import httpx
import msgspec

from remit_broker.adapters.login_store import LoginStore
from remit_broker.adapters.outbound import Answer, Forbidden, Outbound
from remit_broker.adapters.private_files import read_private
from remit_broker.adapters.secret_store import SecretStore
from remit_broker.core.backends import BackendConfig, Connecting, Secret, Upstream, is_secret
from remit_broker.core.issuers import is_loopback, secure
from remit_broker.core.login import digest_of, same
from remit_broker.core.times import rfc3339
from remit_broker.ports import Clock
from remit_schemas.base64url import encode
from remit_schemas.canonical import loads
from remit_schemas.errors import Code, Refusal, refusal

EARLY: Final = 30
"""Seconds before its end from which an access token is refreshed."""
MINUTES: Final = 10
CALLBACK: Final = "/oauth/connected"
JSON: Final = {"Accept": "application/json"}
TROUBLE: Final = (Forbidden, OSError, TimeoutError, httpx.HTTPError, ValueError, Refusal)


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What a login at a server gave. ``exp`` is Unix seconds."""

    access: str
    exp: int
    refresh: str
    at: Upstream


class Connections:
    """``base`` is the URL under which browsers reach this broker, ``folder`` that of the configuration."""

    def __init__(
        self, base: str, secrets_: SecretStore, store: LoginStore, outbound: Outbound, clock: Clock, folder: Path
    ) -> None:  # fmt: skip
        self._base, self._secrets, self._store, self._outbound = base, secrets_, store, outbound
        self._clock, self._folder = clock, folder
        self._locks: OrderedDict[tuple[str, str, str], asyncio.Lock] = OrderedDict()

    # Connecting

    async def begin(self, tenant: str, user: str, server: str, table: BackendConfig) -> str:
        """Where the user begins, in a browser. Refuses TARGET_UNAVAILABLE for a server that cannot be logged in at."""
        about = await self._discovered(server, table)
        id_ = secrets.token_urlsafe(32)
        waiting = Connecting(
            tenant=tenant, user=user, server=server, at=about, verifier=secrets.token_urlsafe(48), scope=table.scope,
            exp=int(self._clock.now()) + MINUTES * 60,
        )  # fmt: skip
        await self._store.put("connect", digest_of(id_), waiting)
        return f"{self._base}/oauth/connect?id={id_}"

    async def shown(self, id_: str) -> Connecting | None:
        """Whose login at which server ``id_`` begins."""
        found = await self._store.get("connect", digest_of(id_), Connecting)
        return found[0] if found is not None and found[0].exp > self._clock.now() and not found[0].browser else None

    async def leave(self, id_: str, browser: str) -> str | None:
        """Where the browser goes to log in, from now on bound to what that browser keeps; None where it is too late."""
        waiting = await self._store.take("connect", digest_of(id_), Connecting)
        if waiting is None or waiting.browser or waiting.exp <= self._clock.now():
            return None
        state = secrets.token_urlsafe(32)
        await self._store.put("connect", digest_of(state), msgspec.structs.replace(waiting, browser=digest_of(browser)))
        challenge = encode(hashlib.sha256(waiting.verifier.encode()).digest())
        query = {
            "response_type": "code", "client_id": waiting.at.client_id, "redirect_uri": self._base + CALLBACK, "state": state,
            "code_challenge": challenge, "code_challenge_method": "S256", "resource": waiting.at.resource, "scope": waiting.scope,
        }  # fmt: skip
        at = waiting.at.authorize
        return f"{at}{'&' if '?' in at else '?'}{urlencode({name: value for name, value in query.items() if value})}"

    async def arrive(self, state: str, code: str, iss: str, browser: str) -> Connecting | None:
        """Back from the server's login: keep what it gives. None where that was not begun in this browser. Refuses."""
        waiting = await self._store.take("connect", digest_of(state), Connecting)
        # INVARIANT: nobody's account at a server becomes somebody else's here
        # (test_a_connection_that_somebody_else_began_ends_nowhere).
        if (
            waiting is None
            or waiting.exp <= self._clock.now()
            or not waiting.browser
            or not same(browser, waiting.browser)
        ):
            return None
        if iss and iss != waiting.at.issuer:
            return None
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": self._base + CALLBACK,
                "code_verifier": waiting.verifier, "resource": waiting.at.resource}  # fmt: skip
        tokens = await self._tokens(waiting.server, waiting.at, form, "")
        if tokens is None:
            raise _reconnect(waiting.server, waiting.user, "its authorization server refuses the login's code")
        await self._keep(waiting.tenant, waiting.user, waiting.server, tokens)
        return waiting

    # Using

    async def access(self, tenant: str, user: str, server: str) -> str:
        """The user's access token. Refuses TARGET_UNAVAILABLE by ``credentials.reconnect``."""
        lock = self._locks.setdefault((tenant, user, server), asyncio.Lock())
        self._locks.move_to_end((tenant, user, server))
        if len(self._locks) > 4096 and not next(iter(self._locks.values())).locked():
            self._locks.popitem(last=False)
        # One at a time: a refresh token may be of use once.
        async with lock:
            tokens = await self._kept(tenant, user, server)
            if tokens.exp - EARLY > self._clock.now():
                return tokens.access
            if not tokens.refresh:
                raise _reconnect(server, user, "its login has expired")
            form = {"grant_type": "refresh_token", "refresh_token": tokens.refresh, "resource": tokens.at.resource}
            fresh = await self._tokens(server, tokens.at, form, tokens.refresh)
            if fresh is None:
                # Another broker may have refreshed it in the same moment.
                again = await self._kept(tenant, user, server)
                if again.refresh != tokens.refresh:
                    return again.access
                raise _reconnect(server, user, "its login has ended")
            await self._keep(tenant, user, server, fresh)
            return fresh.access

    async def _kept(self, tenant: str, user: str, server: str) -> Tokens:
        found = await self._secrets.get(tenant, server, user)
        try:
            return msgspec.json.decode(found.value.encode() if found is not None else b"", type=Tokens)
        except (msgspec.DecodeError, ValueError):
            raise _reconnect(server, user, "nobody has logged in there for them") from None

    async def _keep(self, tenant: str, user: str, server: str, tokens: Tokens) -> None:
        now = rfc3339(self._clock.now())
        value = msgspec.json.encode(tokens).decode()
        await self._secrets.put(tenant, Secret(server=server, user=user, value=value, at=now, by="connected"))

    async def _tokens(self, server: str, at: Upstream, form: dict[str, str], refresh: str) -> Tokens | None:
        """What the token endpoint gives; None where it refuses. Refuses TARGET_UNAVAILABLE where it cannot be asked."""
        headers = {**JSON, "Content-Type": "application/x-www-form-urlencoded"}
        if at.secret_file:
            secret = read_private(self._folder / at.secret_file).decode().strip()
            pair = f"{quote(at.client_id, safe='')}:{quote(secret, safe='')}"
            headers["Authorization"] = "Basic " + b64encode(pair.encode()).decode()
        else:
            form = {**form, "client_id": at.client_id}
        try:
            answer = await self._outbound.send("POST", at.token, headers, urlencode(form).encode())
            if 400 <= answer.status < 500 and answer.status != 429:
                return None
            found = _object(answer)
        except TROUBLE as error:
            raise _away(server, f"its authorization server cannot be asked ({type(error).__name__})") from None
        access, lives = found.get("access_token"), found.get("expires_in", 3600)
        again = found.get("refresh_token", refresh)
        bearer = str(found.get("token_type", "")).lower() == "bearer"
        if (
            not isinstance(access, str)
            or not is_secret(access)
            or not bearer
            or type(lives) is not int
            or not isinstance(again, str)
        ):
            raise _away(server, "its authorization server gave no bearer token")
        return Tokens(access=access, exp=int(self._clock.now()) + min(max(lives, 0), 86_400), refresh=again, at=at)

    # Discovery

    async def _discovered(self, server: str, table: BackendConfig) -> Upstream:
        try:
            about = await self._resource(table.url)
            issuer = next(iter(about.get("authorization_servers") or ()), None)
            _leads(issuer, table.url)
            found = await self._authority(str(issuer))
            for name in ("authorization_endpoint", "token_endpoint"):
                _leads(found.get(name), table.url)
            # MCP authorization (2025-11-25): without S256 the flow is not begun.
            if "S256" not in (found.get("code_challenge_methods_supported") or ()):
                raise ValueError("it does not say that it knows PKCE with S256")
            client = table.client_id or await self._registered(found, table.url)
        except TROUBLE as error:
            why = str(error) if isinstance(error, Forbidden | ValueError) else type(error).__name__
            raise _away(server, f"how to log in there cannot be found out: {why}"[:200]) from None
        return Upstream(
            resource=table.url, issuer=str(issuer), authorize=str(found["authorization_endpoint"]),
            token=str(found["token_endpoint"]), client_id=client, secret_file=table.secret_file,
        )  # fmt: skip

    async def _resource(self, url: str) -> dict[str, Any]:
        parts = urlsplit(url)
        root = f"{parts.scheme}://{parts.netloc}/.well-known/oauth-protected-resource"
        for at in dict.fromkeys((root + parts.path.rstrip("/"), root)):
            answer = await self._outbound.send("GET", at, JSON)
            if answer.status == 200:
                about = _object(answer)
                # INVARIANT: the document is of this very server (RFC 9728 §3.3): a token for another one is asked for nobody
                # (test_a_server_that_claims_to_be_another_is_not_logged_in_at).
                if about.get("resource") not in (url, f"{parts.scheme}://{parts.netloc}"):
                    raise ValueError("its metadata is of another resource")
                return about
        raise ValueError("it has no metadata of its protection")

    async def _authority(self, issuer: str) -> dict[str, Any]:
        parts = urlsplit(issuer)
        origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
        places = (
            f"{origin}/.well-known/oauth-authorization-server{path}", f"{origin}/.well-known/openid-configuration{path}",
            f"{origin}{path}/.well-known/openid-configuration",
        )  # fmt: skip
        for at in dict.fromkeys(places):
            answer = await self._outbound.send("GET", at, JSON)
            if answer.status == 200:
                found = _object(answer)
                if str(found.get("issuer", "")).rstrip("/") != issuer.rstrip("/"):
                    raise ValueError("the metadata of its authorization server is of another one")
                return found
        raise ValueError("its authorization server has no metadata")

    async def _registered(self, found: dict[str, Any], url: str) -> str:
        at = found.get("registration_endpoint")
        _leads(at, url)
        body = msgspec.json.encode(
            {
                "client_name": "Remit", "redirect_uris": [self._base + CALLBACK], "token_endpoint_auth_method": "none",
                "grant_types": ["authorization_code", "refresh_token"], "response_types": ["code"],
            }
        )  # fmt: skip
        answer = await self._outbound.send("POST", str(at), {**JSON, "Content-Type": "application/json"}, body)
        client = _object(answer).get("client_id") if answer.status in (200, 201) else None
        if not isinstance(client, str) or not 0 < len(client) <= 512 or not client.isprintable():
            raise ValueError("it does not let this broker register; name a client_id")
        return client


def _object(answer: Answer) -> dict[str, Any]:
    found = loads(answer.body, max_bytes=64 * 1024)
    if not isinstance(found, dict):
        raise ValueError("an answer is no JSON object")
    return found


def _leads(url: Any, server: str) -> None:
    """INVARIANT: a server leads to https alone, and not from elsewhere to this machine
    (test_hostile_metadata_of_a_server_leads_nowhere). Raises ValueError.
    """
    good = (
        isinstance(url, str) and url.isascii() and url.isprintable() and len(url) <= 2048
        and not any(bad in url for bad in " \"'<>`\\{}|^") and "@" not in urlsplit(url).netloc and secure(url.partition("?")[0])
    )  # fmt: skip
    if not good or (is_loopback(url) and not is_loopback(server)):
        raise ValueError("an address in its metadata is no https URL")


def _reconnect(server: str, user: str, why: str) -> Refusal:
    return refusal(
        Code.TARGET_UNAVAILABLE, f"{server} cannot be called for {user}: {why}", rule="credentials.reconnect",
        ask=f"reconnect needed: remit secrets connect {server} --user {user}, then call again",
    )  # fmt: skip


def _away(server: str, why: str) -> Refusal:
    return refusal(
        Code.TARGET_UNAVAILABLE,
        f"{server}: {why}",
        rule="credentials.missing",
        ask="try again later, or tell an operator",
    )
