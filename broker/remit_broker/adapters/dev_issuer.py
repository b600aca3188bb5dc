"""The development issuer: an OpenID provider for a table of users, inside this broker, for trying things out on one machine.

It says of itself what any provider says (discovery, keys), so that the broker checks its tokens the same way as all others. A
token is given for the content of ``keys/local.token``, the file by which the owner of the data folder is known.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.core.issuers import DEV_AUDIENCE, DevelopmentConfig
from remit_broker.ports import Clock
from remit_schemas.errors import Code, refusal

CLIENT: Final = "remit-development"
LIFE: Final = 3600
"""Seconds that a token lives."""
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the curve P-256 (SEC 2 §2.4.2)."""


class DevIssuer:
    """The provider at ``url``."""

    def __init__(self, url: str, config: DevelopmentConfig, keys: KeyFiles, clock: Clock) -> None:
        self.url, self._config, self._clock = url, config, clock
        self._secret = keys.local_token
        # From a master key, so that it stays the same over restarts and is no further file to lose.
        drawn = hmac.new(keys.results_key, b"remit development issuer", hashlib.sha512).digest()
        self._key = ec.derive_private_key(int.from_bytes(drawn) % (_ORDER - 1) + 1, ec.SECP256R1())
        public = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        self._kid = hashlib.sha256(repr(sorted(public.items())).encode()).hexdigest()[:16]
        self._jwk = {**public, "kid": self._kid, "use": "sig", "alg": "ES256"}

    def discovery(self) -> dict[str, Any]:
        """The discovery document (OIDC Discovery §3)."""
        return {
            "issuer": self.url,
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks.json",
            "response_types_supported": ["token"],
            "grant_types_supported": ["password"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "token_endpoint_auth_methods_supported": ["client_secret_post"],
            "claims_supported": ["sub", "tenant", "roles", "groups"],
            "remit_development": True,
        }

    def jwks(self) -> dict[str, Any]:
        """The public key."""
        return {"keys": [self._jwk]}

    def token(self, user: str, secret: str) -> dict[str, Any]:
        """The answer of the token endpoint (RFC 6749 §5.1). Refuses UNAUTHENTICATED or UNKNOWN_TARGET."""
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
        now = int(self._clock.now())
        claims = {
            "iss": self.url, "sub": user, "aud": DEV_AUDIENCE, "client_id": CLIENT, "iat": now, "exp": now + LIFE,
            "jti": secrets.token_hex(16), "tenant": known.tenant, "roles": list(known.roles), "groups": list(known.groups),
        }  # fmt: skip
        token = jwt.encode(claims, self._key, "ES256", {"typ": "at+jwt", "kid": self._kid})
        return {"access_token": token, "token_type": "Bearer", "expires_in": LIFE}
