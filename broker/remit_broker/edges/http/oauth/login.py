"""``/oauth/authorize``, ``/oauth/callback`` and ``/oauth/consent``: a person logs in at the organisation's provider and says what a
client may do.

The way: a client sends a browser here with a challenge; the browser goes to the provider and comes back with the provider's code;
who that is, is proved by the ID token; the person sees who wants what and says yes or no; the client gets a code of ours, which is
worth something together with what the challenge was made of. What the browser keeps binds the steps to each other: a link that
somebody else began ends nowhere.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlencode

from starlette.requests import Request
from starlette.responses import Response

from remit_broker.core.login import (
    CODE,
    Asked,
    Away,
    Consenting,
    Login,
    LoginClient,
    digest_of,
    is_challenge,
    resource_of,
    same,
    same_redirect,
)
from remit_broker.core.oauth import OAuthError, invalid, scopes_of
from remit_broker.core.user_tokens import Identity
from remit_broker.edges.http.oauth import pages
from remit_broker.edges.http.oauth.forms import fields_of, form_of
from remit_broker.edges.http.oauth.registration import Registration
from remit_broker.ports import Clock
from remit_schemas.base64url import encode
from remit_schemas.errors import Refusal
from remit_schemas.scope import Scope

COOKIE: Final = "remit_login"
MINUTES: Final = 10
"""For a login at the provider, and then for an answer on the consent page."""
CODE_LIFE: Final = 60
"""Seconds within which a code is exchanged."""


class Provider(Protocol):
    """Where people log in."""

    @property
    def name(self) -> str:
        """What it is called."""

    async def authorize(self, back: str, state: str, nonce: str, challenge: str) -> str:
        """Where a browser logs in."""

    async def identity(self, code: str, back: str, verifier: str, nonce: str) -> Identity:
        """Who logged in."""


class Kept(Protocol):
    """Where logins are kept."""

    async def put(self, kind: str, id_: str, value: Any) -> None:
        """Keep something new."""

    async def get(self, kind: str, id_: str, type_: type[Any]) -> tuple[Any, int] | None:
        """What is kept, and its revision."""

    async def change(self, kind: str, id_: str, value: Any, revision: int) -> bool:
        """Replace what was read; False where it has changed."""

    async def take(self, kind: str, id_: str, type_: type[Any]) -> Any:
        """What is kept, which nobody else gets."""

    async def forget(self, kind: str, id_: str) -> None:
        """Keep it no longer."""


class Front:
    """The three pages. ``lives`` is how long a login lasts in seconds, ``welcome`` refuses whoever is revoked."""

    def __init__(
        self, base: str, provider: Provider, store: Kept, clients: Registration, clock: Clock, lives: int,
        welcome: Callable[[Identity], None],
    ) -> None:  # fmt: skip
        self._base, self._provider, self._store, self._clients = base, provider, store, clients
        self._clock, self._lives, self._welcome = clock, lives, welcome
        self._back = f"{base}/oauth/callback"

    async def authorize(self, request: Request) -> Response:
        """``GET /oauth/authorize`` (RFC 6749 §4.1.1)."""
        try:
            query = fields_of(request.url.query.encode("ascii", "replace"))
            client = await self._clients.known(query.get("client_id", ""))
            redirect = _redirect(client, query.get("redirect_uri", ""))
        except OAuthError as no:
            # INVARIANT: whoever cannot be sure where the browser would go sends it nowhere
            # (test_nobody_is_sent_to_a_redirection_that_is_not_the_clients).
            return pages.failed("This login cannot begin", no.body.message, no.body.ask)
        try:
            asked = self._asked(query, client, redirect)
        except OAuthError as no:
            return self._refused(redirect, query.get("state", ""), no.error, no.body.message)
        state, nonce, verifier, kept = (secrets.token_urlsafe(32) for _ in range(4))
        exp = int(self._clock.now()) + MINUTES * 60
        away = Away(
            asked=asked, issuer=self._provider.name, verifier=verifier, nonce=nonce, browser=digest_of(kept), exp=exp
        )
        try:
            to = await self._provider.authorize(self._back, state, nonce, _s256(verifier))
            await self._store.put("away", digest_of(state), away)
        except Refusal as no:
            return self._refused(redirect, asked.state, "temporarily_unavailable", no.body.message)
        response = pages.back(to)
        response.set_cookie(
            COOKIE, kept, max_age=2 * MINUTES * 60, path="/oauth", httponly=True, samesite="lax",
            secure=self._base.startswith("https://"),
        )  # fmt: skip
        return response

    def _asked(self, query: Mapping[str, str], client: LoginClient, redirect: str) -> Asked:
        if query.get("response_type") != "code":
            raise invalid(
                "unsupported_response_type", "only codes are given", "response_type=code", rule="oauth.response"
            )
        challenge = query.get("code_challenge", "")
        # INVARIANT: no code without a challenge, and none that is its own answer (test_a_login_without_pkce_does_not_begin).
        if not is_challenge(challenge, query.get("code_challenge_method", "")):
            raise invalid("invalid_request", "code_challenge by S256 is needed", "use PKCE", rule="oauth.pkce")
        if query.get("response_mode", "query") != "query" or "request" in query or "request_uri" in query:
            raise invalid(
                "invalid_request",
                "requests are plain here",
                "leave out response_mode and request",
                rule="oauth.request",
            )
        resource = resource_of(query.get("resource", ""), self._base)
        if resource is None:
            raise invalid(
                "invalid_target", "there is no such resource here", f"it is {self._base}/mcp", rule="oauth.resource"
            )
        most = "mcp/**" if resource == "/mcp" else f"mcp/{resource.removeprefix('/mcp/')}/*"
        words = " ".join(word for word in query.get("scope", "").split(" ") if word not in ("", *IGNORED))
        details = scopes_of(words or most, "")
        scope = Scope.of(details or ())
        if not scope <= Scope.of(scopes_of(most, "") or ()):
            raise invalid(
                "invalid_scope",
                f"a client of {resource} may ask for {most}",
                "ask for a part of it",
                rule="oauth.scope",
            )
        return Asked(
            client=client, redirect=redirect, challenge=challenge, resource=resource,
            scopes=tuple(detail.resource for detail in scope.details), state=query.get("state", "")[:1024],
        )  # fmt: skip

    async def callback(self, request: Request) -> Response:
        """``GET /oauth/callback``: back from the provider."""
        query = {name: values[0] for name, values in parse_qs(request.url.query, max_num_fields=32).items()}
        away = await self._store.take("away", digest_of(query.get("state", "")), Away)
        # INVARIANT: a login ends in the browser that began it (test_a_login_that_somebody_else_began_ends_nowhere).
        if away is None or away.exp < self._clock.now() or not same(request.cookies.get(COOKIE, ""), away.browser):
            return pages.failed("This login cannot go on", "It was not begun in this browser, has ended, or took too long",
                                "Begin again in your application")  # fmt: skip
        asked = away.asked
        if "code" not in query:
            return self._refused(asked.redirect, asked.state, "access_denied", "the provider did not log anybody in")
        try:
            identity = await self._provider.identity(query["code"], self._back, away.verifier, away.nonce)
            self._welcome(identity)
        except Refusal as no:
            return pages.failed("Nobody is logged in", no.body.message, no.body.ask, 403)
        id_ = secrets.token_urlsafe(32)
        exp = int(self._clock.now()) + MINUTES * 60
        at = Consenting(asked=asked, identity=identity, browser=away.browser, exp=exp)
        await self._store.put("consent", digest_of(id_), at)
        return pages.consent(id_, at, self._base + asked.resource)

    async def consent(self, request: Request) -> Response:
        """``POST /oauth/consent``: what the person said."""
        form = await form_of(request)
        at = await self._store.take("consent", digest_of(form.get("id", "")), Consenting)
        # INVARIANT: consent is given on the page that was shown, in the same browser, once (test_consent_cannot_be_given_for_somebody).
        if at is None or at.exp < self._clock.now() or not same(request.cookies.get(COOKIE, ""), at.browser):
            return pages.failed("That was not counted", "The page is too old, was used before, or is of another browser",
                                "Begin again in your application")  # fmt: skip
        asked = at.asked
        if form.get("decision") != "allow":
            return self._refused(asked.redirect, asked.state, "access_denied", "the user said no")
        id_, secret = secrets.token_urlsafe(16), secrets.token_urlsafe(32)
        now = int(self._clock.now())
        login = Login(
            asked=asked, identity=at.identity, made=now, exp=now + self._lives, code=digest_of(secret), code_exp=now + CODE_LIFE
        )  # fmt: skip
        await self._store.put("login", id_, login)
        return self._sent(asked.redirect, {"code": f"{CODE}{id_}.{secret}", "state": asked.state})

    def _refused(self, redirect: str, state: str, error: str, why: str) -> Response:
        said = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "'" for c in why)[:200]
        return self._sent(redirect, {"error": error, "error_description": said, "state": state})

    def _sent(self, redirect: str, query: dict[str, str]) -> Response:
        # iss says which server that was (RFC 9207): a client that deals with several is not mixed up.
        text = urlencode({name: value for name, value in {**query, "iss": self._base}.items() if value})
        return pages.back(f"{redirect}{'&' if '?' in redirect else '?'}{text}")


IGNORED: Final = ("openid", "profile", "email", "offline_access")
"""Scopes that clients ask every server for; here they mean nothing."""


def _redirect(client: LoginClient, asked: str) -> str:
    if not asked and len(client.redirects) == 1:
        return client.redirects[0]
    if not any(same_redirect(asked, one) for one in client.redirects):
        raise invalid(
            "invalid_request",
            "redirect_uri is not one of the client's",
            "Register the client with it",
            rule="oauth.redirect",
        )
    return asked


def _s256(verifier: str) -> str:
    return encode(hashlib.sha256(verifier.encode()).digest())
