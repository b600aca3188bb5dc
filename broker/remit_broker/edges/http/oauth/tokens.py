"""``POST /oauth/token`` with the exchange of RFC 8693: a user's token becomes a task, a grant becomes the grant of another agent.

Who asks is the client that proved itself, else whoever has the token in hand, as everywhere else on HTTP; ``oauth.client_auth``
may demand the proof. What comes out is a grant like any other: its record is durable before anybody has it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from remit_broker.core.oauth import (
    ACCESS_TOKEN,
    DETAILS,
    EXCHANGE,
    ISSUED,
    REFRESH,
    SUBJECTS,
    OAuthError,
    as_oauth,
    invalid,
    scopes_of,
)
from remit_broker.core.registry import Attachment
from remit_broker.edges.http.oauth.clients import Client, Clients
from remit_broker.edges.http.oauth.forms import Form, answer, form_of
from remit_broker.hop.begin import Wish, open_as
from remit_broker.hop.exchange import asked, exchange, to
from remit_broker.hop.hop import Ask, Hop, Refused
from remit_broker.hop.refuse import refuse
from remit_broker.hop.renew import renew
from remit_broker.ports import Ports
from remit_schemas.budget import Budget, parse_budget
from remit_schemas.envelope import Request as Wanted
from remit_schemas.envelope import Want
from remit_schemas.errors import Code, Refusal
from remit_schemas.grant import TYP, Grant, parse
from remit_schemas.names import DEFAULT_TENANT, is_principal
from remit_schemas.scope import Scope, format_detail

Genuine = Callable[[str], Grant]
"""The grant that a token is, whatever time it is. Refuses GRANT_INVALID."""
Serves = Callable[[str, str], Attachment | None]
"""What an agent of a tenant serves."""
Handler = Callable[[Request, Form, Client | None], Awaitable[dict[str, Any]]]

BUDGET: Final = Budget(1_000_000, 1_000_000, 200)
"""What a task may use whose exchange says nothing of it: a dollar, a million tokens, two hundred calls."""
SUBJECT_LIFE: Final = 600
"""Seconds that such a task lives where the exchange says nothing of it."""
NUMBERS: Final = {"ttl": (1, 28_800), "max_depth": (0, 16)}


class Tokens:
    """The token endpoint. ``more`` are grant types of others, such as the code of a login."""

    def __init__(self, tenants: Mapping[str, Ports], clients: Clients, genuine: Genuine, serves: Serves) -> None:
        self._tenants, self._clients, self._genuine, self._serves = tenants, clients, genuine, serves
        self.proof_needed = False
        """Whether nobody is served who did not prove to be an agent."""
        self.more: dict[str, Handler] = {}

    async def endpoint(self, request: Request) -> Response:
        """One request. Raises :class:`OAuthError` or a refusal."""
        form = await form_of(request)
        client = await self._clients.authenticated(request, form)
        match form.get("grant_type"):
            case None:
                raise invalid("invalid_request", "grant_type is missing", "say what you have", rule="oauth.grant")
            case kind if kind == EXCHANGE:
                self._known(client)
                return answer(await self._exchange(form, client))
            case kind if kind == REFRESH and is_grant(form.get(REFRESH, "")):
                self._known(client)
                return answer(await self._renewed(form, client))
            case kind if kind in self.more:
                return answer(await self.more[kind](request, form, client))
            case _:
                raise invalid(
                    "unsupported_grant_type", "there is no such grant_type here",
                    "use " + ", ".join([EXCHANGE, REFRESH, *self.more]), rule="oauth.grant",
                )  # fmt: skip

    def _known(self, client: Client | None) -> None:
        # INVARIANT: where a proof is demanded, having a token is not enough
        # (test_where_a_proof_is_demanded_a_token_alone_is_not_enough).
        if client is None and self.proof_needed:
            raise invalid(
                "invalid_client", "clients prove here who they are", "send a client_assertion, signed with the agent's nkey",
                rule="oauth.client", status=401,
            )  # fmt: skip

    async def _exchange(self, form: Form, client: Client | None) -> dict[str, Any]:
        subject, kind = form.get("subject_token"), form.get("subject_token_type")
        if subject is None or kind is None:
            raise invalid("invalid_request", "subject_token and its type are needed", f"the type is {SUBJECTS[0]}")
        if kind not in SUBJECTS or form.get("requested_token_type", ACCESS_TOKEN) not in ISSUED:
            raise invalid(
                "invalid_request", "that type of token is not dealt in", f"use {SUBJECTS[0]}", rule="oauth.type"
            )
        actor = await self._actor(form)
        if is_grant(subject):
            return await self._handed_on(form, client, actor, subject)
        return await self._begun(form, client, actor, subject)

    async def _actor(self, form: Form) -> Client | None:
        """Who the actor token proves: the party that is to act with what is issued (RFC 8693 §2.1)."""
        token, kind = form.get("actor_token"), form.get("actor_token_type")
        if token is None and kind is None:
            return None
        # INVARIANT: no chain becomes another's actor: a grant proves nobody but to the broker, for its own chain
        # (test_grants_of_two_chains_are_not_spliced).
        if token is None or kind not in SUBJECTS or is_grant(token):
            raise invalid(
                "invalid_request", "actor_token proves who is to act: a grant does not",
                "send an assertion as for client_assertion, signed with the nkey of the actor", rule="oauth.actor",
            )  # fmt: skip
        try:
            return await self._clients.proved(token)
        except OAuthError as no:
            raise OAuthError("invalid_request", no.body) from None

    async def _begun(self, form: Form, client: Client | None, actor: Client | None, subject: str) -> dict[str, Any]:
        """A task for the user of a token, held by the agent that ``audience`` names, or that asks."""
        holder = form.get("audience") or (actor or client or _NOBODY).name
        tenant = (actor or client or Client(DEFAULT_TENANT, "")).tenant
        if not is_principal(holder):
            raise invalid(
                "invalid_target", "nobody is named who is to hold it", "send audience=<agent>", rule="oauth.audience"
            )
        scopes = scopes_of(form.get("scope", ""), form.get("authorization_details", ""))
        if scopes is None:
            raise invalid("invalid_scope", "a grant needs a scope", "send scope=mcp/git/* or such", rule="oauth.scope")
        _acts(actor, holder, client)
        ports = await self._of_user(subject, tenant)
        ask = _ask(ports, holder, tenant, "new", holder)
        numbers = _numbers(form)
        wish = Wish(
            token="", scopes=scopes, budget=_budget(form) or BUDGET, ttl=numbers.get("ttl", SUBJECT_LIFE),
            max_depth=numbers.get("max_depth", 8),
        )  # fmt: skip
        try:
            identity = await ports.identities.identify(subject)
            # Of one tenant each: where nobody is proved, the user's own says which.
            tenant = identity.tenant if client is None and actor is None else tenant
            if tenant not in self._tenants:
                tenant = DEFAULT_TENANT
            ports = self._tenants[tenant]
            ask = msgspec.structs.replace(ask, tenant=tenant)
            opened = await open_as(identity, wish, holder, tenant, ports)
        except Exception as error:
            refused = await refuse(Hop(ask=ask, id=ports.ids.hop()), "exchange", error, ports, "remit/oauth/token")
            no = as_oauth(refused.body)
            # Here it is the user's token that is not accepted, whoever was to hold the grant (RFC 8693 §2.2.2).
            if refused.body.code is Code.POLICY_DENIED:
                no = OAuthError("invalid_request", refused.body)
            raise no from None
        return _issued(opened.grant, opened.exp - ports.clock.now(), Scope.of(scopes))

    async def _of_user(self, subject: str, tenant: str) -> Ports:
        ports = self._tenants.get(tenant) or self._tenants[DEFAULT_TENANT]
        if wait := ports.rates.admit("remit"):
            raise invalid("slow_down", "too many ask at once", f"wait {wait:.1f} s", rule="admit.rate", status=429)
        return ports

    async def _handed_on(self, form: Form, client: Client | None, actor: Client | None, subject: str) -> dict[str, Any]:
        """A child grant for the agent that ``audience`` names, or that the actor token proves."""
        grant, ports = self._of(subject, client)
        audience = form.get("audience") or (actor.name if actor is not None else "")
        if not is_principal(audience):
            raise invalid(
                "invalid_target", "nobody is named who is to act", "send audience=<agent>", rule="oauth.audience"
            )
        if "resource" in form:
            raise invalid(
                "invalid_target", "a grant is for an agent", "send audience, not resource", rule="oauth.audience"
            )
        claims = grant.claims
        _acts(actor, audience, None, claims.tenant)
        numbers = _numbers(form)
        want = Want(
            scopes=scopes_of(form.get("scope", ""), form.get("authorization_details", "")), budget=_budget(form),
            ttl_ms=numbers["ttl"] * 1000 if "ttl" in numbers else None, max_depth=numbers.get("max_depth"),
        )  # fmt: skip
        ask = _ask(ports, claims.aud, claims.tenant, claims.txn, audience)
        done = await exchange(ask, asked(subject, want), ports, self._serves(claims.tenant, audience))
        if isinstance(done, Refused):
            raise as_oauth(done.body)
        return _issued(done.grant, done.exp - ports.clock.now(), done.scope)

    async def _renewed(self, form: Form, client: Client | None) -> dict[str, Any]:
        """The next grant of a hop that is open: the holder's own one, before it expires, is what renews it."""
        if set(form) & {"scope", "authorization_details", "resource", "audience"}:
            raise invalid("invalid_request", "a renewed grant is as the one before it", "leave out scope and audience")
        token = form[REFRESH]
        grant, ports = self._of(token, client)
        claims = grant.claims
        hop = Hop(
            ask=_ask(ports, claims.aud, claims.tenant, claims.txn, claims.aud), id=ports.ids.hop(), request=Wanted(grant=token)
        )  # fmt: skip
        try:
            renewed = await renew(hop, ports)
        except Exception as error:
            refused = await refuse(hop, "renew", error, ports, "remit/oauth/token")
            raise as_oauth(refused.body) from None
        return _issued(renewed["grant"], renewed["exp"] - ports.clock.now(), grant.scope)

    def _of(self, token: str, client: Client | None) -> tuple[Grant, Ports]:
        """The grant of a token, and the ports of its tenant. Whoever proved to be somebody is held to that."""
        grant = self._genuine(token)
        ports = self._tenants.get(grant.claims.tenant)
        # INVARIANT: a client hands on and renews what it holds itself (test_a_grant_of_somebody_else_is_not_handed_on).
        if ports is None or (client is not None and client != Client(grant.claims.tenant, grant.claims.aud)):
            raise invalid(
                "invalid_request", "the grant is not the client's own", "present a grant whose aud you are", rule="oauth.holder"
            )  # fmt: skip
        return grant, ports


