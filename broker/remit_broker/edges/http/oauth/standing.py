"""Whether a grant is of use at this moment (RFC 7662), and the end of it (RFC 7009)."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from remit_broker.core.login import Login
from remit_broker.core.oauth import invalid
from remit_broker.edges.http.oauth.clients import Client, Clients
from remit_broker.edges.http.oauth.forms import NO_STORE, Form, answer, form_of
from remit_broker.edges.http.oauth.logins import Logins
from remit_broker.edges.http.oauth.tokens import Genuine, is_grant, told
from remit_broker.edges.http.operators import Operator, bearer, require
from remit_broker.hop.exchange import DELEGATE, finish, to
from remit_broker.hop.hop import Ask, Hop
from remit_broker.hop.revoked import may_decide
from remit_broker.hop.txn import revoke
from remit_broker.hop.verify import holder
from remit_broker.ports import Ports
from remit_schemas.envelope import Request as Wanted
from remit_schemas.errors import Code, Refusal
from remit_schemas.grant import Grant
from remit_schemas.names import parse_resource
from remit_schemas.scope import format_detail

INACTIVE: dict[str, Any] = {"active": False}
GONE = frozenset(
    {Code.GRANT_INVALID, Code.GRANT_EXPIRED, Code.GRANT_REVOKED, Code.GRANT_CLOSED, Code.TOO_LARGE, Code.POLICY_DENIED}
)


class Standing:
    """The two endpoints. Who may introspect is an agent that proves itself, or an operator."""

    def __init__(self, tenants: dict[str, Ports], clients: Clients, genuine: Genuine, operator: Operator) -> None:
        self._tenants, self._clients, self._genuine, self._operator = tenants, clients, genuine, operator
        self.proof_needed = False
        self.announce: Any = None
        self.logins: Logins | None = None
        self.base = ""

    async def introspect(self, request: Request) -> Response:
        """``POST /oauth/introspect``."""
        form = await form_of(request)
        client = await self._clients.authenticated(request, form)
        if client is None:
            # INVARIANT: nobody learns of a grant who is nobody (test_introspection_is_for_agents_and_operators).
            require(await self._operator.known(request), "read")
        return answer(await self._state(_token(form), client))

    async def _state(self, token: str, client: Client | None) -> dict[str, Any]:
        if self.logins is not None and (login := await self.logins.of_access(token)) is not None:
            return {"active": True, "token_type": "Bearer", **login_told(login, self.base)}
        if not is_grant(token):
            return INACTIVE
        try:
            grant = self._genuine(token)
            ports = self._tenants.get(grant.claims.tenant)
            if ports is None or (client is not None and client.tenant != grant.claims.tenant):
                return INACTIVE
            await stands(grant, ports)
        except Refusal as no:
            # INVARIANT: what nobody can know now is not called inactive, nor active (test_introspection_says_when_nobody_can_tell).
            if no.body.code in GONE or no.body.rule == "ledger.unknown-txn":
                return INACTIVE
            raise
        return _described(grant)

    async def revoke(self, request: Request) -> Response:
        """``POST /oauth/revoke``: 200 also for what is no token of ours, or none any more (RFC 7009 §2.2)."""
        form = await form_of(request)
        client = await self._clients.authenticated(request, form)
        token = _token(form)
        if self.logins is not None and token.startswith(("remit_at_", "remit_rt_")):
            await self.logins.end(token, form.get("client_id"))
            return Response(status_code=200, headers=NO_STORE)
        grant = self._known(token)
        who = await self._may(request, client, grant)
        if grant is not None:
            await self._end(grant, who, self._tenants[grant.claims.tenant])
        return Response(status_code=200, headers=NO_STORE)

    def _known(self, token: str) -> Grant | None:
        try:
            grant = self._genuine(token) if is_grant(token) else None
        except Refusal:
            return None
        return grant if grant is not None and grant.claims.tenant in self._tenants else None

    async def _may(self, request: Request, client: Client | None, grant: Grant | None) -> str:
        """Who revokes, for the record. Raises :class:`OAuthError`."""
        if client is None and bearer(request) is not None:
            caller = await self._operator.known(request)
            require(caller, "operate")
            return caller.who
        if client is None:
            if self.proof_needed:
                raise invalid(
                    "invalid_client", "clients prove here who they are", "send a client_assertion", status=401
                )
            return f"agent:{grant.claims.aud}" if grant is not None else ""
        # INVARIANT: who revokes is in the chain: the holder, or whoever handed it on (test_a_stranger_revokes_nothing).
        if grant is not None and (client.tenant != grant.claims.tenant or client.name not in grant.chain):
            raise invalid(
                "invalid_grant",
                "the grant is not the client's",
                "its holder or one above it revokes it",
                rule="oauth.holder",
            )
        return f"agent:{client.name}"

    async def _end(self, grant: Grant, who: str, ports: Ports) -> None:
        tenant, jti = grant.claims.tenant, grant.jti
        try:
            fold = await ports.ledger.newest(tenant, jti.txn)
            node = fold.nodes.get(jti.hop)
            if node is None or not node.counts(jti.n, grant.claims.rec):
                return
            # The holder of what was handed on gives it back: its hop has ended well, and the rest of its budget returns.
            if node.resource and parse_resource(node.resource).op == DELEGATE and who == f"agent:{node.callee}":
                await finish(tenant, jti.txn, jti.hop, ports)
                return
            await revoke(
                tenant, str(jti), who, "given back by its holder" if who == f"agent:{node.callee}" else "", ports
            )
        except Refusal as no:
            if no.body.code not in GONE:
                raise
            return
        if self.announce is not None:
            await self.announce(tenant, str(jti))


async def stands(grant: Grant, ports: Ports) -> None:
    """Refuses unless the grant is of use now: in time, its hop open, nothing revoked that it depends on. The ledger itself is asked."""
    claims = grant.claims
    may_decide(ports, claims.tenant)
    ask = Ask(
        tenant=claims.tenant, caller=claims.aud, txn=claims.txn, resource=to(claims.aud), reply="", data=b"",
        at=ports.clock.now(), mono=ports.clock.monotonic(),
    )  # fmt: skip
    # INVARIANT: what was revoked at another broker a moment ago is inactive (test_a_grant_is_active_while_its_hop_is_open).
    fold = await ports.ledger.newest(claims.tenant, claims.txn)
    await holder(Hop(ask=ask, id=ports.ids.hop(), request=Wanted(grant=grant.token), fold=fold), ports)


def _described(grant: Grant) -> dict[str, Any]:
    claims = grant.claims
    said: dict[str, Any] = msgspec.to_builtins(claims)
    return {
        **said,
        "authorization_details": told(grant.scope),
        "active": True,
        "token_type": "Bearer",
        "client_id": claims.aud,
        "username": claims.sub,
        "scope": " ".join(format_detail(detail) for detail in grant.scope.details if not detail.args),
    }


def login_told(login: Login, base: str) -> dict[str, Any]:
    """What introspection says of a login's access token."""
    identity = login.identity
    return {
        "sub": identity.user, "username": identity.user, "iss": base, "aud": base + login.asked.resource, "exp": login.exp,
        "iat": login.made, "client_id": login.asked.client.id, "scope": " ".join(login.asked.scopes),
    }  # fmt: skip


def _token(form: Form) -> str:
    token = form.get("token")
    if token is None:
        raise invalid("invalid_request", "token is missing", "send the token in the body", rule="oauth.token")
    return token
