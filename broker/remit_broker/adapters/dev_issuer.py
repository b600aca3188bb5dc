"""The development issuer: an OpenID provider for a table of users, inside this broker, for trying things out on one machine.

It says of itself what any provider says (discovery, keys), so that the broker checks its tokens the same way as all others. A
token is given for the content of ``keys/local.token``, the file by which the owner of the data folder is known.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from remit_broker.adapters.dev_login import DevLogin
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.core.issuers import DEV_AUDIENCE, DEV_CLIENT, DevelopmentConfig, DevUser
from remit_broker.ports import Clock
from remit_schemas.errors import Code, refusal

LIFE: Final = 3600
"""Seconds that a token lives."""
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the curve P-256 (SEC 2 §2.4.2)."""


class DevIssuer:
    """The provider at ``url``. A browser that logged in goes ``back`` to this broker; None: nobody logs in here."""

    def __init__(
        self, url: str, config: DevelopmentConfig, keys: KeyFiles, clock: Clock, back: str | None = None
    ) -> None:
        self.url, self._config, self._clock = url, config, clock
        self._secret = keys.local_token
        self.login = None if back is None else DevLogin(DEV_CLIENT, back, keys.local_token, clock)
        # From a master key, so that it stays the same over restarts and is no further file to lose.
        drawn = hmac.new(keys.results_key, b"remit development issuer", hashlib.sha512).digest()
        self._key = ec.derive_private_key(int.from_bytes(drawn) % (_ORDER - 1) + 1, ec.SECP256R1())
        public = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        self._kid = hashlib.sha256(repr(sorted(public.items())).encode()).hexdigest()[:16]
        self._jwk = {**public, "kid": self._kid, "use": "sig", "alg": "ES256"}

    def discovery(self) -> dict[str, Any]:
        """The discovery document (OIDC Discovery §3)."""
        login: dict[str, Any] = {"response_types_supported": ["token"], "grant_types_supported": ["password"]}
        if self.login is not None:
            login = {
                "authorization_endpoint": f"{self.url}/authorize",
                "response_types_supported": ["code"],
                "grant_types_supported": ["authorization_code", "password"],
                "code_challenge_methods_supported": ["S256"],
                "scopes_supported": ["openid"],
            }
        return {
            **login,
            "issuer": self.url,
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks.json",
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "token_endpoint_auth_methods_supported": ["client_secret_post", "none"],
            "claims_supported": ["sub", "tenant", "roles", "groups"],
            "remit_development": True,
        }

    def jwks(self) -> dict[str, Any]:
        """The public key."""
        return {"keys": [self._jwk]}

    @property
    def users(self) -> Mapping[str, DevUser]:
        """Who can be chosen."""
        return self._config.users

    @property
    def back(self) -> str:
        """Where a browser that logged in goes."""
        return self._login().back

    def token(self, user: str, secret: str) -> dict[str, Any]:
        """The answer of the token endpoint (RFC 6749 §5.1). Refuses UNAUTHENTICATED or UNKNOWN_TARGET."""
        claims = {**self._claims(user, self._known(user, secret)), "aud": DEV_AUDIENCE, "client_id": DEV_CLIENT}
        return {"access_token": self._signed(claims, "at+jwt"), "token_type": "Bearer", "expires_in": LIFE}

    def shown(self, query: Mapping[str, str], browser: str) -> str:
        """The ticket of the login form for a request in a browser. Refuses MALFORMED."""
        login = self._login()
        return login.ticket(login.wanted(query), browser)

    def log_in(self, form: Mapping[str, str], browser: str) -> dict[str, str]:
        """What a browser brings back whose person filled in the form. Refuses UNAUTHENTICATED, UNKNOWN_TARGET or MALFORMED."""
        login = self._login()
        wanted = login.wanted(form)
        login.pressed(wanted, browser, form.get("ticket", ""))
        self._known(user := form.get("user", ""), form.get("secret", ""))
        return {"code": login.code(wanted, user), "state": wanted.state}

    def redeem(self, form: Mapping[str, str]) -> dict[str, Any]:
        """The tokens for a code (OIDC Core §3.1.3.3). Refuses UNAUTHENTICATED."""
        user, nonce = self._login().redeemed(form)
        known = self._config.users[user]
        claims = {**self._claims(user, known), "aud": DEV_CLIENT, "nonce": nonce}
        access = {**self._claims(user, known), "aud": DEV_AUDIENCE, "client_id": DEV_CLIENT}
        return {
            "id_token": self._signed(claims, "JWT"), "access_token": self._signed(access, "at+jwt"), "token_type": "Bearer",
            "expires_in": LIFE,
        }  # fmt: skip

    def _login(self) -> DevLogin:
        if self.login is None:
            raise refusal(
                Code.UNKNOWN_TARGET, "nobody logs in at the development issuer here", rule="development.login",
                ask="log in at the real issuer beside it",
            )  # fmt: skip
        return self.login

    def _known(self, user: str, secret: str) -> DevUser:
        # INVARIANT: the development issuer gives nobody a token who could not read the data folder
        # (test_the_development_issuer_gives_no_token_without_the_secret_of_the_data_folder).
        if not hmac.compare_digest(secret.encode(), self._secret.encode()):
            raise refusal(
                Code.UNAUTHENTICATED, "that is not the client secret", rule="development.secret",
                ask="send the content of keys/local.token in the data folder",
            )  # fmt: skip
        known = self._config.users.get(user)
        if known is None:
            raise refusal(
                Code.UNKNOWN_TARGET, "the development issuer has no such user", rule="development.user",
                ask=f"it has {', '.join(self._config.users) or 'none'}; add [development.users.NAME] to remit.toml",
            )  # fmt: skip
        return known

    def _claims(self, user: str, known: DevUser) -> dict[str, Any]:
        now = int(self._clock.now())
        return {
            "iss": self.url, "sub": user, "iat": now, "exp": now + LIFE, "jti": secrets.token_hex(16), "tenant": known.tenant,
            "roles": list(known.roles), "groups": list(known.groups),
        }  # fmt: skip

    def _signed(self, claims: dict[str, Any], kind: str) -> str:
        return jwt.encode(claims, self._key, "ES256", {"typ": kind, "kid": self._kid})
