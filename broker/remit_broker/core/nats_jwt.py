"""The JWTs of a NATS server's auth callout (algorithm ``ed25519-nkey``): read strictly, written minimally.

They never leave the exchange between the NATS server and the callout and have nothing to do with grants: another key,
another algorithm name, another audience. Source: nats-io/jwt v2 (``claims.go``, ``authorization_claims.go``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any, Final

import msgspec

from remit_broker.core import nkey
from remit_schemas.canonical import loads
from remit_schemas.errors import Refusal

ALGORITHM: Final = "ed25519-nkey"
REQUEST_AUDIENCE: Final = "nats-authorization-request"
MAX_BYTES: Final = 64 * 1024
"""Largest request that is read. A CONNECT line is capped by the server's ``max_control_line`` long before."""


class JwtError(ValueError):
    """A JWT that is refused; the message says at which step."""


class ConnectRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the server asks about one connection: ``nkey`` and ``signature`` are what the client claims, nothing is proved yet."""

    server: str
    server_xkey: str
    user: str
    nonce: str
    nkey: str
    signature: str
    name: str
    host: str


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def b64_any(text: str) -> bytes:
    """Base64 in either alphabet, padded or not (NATS clients differ in how they send a signature). Raises :class:`JwtError`."""
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise JwtError("not base64") from None


def encode(claims: dict[str, Any], issuer: nkey.Prefix, seed: str, now: float) -> str:
    """Sign ``claims`` (``sub``, ``aud``, ``nats`` …) with the key of ``seed``; ``iss``, ``iat`` and ``jti`` are filled in."""
    body = {**claims, "iss": nkey.public_of(issuer, seed), "iat": int(now)}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    parts = ({"typ": "JWT", "alg": ALGORITHM}, body)
    signing_input = ".".join(_b64(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
    return f"{signing_input}.{_b64(nkey.sign(issuer, seed, signing_input.encode()))}"


def _json(part: str) -> dict[str, Any]:
    try:
        value = loads(b64_any(part), max_bytes=MAX_BYTES, max_depth=16)
    except Refusal as error:
        raise JwtError(error.body.message) from None
    if not isinstance(value, dict):
        raise JwtError("not an object")
    return value


def decode(token: str, issuer: nkey.Prefix) -> dict[str, Any]:
    """The claims of a JWT whose signature is that of its own ``iss``, which must be a key of this kind. Raises :class:`JwtError`.

    The caller decides whether that issuer is one to believe.
    """
    parts = token.split(".")
    if len(token) > MAX_BYTES or len(parts) != 3:
        raise JwtError("not a compact JWT")
    header, claims = _json(parts[0]), _json(parts[1])
    if header != {"typ": "JWT", "alg": ALGORITHM}:
        raise JwtError("an unexpected header")
    who = claims.get("iss")
    if not isinstance(who, str) or not nkey.verify(issuer, who, f"{parts[0]}.{parts[1]}".encode(), b64_any(parts[2])):
        raise JwtError("the signature is not the issuer's")
    return claims


def connect_request(token: str, now: float) -> ConnectRequest:
    """The request of a NATS server, checked as far as it can be by itself. Raises :class:`JwtError`."""
    claims = decode(token, "N")
    if claims.get("aud") != REQUEST_AUDIENCE:
        raise JwtError("another audience")
    expires = claims.get("exp", now)
    if not isinstance(expires, int | float) or expires < int(now):
        raise JwtError("expired")
    body = _object(claims, "nats")
    server, client, options = _object(body, "server_id"), _object(body, "client_info"), _object(body, "connect_opts")
    if body.get("type") != "authorization_request" or _text(server, "id") != claims["iss"]:
        raise JwtError("not the request of the server that signed it")
    user = _text(body, "user_nkey")
    if not nkey.is_public("U", user):
        raise JwtError("no user key to answer for")
    return ConnectRequest(
        server=claims["iss"],
        server_xkey=_text(server, "xkey"),
        user=user,
        nonce=_text(client, "nonce"),
        nkey=_text(options, "nkey"),
        signature=_text(options, "sig"),
        name=_text(options, "name"),
        host=_text(client, "host"),
    )


def _object(parent: dict[str, Any], key: str) -> dict[str, Any]:
    value = parent.get(key)
    if not isinstance(value, dict):
        raise JwtError(f"no {key}")
    return value


def _text(parent: dict[str, Any], key: str) -> str:
    value = parent.get(key, "")
    if not isinstance(value, str):
        raise JwtError(f"{key} is no text")
    return value
