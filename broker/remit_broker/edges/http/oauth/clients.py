"""Who asks at an OAuth endpoint. An agent proves itself with the key that it connects to the bus with (RFC 7523): there is no
second secret to keep, and its identity is the same through both doors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec
from starlette.requests import Request

from remit_broker.core import nkey
from remit_broker.core.assertion import client_id
from remit_broker.core.oauth import ASSERTION, OAuthError, invalid
from remit_broker.core.registry import Principal
from remit_broker.core.user_tokens import Unverified, read
from remit_broker.edges.http.oauth.forms import Form
from remit_broker.ports import Clock
from remit_schemas.errors import Refusal
from remit_schemas.names import DEFAULT_TENANT

LIFE: Final = 300
"""Longest life of an assertion in seconds."""
SKEW: Final = 30
ALGORITHMS: Final = ("EdDSA", "Ed25519")
"""One signature under its two names (RFC 8037, RFC 9864): the key is an nkey, which is Ed25519."""
TYPES: Final = ("", "jwt", "client-authentication+jwt")


class Once(Protocol):
    """What may be used once, at all brokers."""

    async def take(self, key: str) -> bool:
        """Whether this is the first time. Refuses LEDGER_UNAVAILABLE where nobody can tell."""


class People(Protocol):
    """The agents of one tenant."""

    def principal(self, name: str) -> Principal | None:
        """An agent or server by name."""


class Client(msgspec.Struct, frozen=True):
    """An agent or server that proved who it is."""

    tenant: str
    name: str


class Clients:
    """Knows agents by their assertions. ``audiences`` are the URLs that stand for this authorization server."""

    def __init__(self, people: Mapping[str, People], once: Once, clock: Clock, audiences: frozenset[str]) -> None:
        self._people, self._once, self._clock, self._audiences = people, once, clock, audiences

    async def authenticated(self, request: Request, form: Form) -> Client | None:
        """The client that the request proves; None where it proves none. Raises :class:`OAuthError`."""
        if request.headers.get("authorization", "").lower().startswith("basic ") or "client_secret" in form:
            raise _no("there are no client secrets here", "send a client_assertion, signed with the agent's nkey")
        kind, assertion = form.get("client_assertion_type"), form.get("client_assertion")
        if kind is None and assertion is None:
            return None
        if kind != ASSERTION or assertion is None:
            raise _no("client_assertion and its type belong together", f"send client_assertion_type={ASSERTION}")
        client = await self.proved(assertion)
        if form.get("client_id", _id(client)) != _id(client):
            raise _no("client_id is another than the assertion's", "leave it out")
        return client

    async def proved(self, assertion: str) -> Client:
        """Whose assertion this is (RFC 7523 §3). It is used up. Raises :class:`OAuthError`."""
        try:
            token = read(assertion)
        except Refusal:
            raise _no("that is no assertion", "send a signed JWT") from None
        name, subject = token.iss, token.claims.get("sub")
        tenant, _, agent = name.rpartition("/")
        people = self._people.get(tenant or DEFAULT_TENANT)
        principal = people.principal(agent) if people is not None else None
        # The same answer for a name that nobody has: who may connect is not told.
        if principal is None or not _signed(token, principal):
            raise _no("no registered agent signed it", "sign it with the nkey of the agent that iss names")
        self._timely(token.claims)
        audience = token.claims.get("aud")
        aims = [audience] if isinstance(audience, str) else audience
        # INVARIANT: an assertion for another server opens nothing here (test_an_assertion_counts_once_here_and_for_its_agent_alone).
        if subject != name or not isinstance(aims, list) or len(aims) != 1 or aims[0] not in self._audiences:
            raise _no(
                "iss and sub must be the agent, aud this server", f"aud is one of {', '.join(sorted(self._audiences))}"
            )
        jti = token.claims.get("jti")
        if not isinstance(jti, str) or not 8 <= len(jti) <= 128:
            raise _no("jti must be a text of 8 to 128 characters", "draw a new one for each")
        # INVARIANT: an assertion that somebody copied is worth nothing (test_an_assertion_counts_once_here_and_for_its_agent_alone).
        if not await self._once.take(hashlib.sha256(f"{name}\n{jti}".encode()).hexdigest()):
            raise _no("the assertion was used before", "sign a new one for each request")
        return Client(principal.tenant, principal.name)

    def _timely(self, claims: Mapping[str, Any]) -> None:
        now = self._clock.now()
        expires, begins = _seconds(claims.get("exp")), _seconds(claims.get("nbf", claims.get("iat", 0)))
        if not now < expires <= now + LIFE + SKEW or begins > now + SKEW:
            raise _no("it has expired, or lives too long", f"at most {LIFE} s; synchronise clocks")


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _no("exp must be there, and times be numbers", "exp is Unix seconds, soon")
    return float(value)


def _id(client: Client) -> str:
    return client_id(client.name, client.tenant)


def _signed(token: Unverified, principal: Principal) -> bool:
    return (
        token.alg in ALGORITHMS
        and token.typ in TYPES
        and token.kid in (None, principal.nkey)
        and nkey.verify("U", principal.nkey, token.signing_input, token.signature)
    )


def _no(why: str, ask: str) -> OAuthError:
    return invalid("invalid_client", f"the client is not authenticated: {why}", ask, rule="oauth.client", status=401)
