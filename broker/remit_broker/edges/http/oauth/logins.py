"""What a login is worth: the code, the tokens that come of it, and who a client's user is when it calls."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Final

import msgspec
from starlette.requests import Request

from remit_broker.core.login import (
    ACCESS,
    CODE,
    KEPT,
    REFRESH,
    Login,
    covers,
    digest_of,
    parts_of,
    proves,
    resource_of,
    same,
)
from remit_broker.core.oauth import OAuthError, invalid
from remit_broker.core.user_tokens import Identity
from remit_broker.edges.http.oauth.clients import Client
from remit_broker.edges.http.oauth.forms import Form
from remit_broker.edges.http.oauth.login import Kept
from remit_broker.edges.http.operators import Caller, Operator, bearer
from remit_broker.ports import Clock
from remit_schemas.errors import Code, refusal

TRIES: Final = 8


class Logins:
    """Codes and tokens. ``access_ttl`` is in seconds, ``welcome`` refuses whoever is revoked."""

    def __init__(
        self, base: str, store: Kept, clock: Clock, access_ttl: int, welcome: Callable[[Identity], None]
    ) -> None:
        self._base, self._store, self._clock, self._ttl, self._welcome = base, store, clock, access_ttl, welcome

    async def by_code(self, request: Request, form: Form, client: Client | None) -> dict[str, Any]:
        """``grant_type=authorization_code`` (RFC 6749 §4.1.3, RFC 7636 §4.5)."""
        id_, secret = parts_of(form.get("code", ""), CODE) or ("", "")
        login, revision = await self._found(id_)
        asked = login.asked
        if not same(secret, login.code):
            raise _grant("the code is not one of ours, or not any more")
        # INVARIANT: a code that comes a second time ends all that came of it (test_a_code_that_comes_twice_ends_the_login).
        if login.used:
            await self._store.forget("login", id_)
            raise _grant("the code was used before: all that came of it has ended")
        good = form.get("client_id") == asked.client.id and form.get("redirect_uri", asked.redirect) == asked.redirect
        # INVARIANT: a code is worth nothing without what its challenge was made of (test_a_stolen_code_is_worth_nothing).
        if not good or not proves(form.get("code_verifier", ""), asked.challenge) or login.code_exp < self._clock.now():
            await self._store.forget("login", id_)
            raise _grant("the code is another client's, without its verifier, or too old")
        self._for(form, login)
        return await self._issue(id_, login, revision)

    async def by_refresh(self, request: Request, form: Form, client: Client | None) -> dict[str, Any]:
        """``grant_type=refresh_token``: the next pair of tokens."""
        id_, secret = parts_of(form.get("refresh_token", ""), REFRESH) or ("", "")
        login, revision = await self._found(id_)
        # INVARIANT: a refresh token that comes a second time ends the login: one of two that have it stole it
        # (test_a_refresh_token_that_comes_twice_ends_the_login).
        if not same(secret, login.refresh):
            await self._store.forget("login", id_)
            raise _grant("the refresh token was used before: the login has ended")
        if form.get("client_id") != login.asked.client.id:
            await self._store.forget("login", id_)
            raise _grant("the refresh token is another client's: the login has ended")
        self._for(form, login)
        if "scope" in form and set(form["scope"].split()) - {
            *login.asked.scopes,
            "openid",
            "profile",
            "email",
            "offline_access",
        }:
            raise invalid("invalid_scope", "that was not allowed", "leave out scope", rule="oauth.scope")
        return await self._issue(id_, login, revision)

    def _for(self, form: Form, login: Login) -> None:
        if "resource" in form and resource_of(form["resource"], self._base) != login.asked.resource:
            raise invalid(
                "invalid_target", "the login is for another resource", "log in for that one", rule="oauth.resource"
            )
        # INVARIANT: who is revoked gets no more tokens (test_a_user_who_is_revoked_gets_no_more_tokens).
        self._welcome(login.identity)

    async def _issue(self, id_: str, login: Login, revision: int) -> dict[str, Any]:
        access, refresh = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        now = int(self._clock.now())
        exp = min(now + self._ttl, login.exp)
        kept = tuple(one for one in login.access if one[1] > now)[-(KEPT - 1) :]
        changed = msgspec.structs.replace(
            login, used=True, refresh=digest_of(refresh), access=(*kept, (digest_of(access), exp))
        )
        # INVARIANT: of two that bring one code or refresh token at once, one gets tokens
        # (test_of_two_refreshes_at_once_one_gets_tokens).
        if not await self._store.change("login", id_, changed, revision):
            raise _grant("it is being used by another request")
        return {
            "access_token": f"{ACCESS}{id_}.{access}",
            "token_type": "Bearer",
            "expires_in": exp - now,
            "refresh_token": f"{REFRESH}{id_}.{refresh}",
            "scope": " ".join(login.asked.scopes),
        }

    async def _found(self, id_: str) -> tuple[Login, int]:
        found = await self._store.get("login", id_, Login) if id_ else None
        if found is None or found[0].exp <= self._clock.now():
            raise _grant("there is no such login, or not any more")
        return found

    async def of_access(self, token: str) -> Login | None:
        """The login of an access token that counts now. Refuses LEDGER_UNAVAILABLE."""
        id_, secret = parts_of(token, ACCESS) or ("", "")
        found = await self._store.get("login", id_, Login) if id_ else None
        now = self._clock.now()
        if found is None or found[0].exp <= now:
            return None
        login: Login = found[0]
        return login if any(exp > now and same(secret, digest) for digest, exp in login.access) else None

    async def end(self, token: str, client_id: str | None) -> None:
        """Revoke a login by one of its tokens (RFC 7009). Raises :class:`OAuthError` where it is another client's."""
        for kind in (ACCESS, REFRESH):
            if (parts := parts_of(token, kind)) is None:
                continue
            found = await self._store.get("login", parts[0], Login)
            if found is None:
                return
            login: Login = found[0]
            known = [login.refresh] if kind == REFRESH else [digest for digest, _ in login.access]
            if not any(same(parts[1], digest) for digest in known):
                return
            if client_id is not None and client_id != login.asked.client.id:
                raise _grant("the token is another client's")
            await self._store.forget("login", parts[0])


class ClientUsers:
    """Users of MCP clients: by the token of a login where there is one, else as the rest of the edge knows its callers.

    On ``/mcp`` alone: what a client was allowed there opens nothing of ``/api``.
    """

    def __init__(self, logins: Logins, otherwise: Operator) -> None:
        self._logins, self._otherwise = logins, otherwise

    async def known(self, request: Request) -> Caller:
        """Refuses UNAUTHENTICATED, or LEDGER_UNAVAILABLE where nobody can tell."""
        token = bearer(request)
        if token is None or not token.startswith(ACCESS):
            return await self._otherwise.known(request)
        login = await self._logins.of_access(token)
        if login is None or not covers(login.asked.resource, request.url.path.rstrip("/") or "/"):
            raise refusal(
                Code.UNAUTHENTICATED, "the token is not valid here, or not any more", rule="oauth.token",
                ask="refresh it, or log in again for this resource",
            )  # fmt: skip
        # Policy sees the program as the client, whatever the provider called this broker.
        identity = msgspec.structs.replace(login.identity, client=login.asked.client.id)
        return Caller(
            who=f"{identity.issuer}:{identity.user}", abilities=frozenset(), identity=identity, scope=login.asked.scopes
        )


def _grant(why: str) -> OAuthError:
    return invalid("invalid_grant", why, "log in again", rule="oauth.login")
