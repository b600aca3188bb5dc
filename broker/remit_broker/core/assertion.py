"""What an agent proves itself with over HTTP (RFC 7523): a JWT signed with the key that it connects to the bus with. Pure."""

from __future__ import annotations

import json
from typing import Final

from remit_broker.core import nkey
from remit_schemas.base64url import encode
from remit_schemas.names import DEFAULT_TENANT

LIFE: Final = 60
"""Seconds that one lives."""


def client_id(agent: str, tenant: str = DEFAULT_TENANT) -> str:
    """The ``client_id`` of an agent: its name; of another tenant than the default one, with that before it."""
    return agent if tenant == DEFAULT_TENANT else f"{tenant}/{agent}"


def client_assertion(seed: str, client: str, audience: str, now: int, jti: str) -> str:
    """A ``client_assertion`` of ``client``, signed with the nkey ``seed``, for the server ``audience``. ``jti`` is used once."""
    claims = {"iss": client, "sub": client, "aud": audience, "iat": now, "exp": now + LIFE, "jti": jti}
    parts = ({"alg": "EdDSA", "typ": "JWT", "kid": nkey.public_of("U", seed)}, claims)
    signing = ".".join(encode(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
    return f"{signing}.{encode(nkey.sign('U', seed, signing.encode()))}"
