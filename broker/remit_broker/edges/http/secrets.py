"""``/api/secrets``: what MCP servers are shown for whom. Set and removed here; nothing reads one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from starlette.requests import Request

from remit_broker.core.backends import MAX_SECRET, Secret, is_secret
from remit_broker.core.times import rfc3339
from remit_broker.edges.http.guard import typed
from remit_broker.edges.http.operators import require
from remit_schemas.errors import Code, refusal
from remit_schemas.names import is_principal

if TYPE_CHECKING:
    from remit_broker.edges.http.desk import Call


class Vault(Protocol):
    """Where they are."""

    async def put(self, tenant: str, secret: Secret) -> None:
        """Set one."""

    async def remove(self, tenant: str, server: str, user: str) -> bool:
        """Whether there was one."""

    async def all(self, tenant: str) -> list[Secret]:
        """Those of a tenant, without their values."""


class Connects(Protocol):
    """Where users begin to log in at servers."""

    async def connect(self, tenant: str, user: str, server: str) -> str:
        """The URL for a browser. Refuses."""


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``POST /api/secrets/remove``: whose, at which server. Without ``user`` the caller's own; ``service`` is the server's account."""

    server: str
    user: str = ""
    service: bool = False


class NewSecret(Place, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``POST /api/secrets``: the same, and the secret."""

    value: str


async def _put(request: Request, at: Call) -> Any:
    new: NewSecret = await typed(request, NewSecret)
    user = _whose(new, at)
    if not is_secret(new.value):
        raise refusal(
            Code.MALFORMED, "that cannot be sent in a header", rule="secrets.value",
            ask=f"1 to {MAX_SECRET} printable ASCII characters, without blanks around them",
        )  # fmt: skip
    now = rfc3339(at.desk.ports.clock.now())
    await at.desk.secrets.put(at.tenant, Secret(server=new.server, user=user, value=new.value, at=now, by=at.who))
    return {"server": new.server, "user": user, "service": not user, "at": now}


async def _listed(request: Request, at: Call) -> Any:
    """Of the caller alone, where that is no operator."""
    found = await at.desk.secrets.all(at.tenant)
    proved = at.caller.identity
    if "read" not in at.caller.abilities:
        found = [one for one in found if proved is not None and one.user == proved.user]
    return {"secrets": [_told(one) for one in found]}


async def _remove(request: Request, at: Call) -> Any:
    place: Place = await typed(request, Place)
    user = _whose(place, at)
    if not await at.desk.secrets.remove(at.tenant, place.server, user):
        raise refusal(Code.UNKNOWN_TARGET, "there is no such secret", rule="secrets.unknown", ask="remit secrets list")
    return {"server": place.server, "user": user, "service": not user}


async def _connect(request: Request, at: Call) -> Any:
    place: Place = await typed(request, Place)
    user = _whose(place, at)
    if not user:
        raise refusal(Code.MALFORMED, "a service logs in nowhere", rule="secrets.user", ask="name a user")
    return {"server": place.server, "user": user, "url": await at.desk.connects.connect(at.tenant, user, place.server)}


def _told(secret: Secret) -> dict[str, Any]:
    return {"server": secret.server, "user": secret.user, "service": not secret.user, "at": secret.at, "by": secret.by}


def _whose(place: Place, at: Call) -> str:
    """INVARIANT: nobody but an operator sets a secret for somebody else (test_a_user_sets_secrets_for_nobody_else)."""
    proved = at.caller.identity
    if not is_principal(place.server):
        raise refusal(Code.MALFORMED, "that cannot name an MCP server", rule="secrets.server", ask="remit servers list")
    if place.service and place.user:
        raise refusal(
            Code.MALFORMED, "a service is nobody's", rule="secrets.user", ask="name a user or service, not both"
        )
    user = place.user or (proved.user if proved is not None and not place.service else "")
    if not place.service and not user:
        raise refusal(Code.MALFORMED, "nobody is named", rule="secrets.user", ask="name the user, or say service")
    if len(user) > 256 or not user.isprintable():
        raise refusal(Code.MALFORMED, "that is no user", rule="secrets.user", ask="a printable name")
    if proved is None or user != proved.user:
        require(at.caller, "operate")
    return user


ROUTES: Final[tuple[tuple[str, str, None, Callable[[Request, Call], Awaitable[Any]]], ...]] = (
    ("GET", "/api/secrets", None, _listed),
    ("POST", "/api/secrets", None, _put),
    ("POST", "/api/secrets/remove", None, _remove),
    ("POST", "/api/secrets/connect", None, _connect),
)
"""Users deal with their own; for another one, and for a service, it takes an operator: each asks for itself."""
READS: Final = (_put, _remove, _connect)
"""Those that read a body."""
