"""Signing keys and key sets: Ed25519 only (RFC 8037, RFC 9864), each key for one use and named by RFC 7638."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, NoReturn

import msgspec
from nacl.bindings import (
    crypto_core_ed25519_is_valid_point,
    crypto_sign,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import BadSignatureError

from remit_schemas.base64url import decode, encode
from remit_schemas.canonical import loads
from remit_schemas.errors import Code, Refusal, refusal

ALG: Final = "Ed25519"
"""The fully specified algorithm name (RFC 9864 §2.2); the polymorphic ``EdDSA`` is not accepted."""

GRANT: Final = "grant"
CHECKPOINT: Final = "checkpoint"

MAX_JWKS: Final = 64 * 1024
SEED_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_POINT_BYTES: Final = 32

_KID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_USE = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_X = re.compile(r"[A-Za-z0-9_-]{43}")
_PRIVATE: Final = ("d", "k", "p", "q", "dp", "dq", "qi", "oth", "priv")
"""Members that hold secrets in any registered key type."""


class PublicKey(msgspec.Struct, frozen=True):
    """A verification key. ``use`` is what it may sign (``grant``, ``checkpoint`` …), ``raw`` its 32 bytes."""

    kid: str
    use: str
    raw: bytes

    @property
    def alg(self) -> str:
        """The one algorithm this key is used with."""
        return ALG

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` (64 bytes) is this key's over ``message`` (RFC 8032 §5.1.7, strict: S < L)."""
        # The library takes signature and message as one string: without this, a short signature would borrow its end
        # from the message.
        if len(signature) != _SIGNATURE_BYTES:
            return False
        try:
            crypto_sign_open(signature + message, self.raw)
        except (BadSignatureError, ValueError):
            return False
        return True

    def to_jwk(self) -> dict[str, str]:
        """The public JWK (RFC 8037 §2) with ``remit_use``."""
        return {
            "kty": "OKP", "crv": "Ed25519", "x": encode(self.raw), "kid": self.kid,
            "alg": ALG, "use": "sig", "remit_use": self.use,
        }  # fmt: skip


class SigningKey:
    """A private key. Its secret shows in no repr, and it cannot be pickled."""

    __slots__ = ("_secret", "public")

    def __init__(self, secret: bytes, public: PublicKey) -> None:
        self._secret = secret
        self.public: Final = public

    @classmethod
    def from_seed(cls, seed: bytes, use: str = GRANT) -> SigningKey:
        """The key of a 32-byte secret seed (RFC 8032 §5.1.5). Raises ``ValueError`` for a malformed seed or use."""
        if len(seed) != SEED_BYTES or not _USE.fullmatch(use):
            raise ValueError("a seed has 32 bytes and a use is one lower-case word")
        raw, secret = crypto_sign_seed_keypair(seed)
        return cls(secret, PublicKey(thumbprint(raw), use, raw))

    @property
    def kid(self) -> str:
        """The thumbprint of the public key."""
        return self.public.kid

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature over ``message`` (deterministic, RFC 8032 §5.1.6)."""
        signed: bytes = crypto_sign(message, self._secret)
        return signed[:_SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"SigningKey({self.kid!r}, use={self.public.use!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a signing key is not pickled")


class KeySet:
    """An immutable set of verification keys, looked up by ``kid``."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Iterable[PublicKey] = ()) -> None:
        """Raises MALFORMED (``keys.kid``, ``keys.reused``) where a kid or a key occurs twice."""
        by_kid: dict[str, PublicKey] = {}
        raws: set[bytes] = set()
        for key in keys:
            if key.kid in by_kid:
                raise _bad("keys.kid", f"two keys have the kid {key.kid!r}")
            # A key that also signs something else would let one kind of statement be taken for another.
            if key.raw in raws:
                raise _bad("keys.reused", f"the key {key.kid!r} is in the set twice")
            by_kid[key.kid] = key
            raws.add(key.raw)
        self._keys = by_kid

    @classmethod
    def from_jwks(cls, jwks: dict[str, Any] | bytes) -> KeySet:
        """A JWK Set (RFC 7517 §5) of Ed25519 public keys, and of nothing else.

        Members that RFC 7517 does not define are ignored, as it demands. Raises MALFORMED or TOO_LARGE: a set that
        mixes in other key types, private keys, keys for other uses or equal kids is refused whole.
        """
        raw = loads(jwks, max_bytes=MAX_JWKS) if isinstance(jwks, bytes) else jwks
        keys = raw.get("keys") if isinstance(raw, dict) else None
        if not isinstance(keys, list):
            raise _bad("keys.set", 'a key set is {"keys": [...]}')
        return cls(_public(jwk) for jwk in keys)

    def get(self, kid: str) -> PublicKey | None:
        """The key of that name, or None."""
        return self._keys.get(kid)

    def to_jwks(self) -> dict[str, list[dict[str, str]]]:
        """The set as a JWK Set."""
        return {"keys": [key.to_jwk() for key in self._keys.values()]}

    def __iter__(self) -> Iterator[PublicKey]:
        return iter(self._keys.values())

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"KeySet({list(self._keys)})"


def thumbprint(raw: bytes) -> str:
    """The JWK thumbprint of an Ed25519 public key (RFC 7638 §3, members of RFC 8037 §2): base64url of SHA-256."""
    return encode(hashlib.sha256(b'{"crv":"Ed25519","kty":"OKP","x":"%s"}' % encode(raw).encode()).digest())


def _public(jwk: Any) -> PublicKey:
    if not isinstance(jwk, dict):
        raise _bad("keys.jwk", "a key is not an object")
    if any(member in jwk for member in _PRIVATE):
        raise _bad("keys.private", "a public key set contains a private or secret key")
    if jwk.get("kty") != "OKP" or jwk.get("crv") != "Ed25519" or jwk.get("alg", ALG) != ALG:
        raise _bad("keys.type", "every key must have kty OKP, crv Ed25519 and alg Ed25519 (or no alg)")
    if jwk.get("use", "sig") != "sig" or jwk.get("key_ops", ["verify"]) != ["verify"]:
        raise _bad("keys.use", "every key must be for verifying signatures")
    kid, x, use = jwk.get("kid"), jwk.get("x"), jwk.get("remit_use", GRANT)
    if not isinstance(kid, str) or not _KID.fullmatch(kid):
        raise _bad("keys.kid", "every key must have a kid of 1 to 128 URL-safe characters")
    if not isinstance(use, str) or not _USE.fullmatch(use):
        raise _bad("keys.use", "remit_use must be one lower-case word")
    return PublicKey(kid, use, _point(kid, x))


def _point(kid: str, x: Any) -> bytes:
    if isinstance(x, str) and _X.fullmatch(x):
        try:
            raw = decode(x.encode())
        except ValueError:
            raw = b""
        # Points of small order verify signatures that nobody made.
        if len(raw) == _POINT_BYTES and crypto_core_ed25519_is_valid_point(raw):
            return raw
    raise _bad("keys.point", f"x of the key {kid!r} is not an Ed25519 public key of 32 bytes")


def _bad(rule: str, message: str) -> Refusal:
    ask = "use the key set as the broker publishes it (/.well-known/jwks.json)"
    return refusal(Code.MALFORMED, message, rule=rule, ask=ask)