_NOBODY: Final = Client(DEFAULT_TENANT, "")


def is_grant(token: str) -> bool:
    """Whether ``token`` looks like a grant of this or another broker: nothing of it is believed."""
    try:
        return parse(token).header.typ == TYP
    except Refusal:
        return False


def _acts(actor: Client | None, holder: str, client: Client | None, tenant: str | None = None) -> None:
    """INVARIANT: an actor is proved for itself alone (test_an_actor_token_of_somebody_else_names_nobody)."""
    if actor is not None and (actor.name != holder or tenant not in (None, actor.tenant)):
        raise invalid(
            "invalid_target", "actor_token proves another than audience names", "name the actor", rule="oauth.actor"
        )
    # A client takes a user's task for itself; for another one that other has to agree.
    if client is not None and actor is None and client.name != holder:
        raise invalid(
            "invalid_target", f"{client.name} asks for a grant of {holder}", "send actor_token, an assertion of that agent",
            rule="oauth.actor",
        )  # fmt: skip


def _ask(ports: Ports, caller: str, tenant: str, txn: str, audience: str) -> Ask:
    return Ask(
        tenant=tenant, caller=caller, txn=txn, resource=to(audience), reply="", data=b"", at=ports.clock.now(),
        mono=ports.clock.monotonic(),
    )  # fmt: skip


def _budget(form: Form) -> Budget | None:
    text = form.get("budget")
    return None if text is None else parse_budget(text)


def _numbers(form: Form) -> dict[str, int]:
    found = {}
    for name, (least, most) in NUMBERS.items():
        if (text := form.get(name)) is not None:
            if not text.isascii() or not text.isdecimal() or len(text) > 6 or not least <= int(text) <= most:
                raise invalid(
                    "invalid_request", f"{name} is out of range", f"between {least} and {most}", rule=f"oauth.{name}"
                )
            found[name] = int(text)
    return found


def _issued(grant: str, seconds: float, scope: Scope) -> dict[str, Any]:
    return {
        "access_token": grant,
        "issued_token_type": ACCESS_TOKEN,
        "token_type": "Bearer",
        "expires_in": max(0, int(seconds)),
        # What a scope cannot say stands in the details, which are always whole.
        "scope": " ".join(format_detail(detail) for detail in scope.details if not detail.args),
        "authorization_details": told(scope),
    }


def told(scope: Scope) -> list[dict[str, Any]]:
    """A scope as ``authorization_details`` of an answer: the type is always there (RFC 9396 §2)."""
    return [{"type": DETAILS, **msgspec.to_builtins(detail)} for detail in scope.details]
