"""Who calls ``/api``, and what they may do there."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Final, Protocol

import msgspec
from starlette.requests import Request

from remit_broker.core.issuers import ABILITIES, ALL, Ability, abilities_of
from remit_broker.core.user_tokens import Identity
from remit_broker.ports import Identities
from remit_schemas.errors import Code, Refusal, refusal


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever calls. ``who`` is the name for the record; ``identity`` is there where an issuer proved a user, ``roles`` are then
    those of operators that its table gives them. With ``everything`` they may stop all tenants at once, of whichever they are.
    """

    who: str
    abilities: frozenset[Ability]
    roles: tuple[str, ...] = ()
    identity: Identity | None = None
    everything: bool = False
    scope: tuple[str, ...] | None = None
    """What the program that somebody logged in with may call, as resource patterns; None: whatever its user may."""

    @property
    def tenant(self) -> str | None:
        """The only one whose matters are theirs, where an issuer says of which they are; None: every tenant's."""
        return None if self.identity is None else self.identity.tenant


class Operator(Protocol):
    """How a caller of the API is known."""

    async def known(self, request: Request) -> Caller:
        """Refuses UNAUTHENTICATED."""


class LocalToken:
    """``http.auth = "local"``: the caller is the OS user, proved by the bearer token in a file only that user can read."""

    def __init__(self, token: str, user: str) -> None:
        self._token, self.user = token.encode(), user

    async def known(self, request: Request) -> Caller:
        """The OS user, who may do everything. Refuses UNAUTHENTICATED."""
        given = bearer(request)
        if given is None or not hmac.compare_digest(given.encode(), self._token):
            raise refusal(
                Code.UNAUTHENTICATED, "the request carries no valid token", rule="http.local",
                ask="send Authorization: Bearer <the content of keys/local.token in the data folder>",
            )  # fmt: skip
        return Caller(who=f"local:{self.user}", abilities=ALL)


class Open:
    """``http.auth = "open"``: everybody on this machine is one named user, who may do everything."""

    def __init__(self, user: str) -> None:
        self.user = user

    async def known(self, request: Request) -> Caller:
        """That user."""
        return Caller(who=f"open:{self.user}", abilities=ALL)


class IssuerToken:
    """``http.auth = "issuer"``: the caller is the user whom an issuer's token proves, with the roles its table gives them."""

    def __init__(self, identities: Identities, stop_all: Iterable[str] = ()) -> None:
        """``stop_all`` are those who may stop all tenants at once, ``<issuer>:<user>``."""
        self._identities, self._stop_all = identities, frozenset(stop_all)

    async def known(self, request: Request) -> Caller:
        """Refuses UNAUTHENTICATED, or TARGET_UNAVAILABLE where nobody can tell."""
        given = bearer(request)
        if given is None:
            raise refusal(
                Code.UNAUTHENTICATED, "the request carries no token", rule="http.issuer",
                ask="send Authorization: Bearer <an access token of an issuer of this broker>",
            )  # fmt: skip
        identity = await self._identities.identify(given)
        roles = self._identities.operator_roles(identity)
        who = f"{identity.issuer}:{identity.user}"
        return Caller(
            who=who, abilities=abilities_of(roles), roles=roles, identity=identity, everything=who in self._stop_all
        )


_ROLES: Final[dict[Ability, str]] = {
    ability: " or ".join(role for role, abilities in ABILITIES.items() if ability in abilities)
    for ability in sorted(ALL)
}


def require(caller: Caller, ability: Ability) -> None:
    """Refuses POLICY_DENIED.

    INVARIANT: who may look may not therefore act (test_an_operator_does_what_the_role_permits_and_no_more).
    """
    if ability not in caller.abilities:
        raise lacking(caller, ability)


def lacking(caller: Caller, ability: Ability) -> Refusal:
    """The refusal of a caller who may not ``ability``."""
    return refusal(
        Code.POLICY_DENIED, f"{caller.who} may not {ability} here", rule=f"operators.{ability}",
        ask=f"ask an administrator for the role {_ROLES[ability]}: operators in the issuer's table of remit.toml",
    )  # fmt: skip


def elsewhere(caller: Caller) -> Refusal:
    """The refusal of an operator of another tenant."""
    return elsewhere_of(caller.who)


def elsewhere_of(who: str) -> Refusal:
    """The same for a name."""
    return refusal(
        Code.UNAUTHENTICATED,
        f"{who} is of another tenant",
        rule="identity.tenant",
        ask="use your own tenant's broker",
    )


def bearer(request: Request) -> str | None:
    """The token of the one Authorization header (RFC 6750 §2.1), or None."""
    given = request.headers.getlist("authorization")
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
