"""OAuth put together: what programs exchange tokens with, and what people log in with where an issuer has a login."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from nats.js import JetStreamContext

from remit_broker.adapters.backends import Backends
from remit_broker.adapters.identities import Issuers
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.limits import Gcra
from remit_broker.adapters.login_store import LoginStore
from remit_broker.adapters.once import KvOnce
from remit_broker.adapters.outbound import Outbound
from remit_broker.adapters.provider import Provider
from remit_broker.adapters.secret_store import KeySealer, SecretStore
from remit_broker.adapters.upstream import Connections
from remit_broker.config import Settings
from remit_broker.core.addresses import network
from remit_broker.core.user_tokens import Identity
from remit_broker.edges.http.desk import Desk
from remit_broker.edges.http.oauth.login import Front
from remit_broker.edges.http.oauth.logins import Logins
from remit_broker.edges.http.oauth.registration import Registration
from remit_broker.edges.http.oauth.wiring import OAuth
from remit_broker.edges.http.operators import Operator, elsewhere_of
from remit_broker.hop.revoked import withheld
from remit_broker.ports import Clock
from remit_schemas import jws
from remit_schemas.grant import Grant, parse, verify_ancestor
from remit_schemas.keys import KeySet

REGISTRATIONS = (0.5, 60)
"""Per second on average, and at once: of clients that register and of documents that are fetched."""

ASSERTION: Final = "oauth-id-jag+jwt"
"""The type of an identity assertion (draft-ietf-oauth-identity-assertion-authz-grant)."""


async def backends(
    settings: Settings, keys: KeyFiles, clock: Clock, js: JetStreamContext
) -> tuple[SecretStore, Backends]:
    """What MCP servers are shown of users, and the secrets of it. Raises :class:`ConfigError` for a key file that is none."""
    config, folder = settings.config, settings.file.parent
    file = folder / config.secrets.key_file if config.secrets.key_file else None
    store = SecretStore(KeySealer.of(file, keys.results_key))
    await store.start(js, config.bus.replicas)
    found = Backends(config.backends, store, clock, folder)
    found.issuer = config.issuer
    # A type of its own: it passes for no grant, and the key is that of /.well-known/jwks.json at the time.
    found.vouch = lambda claims: jws.sign(msgspec.json.encode(claims), ASSERTION, keys.signing)
    return store, found


class Signin:
    """What it is made of. ``base`` is the URL under which clients know this broker."""

    def __init__(
        self, settings: Settings, keys: KeyFiles, issuers: Issuers, base: str, behind: tuple[SecretStore, Backends]
    ) -> None:  # fmt: skip
        self._settings, self._keys, self._issuers, self._behind = settings, keys, issuers, behind
        self._base = (settings.config.oauth.url or base).rstrip("/")

    async def open(self, js: JetStreamContext, desks: Iterable[Desk], operator: Operator) -> OAuth:
        """Everything, on the buckets of the bus."""
        config, desks = self._settings.config, list(desks)
        once = KvOnce()
        await once.start(js, config.bus.replicas)
        oauth = OAuth(self._base, desks, once, self._genuine(), operator)
        if config.oauth.client_auth == "required":
            oauth.demand_proof()
        store = LoginStore(self._keys.results_key)
        await store.start(js, config.bus.replicas)
        oauth.connect(self._connections(store, desks))
        if (provider := self._provider()) is not None:
            self._log_in(oauth, provider, store, desks)
        return oauth

    def _connections(self, store: LoginStore, desks: list[Desk]) -> Connections:
        """Users' logins at MCP servers."""
        secrets, shown = self._behind
        shown.connections = Connections(
            self._base, secrets, store, self._outbound(), desks[0].ports.clock, self._settings.file.parent
        )
        return shown.connections

    def _outbound(self) -> Outbound:
        allowed = self._settings.config.oauth.documents_allow
        return Outbound(map(network, allowed), named="oauth.documents_allow")

    def _provider(self) -> Provider | None:
        """The first issuer at which people log in."""
        folder = self._settings.file.parent
        return next(
            (
                Provider(source.issuer, source.issuer.login, self._issuers, folder)
                for source in self._issuers.sources
                if source.issuer.login is not None
            ),
            None,
        )

    def _log_in(self, oauth: OAuth, provider: Provider, store: LoginStore, desks: list[Desk]) -> None:
        table, clock = self._settings.config.oauth, desks[0].ports.clock
        registration = Registration(
            store, self._outbound().get, clock, Gcra(clock, *REGISTRATIONS), opened=table.registration == "open",
            redirects=table.redirects, documents=table.client_documents,
        )  # fmt: skip
        welcome = _welcome(desks)
        front = Front(self._base, provider, store, registration, clock, table.login_ttl, welcome)
        oauth.log_in(front, registration, Logins(self._base, store, clock, table.access_ttl, welcome))

    def _genuine(self) -> Callable[[str], Grant]:
        keys, issuer = KeySet.from_jwks(self._keys.jwks()), self._settings.config.issuer

        def genuine(token: str) -> Grant:
            unverified = parse(token)
            return verify_ancestor(unverified, keys, issuer=issuer, now=unverified.claims.iat)

        return genuine


def _welcome(desks: list[Desk]) -> Callable[[Identity], None]:
    """Refuses whoever is of no tenant here, or revoked."""
    of = {desk.tenant: desk.ports for desk in desks}

    def welcome(identity: Identity) -> None:
        ports = of.get(identity.tenant)
        if ports is None:
            raise elsewhere_of(f"{identity.issuer}:{identity.user}")
        if found := ports.revocations.tenant(identity.tenant) or ports.revocations.check((), identity.user):
            raise withheld(found)

    return welcome
