"""Who the user of a token is: the issuer that its table names, the keys that issuer publishes, then the judgement of the core."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

import httpx
import msgspec

from remit_broker.adapters.issuer_source import IssuerSource
from remit_broker.core.issuers import IssuerConfig, OperatorRole, operator_roles
from remit_broker.core.user_tokens import Identity, Unverified, denied, judge, presentable, read
from remit_broker.ports import Clock


class Issuers:
    """All configured issuers."""

    def __init__(
        self,
        issuers: Iterable[IssuerConfig],
        clock: Clock,
        transport: Callable[[IssuerConfig], httpx.AsyncBaseTransport] | None = None,
    ) -> None:
        self._clock = clock
        self._sources = {
            issuer.issuer: IssuerSource(issuer, clock.monotonic, transport(issuer) if transport else None)
            for issuer in issuers
        }

    @property
    def sources(self) -> tuple[IssuerSource, ...]:
        """In the order of the configuration."""
        return tuple(self._sources.values())

    def troubles(self) -> dict[str, str]:
        """Which issuers did not answer when they were last asked for their keys, and why."""
        return {source.issuer.name: source.trouble for source in self.sources if source.trouble}

    async def identify(self, token: str) -> Identity:
        """The user of ``token``. Refuses UNAUTHENTICATED, TOO_LARGE, or TARGET_UNAVAILABLE where nobody can tell."""
        unverified = read(token)
        source = self._sources.get(unverified.iss)
        if source is None:
            names = ", ".join(f"{source.issuer.name} ({iss})" for iss, source in self._sources.items())
            raise denied("issuer", "its issuer is not configured", f"use a token of {names}" if names else _NONE)
        return await self._proved(unverified, source, source.issuer)

    async def logged_in(self, issuer: IssuerConfig, token: str, client_id: str, nonce: str) -> Identity:
        """Whom the ID token of a login at ``issuer`` proves (OIDC Core §3.1.3.7). Refuses as :meth:`identify` does."""
        # The token is for this broker as the provider's client, and for nobody else.
        table = msgspec.structs.replace(issuer, accept=("id",), audience=(client_id,), clients=(client_id,))
        unverified = read(token)
        if unverified.iss != issuer.issuer:
            raise denied("issuer", f"it is not from {issuer.name}")
        identity = await self._proved(unverified, self._sources[issuer.issuer], table)
        # INVARIANT: the ID token is that of this very login (test_an_id_token_of_another_login_logs_nobody_in).
        if not nonce or unverified.claims.get("nonce") != nonce:
            raise denied("nonce", "it is of another login", "log in again")
        return identity

    async def _proved(self, unverified: Unverified, source: IssuerSource, issuer: IssuerConfig) -> Identity:
        """Whom a token proves whose issuer has those keys and that table."""
        presentable(unverified, issuer)
        keys = await source.keys_for(unverified.kid, unverified.alg)
        # INVARIANT: nothing of a token is believed before its signature was verified with a key of its issuer
        # (test_a_token_signed_with_another_key_is_refused).
        if not keys.verifies(unverified.kid, unverified.alg, unverified.signing_input, unverified.signature):
            raise denied("signature", f"no key of {issuer.name} signed it")
        return judge(unverified, issuer, self._clock.now())

    def may_hold(self, agent: str, identity: Identity) -> None:
        """Refuses UNAUTHENTICATED where the issuer's table does not name ``agent`` as one that holds its users' tasks."""
        issuer = self._of(identity)
        # INVARIANT: a user's token that names who may act is of use to nobody else (test_may_act_names_the_only_agent).
        if identity.may_act not in (None, agent):
            raise denied("may_act", f"it is not for {agent} to act with", "give it to the agent that its may_act names")
        # INVARIANT: an agent cannot begin tasks with tokens that only another one should get
        # (test_an_agent_that_the_issuer_does_not_name_begins_no_task).
        if not any(fnmatchcase(agent, pattern) for pattern in issuer.agents):
            raise denied(
                "agent", f"tasks of {issuer.name}'s users are not for {agent}", f"see issuers.{issuer.name}.agents"
            )

    def longest(self, identity: Identity) -> int:
        """Seconds that a task of this user may live."""
        return self._of(identity).max_ttl

    def operator_roles(self, identity: Identity) -> tuple[OperatorRole, ...]:
        """What the user is on ``/api``."""
        return operator_roles(self._of(identity), identity.user, identity.roles, identity.groups)

    def _of(self, identity: Identity) -> IssuerConfig:
        return self._sources[identity.iss].issuer


_NONE = "this broker knows no issuer: an operator adds one as [[issuers]] in remit.toml"
