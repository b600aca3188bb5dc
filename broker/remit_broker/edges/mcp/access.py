"""Who a client is: a user, known as the HTTP edge knows anybody, or an agent that brings its grant and goes on with its chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from remit_broker.core.user_tokens import Identity
from remit_broker.edges.http.operators import Caller, bearer
from remit_broker.hop.revoked import withheld
from remit_broker.ports import Ports
from remit_schemas.base64url import decode
from remit_schemas.errors import Code, refusal
from remit_schemas.grant import Grant, parse

_TYP: Final = b'"dlg+jwt"'


@dataclass(frozen=True)
class User:
    """A user of a client. ``auth`` is how that one is known, for the record; ``identity`` is there where an issuer proved it."""

    tenant: str
    name: str
    auth: str
    identity: Identity | None = None
    scope: tuple[str, ...] | None = None
    """What the program that somebody logged in with may call; None: whatever its user may."""

    @property
    def key(self) -> tuple[str, ...]:
        """Whose a session is: nobody else's, whatever they know of it; nor another program's of the same user."""
        issuer = self.identity.issuer if self.identity is not None else ""
        program = (self.identity.client, *self.scope) if self.identity is not None and self.scope is not None else ()
        return ("user", self.tenant, issuer, self.name, *program)


@dataclass(frozen=True)
class Holder:
    """Whoever brought a grant: the agent it was minted for."""

    tenant: str
    grant: Grant

    @property
    def key(self) -> tuple[str, ...]:
        """The hop whose grant it is: a renewed one continues the session, another hop's does not."""
        jti = self.grant.jti
        return ("grant", self.tenant, self.grant.claims.aud, jti.txn, jti.hop)


Who = User | Holder


def presented(request: Request) -> str | None:
    """The grant that was sent as the bearer token; None where it is none, by its own header."""
    token = bearer(request) or ""
    head = token.partition(".")[0]
    if token.count(".") != 2 or len(head) > 700:
        return None
    try:
        return token if _TYP in decode(head.encode()) else None
    except ValueError:
        return None


def as_user(caller: Caller, tenant: str, ports: Ports) -> User:
    """The user a caller is. Refuses what was revoked."""
    proved = caller.identity
    auth, _, name = caller.who.rpartition(":")
    user = User(
        tenant, proved.user if proved else name, proved.auth if proved else f"{auth}:{name}", proved, caller.scope
    )
    if found := ports.revocations.check((), user.name):
        raise withheld(found)
    return user


async def as_holder(token: str, tenant: str, ports: Ports) -> Holder:
    """Whoever holds a grant that is genuine, in time and of this tenant, and whose hop is open. Refuses GRANT_….

    A grant is bound to its agent on the bus, where the NATS server proves who that is. Here it is what OAuth calls a bearer token:
    whoever has it may use it, as long as it lives (docs/adr/0015-mcp-clients.md).
    """
    grant = ports.mint.verify(token, parse(token).claims.aud)
    if grant.claims.tenant != tenant:
        raise refusal(
            Code.GRANT_INVALID, "the grant is another tenant's", rule="grant.tenant", ask="use your own grant"
        )
    fold = await ports.ledger.newest(tenant, grant.jti.txn)
    node = fold.nodes.get(grant.jti.hop)
    # INVARIANT: no session begins with a grant that is worth nothing (test_a_dead_grant_begins_no_session).
    if node is None or node.callee != grant.claims.aud or not node.counts(grant.jti.n, grant.claims.rec):
        raise refusal(
            Code.GRANT_INVALID, "the ledger does not know this grant", rule="grant.unknown", ask="use the newest grant"
        )
    if fold.is_revoked(grant.jti.hop):
        raise refusal(
            Code.GRANT_REVOKED, "the grant or one above it was revoked", rule="grant.revoked", ask="stop this work"
        )
    if not fold.is_open(grant.jti.hop):
        raise refusal(
            Code.GRANT_CLOSED, "the hop this grant was minted for has ended, or waits", rule="grant.closed",
            ask="call before the skill returns; a new task needs a new grant",
        )  # fmt: skip
    return Holder(tenant, grant)


def tenant_of(token: str) -> str:
    """The tenant that a grant claims; nothing has been checked. Refuses GRANT_INVALID for what is no grant."""
    return parse(token).claims.tenant
