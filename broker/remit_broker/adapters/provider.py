"""The organisation's OpenID provider, as its client sees it: where people log in, and what a code is exchanged for."""

from __future__ import annotations

import asyncio
import ssl
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import httpx

from remit_broker.adapters.identities import Issuers
from remit_broker.adapters.issuer_source import DISCOVERY, SECONDS, document, elsewhere, trust
from remit_broker.adapters.jwks import MAX_JWKS
from remit_broker.adapters.private_files import read_private
from remit_broker.core.issuers import IssuerConfig, LoginConfig, is_loopback, secure
from remit_broker.core.user_tokens import Identity
from remit_schemas.canonical import loads
from remit_schemas.errors import Code, Refusal, refusal

FRESH: Final = 300.0
"""Seconds for which a discovery document is used."""
MAX_ANSWER: Final = 64 * 1024


class Provider:
    """One issuer with a ``login`` table. ``folder`` is that of the configuration."""

    def __init__(
        self, issuer: IssuerConfig, login: LoginConfig, issuers: Issuers, folder: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.issuer, self.login, self._issuers, self._folder, self._clock = issuer, login, issuers, folder, clock
        self._about: dict[str, Any] = {}
        self._at = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def name(self) -> str:
        """What it is called in the configuration."""
        return self.issuer.name

    async def authorize(self, back: str, state: str, nonce: str, challenge: str) -> str:
        """Where a browser logs in. Refuses TARGET_UNAVAILABLE."""
        about = await self._discovered()
        query = {
            "response_type": "code", "client_id": self.login.client_id, "redirect_uri": back, "state": state, "nonce": nonce,
            "scope": " ".join(self.login.scopes), "code_challenge": challenge, "code_challenge_method": "S256",
        }  # fmt: skip
        at = str(about["authorization_endpoint"])
        return f"{at}{'&' if '?' in at else '?'}{urlencode(query)}"

    async def identity(self, code: str, back: str, verifier: str, nonce: str) -> Identity:
        """Who logged in. Refuses UNAUTHENTICATED, or TARGET_UNAVAILABLE."""
        about = await self._discovered()
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": back, "code_verifier": verifier}
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        form["client_id"] = self.login.client_id
        if self.login.secret_file:
            secret = read_private(self._folder / self.login.secret_file).decode().strip()
            if self.login.auth == "client_secret_basic":
                pair = f"{quote(self.login.client_id, safe='')}:{quote(secret, safe='')}"
                headers["Authorization"] = "Basic " + b64encode(pair.encode()).decode()
            else:
                form["client_secret"] = secret
        answer = await self._posted(str(about["token_endpoint"]), form, headers)
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise self._no("it gives no id_token for the code; the login scopes need openid")
        return await self._issuers.logged_in(self.issuer, token, self.login.client_id, nonce)

    def _client(self) -> httpx.AsyncClient:
        direct = is_loopback(self.issuer.issuer)
        return httpx.AsyncClient(
            timeout=SECONDS, follow_redirects=False, trust_env=not direct, verify=trust(self.issuer)
        )

    async def _posted(self, url: str, form: dict[str, str], headers: dict[str, str]) -> dict[str, Any]:
        try:
            async with (
                asyncio.timeout(2 * SECONDS),
                self._client() as client,
                client.stream(
                    "POST", url, data=form, headers=headers, extensions={"trace": elsewhere(self.issuer)}
                ) as response,
            ):
                data = bytearray()
                async for chunk in response.aiter_raw():
                    data += chunk
                    if len(data) > MAX_ANSWER:
                        raise self._no("its answer is too large")
                status = response.status_code
            answer = loads(bytes(data), max_bytes=MAX_ANSWER)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError, ssl.SSLError) as error:
            raise self._no(type(error).__name__) from None
        except Refusal as no:
            if no.body.rule.startswith("identity."):
                raise
            raise self._no("its answer is no JSON") from None
        if status != 200 or not isinstance(answer, dict):
            # Its own words may quote the code.
            raise refusal(
                Code.UNAUTHENTICATED, f"{self.name} refuses the login's code with status {status}", rule="identity.code",
                ask="log in again; an operator can check login.client_id, its secret and its redirect at the provider",
            )  # fmt: skip
        return answer

    async def _discovered(self) -> dict[str, Any]:
        async with self._lock:
            if self._clock() - self._at < FRESH:
                return self._about
            try:
                async with asyncio.timeout(2 * SECONDS), self._client() as client:
                    data = await document(client, self.issuer.issuer.rstrip("/") + DISCOVERY, self.issuer)
                about = loads(data, max_bytes=MAX_JWKS)
            except Exception as error:
                raise self._no(str(error) or type(error).__name__) from None
            if not isinstance(about, dict) or about.get("issuer") != self.issuer.issuer:
                raise self._no("its discovery document is of another issuer")
            for name in ("authorization_endpoint", "token_endpoint"):
                url = about.get(name)
                # INVARIANT: nobody is sent from an issuer elsewhere to this machine, to plain HTTP or to what is no URL of the web
                # (test_a_hostile_discovery_document_sends_nobody_anywhere).
                if (
                    not isinstance(url, str) or not url.isascii() or not url.isprintable() or not secure(url.partition("?")[0])
                    or any(bad in url for bad in " \"'<>`\\")
                    or (is_loopback(url) and not is_loopback(self.issuer.issuer))
                ):  # fmt: skip
                    raise self._no(f"{name} of its discovery document is no https URL")
            self._about, self._at = about, self._clock()
            return about

    def _no(self, why: str) -> Refusal:
        return refusal(
            Code.TARGET_UNAVAILABLE, f"the provider {self.name} cannot be used: {why}"[:300], rule="identity.unavailable",
            ask="try again when it answers", retry_after=15.0,
        )  # fmt: skip
