"""The public keys of an issuer as it publishes them (RFC 7517), each for the algorithms that fit it and no other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from remit_schemas.canonical import loads
from remit_schemas.errors import Refusal

MAX_JWKS: Final = 256 * 1024
MAX_KEYS: Final = 64
RSA_BITS: Final = range(2048, 8193)
"""Shorter ones can be broken (RFC 7518 §3.3), longer ones only cost time."""

_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_FITS: Final[dict[str, tuple[str, str]]] = {
    **{alg: ("RSA", "") for alg in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")},
    "ES256": ("EC", "P-256"), "ES384": ("EC", "P-384"), "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"), "Ed25519": ("OKP", "Ed25519"),
}  # fmt: skip
"""Which key (``kty``, ``crv``) an algorithm takes."""


class BadKeys(Exception):  # noqa: N818 - a finding about a document
    """A key set that cannot be used at all."""


class IssuerKeys:
    """An immutable key set."""

    def __init__(self, jwks: Iterable[dict[str, Any]]) -> None:
        self._jwks = tuple(jwks)
        self._made: dict[tuple[int, str], jwt.PyJWK | None] = {}

    @classmethod
    def parse(cls, data: bytes) -> IssuerKeys:
        """Raises :class:`BadKeys`. Keys that cannot be used here (encryption, other curves) are passed over."""
        try:
            raw = loads(data, max_bytes=MAX_JWKS)
        except Refusal as no:
            raise BadKeys(f"the key set is refused: {no.body.message}") from None
        keys = raw.get("keys") if isinstance(raw, dict) else None
        if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
            raise BadKeys('the key set is not {"keys": […]}')
        if len(keys) > MAX_KEYS:
            raise BadKeys(f"the key set has more than {MAX_KEYS} keys")
        # Whoever publishes a secret has lost it: nothing that it signs proves anything.
        if any(_PRIVATE & key.keys() for key in keys):
            raise BadKeys("the key set publishes a private or secret key")
        return cls(key for key in keys if _signs(key))

    def __len__(self) -> int:
        return len(self._jwks)

    def knows(self, kid: str | None, alg: str) -> bool:
        """Whether there is a key for this."""
        return bool(self._candidates(kid, alg))

    def verifies(self, kid: str | None, alg: str, signing_input: bytes, signature: bytes) -> bool:
        """Whether the one key of that name and algorithm signed it. Two keys of one name, or several without a name, sign nothing."""
        found = self._candidates(kid, alg)
        # INVARIANT: which key is tried is never up to the token (test_two_keys_of_one_name_verify_nothing).
        if len(found) != 1 or (key := self._key(found[0], alg)) is None:
            return False
        try:
            return bool(key.Algorithm.verify(signing_input, key.key, signature))
        except Exception:  # a signature of an impossible form is none
            return False

    def _candidates(self, kid: str | None, alg: str) -> list[int]:
        kty, crv = _FITS[alg]
        return [
            index
            for index, key in enumerate(self._jwks)
            # INVARIANT: the key says which algorithm (test_a_key_is_used_with_its_own_algorithm_alone).
            if key.get("kty") == kty
            and (not crv or key.get("crv") == crv)
            and _same_alg(key.get("alg", alg), alg)
            and (kid is None or key.get("kid") == kid)
        ]

    def _key(self, index: int, alg: str) -> jwt.PyJWK | None:
        at = (index, alg)
        if at not in self._made:
            try:
                # PyJWT knows the algorithm of RFC 9864 by its older name.
                made = jwt.PyJWK.from_dict(self._jwks[index], "EdDSA" if alg == "Ed25519" else alg)
            except (jwt.PyJWTError, ValueError, TypeError, KeyError):
                made = None
            if made is not None and isinstance(made.key, RSAPublicKey) and made.key.key_size not in RSA_BITS:
                made = None
            self._made[at] = made
        return self._made[at]


def _same_alg(said: Any, alg: str) -> bool:
    # A document may say anything: what cannot be compared is another algorithm.
    return said == alg or (said, alg) in (("EdDSA", "Ed25519"), ("Ed25519", "EdDSA"))


def _signs(key: dict[str, Any]) -> bool:
    operations = key.get("key_ops", ["verify"])
    return key.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
