"""NATS nkeys: Ed25519 and X25519 keys in the text form the NATS server reads.

The form is base32 without padding over prefix ‖ key ‖ CRC-16/XMODEM, little-endian (nats-io/nkeys, ``strkey.go``); a seed
has the byte ``S`` and the key's own prefix in front. Nothing here draws randomness: seeds are passed in.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final, Literal

from nacl.bindings import crypto_sign, crypto_sign_BYTES, crypto_sign_seed_keypair
from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey
from nacl.signing import VerifyKey

Prefix = Literal["A", "N", "U", "X"]
"""Account, server, user, and curve (X25519) keys: the first letter of the public key."""

_BYTE: Final[dict[Prefix, int]] = {"A": 0, "N": 13 << 3, "U": 20 << 3, "X": 23 << 3}
_SEED: Final = 18 << 3
_XKEY_VERSION: Final = b"xkv1"
NONCE_BYTES: Final = 24
"""Length of the nonce of :func:`seal` (XSalsa20)."""


class BadKey(ValueError):  # noqa: N818 - what it is
    """A text that is not the nkey it should be, or bytes that do not open."""


def _encode(raw: bytes) -> str:
    checked = raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(checked).decode().rstrip("=")


def _decode(text: str) -> bytes:
    try:
        checked = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        raise BadKey("not base32") from None
    raw, crc = checked[:-2], checked[-2:]
    # Encoding again refuses the second spellings that spare bits of base32 allow: one key has one text.
    if binascii.crc_hqx(raw, 0).to_bytes(2, "little") != crc or _encode(raw) != text:
        raise BadKey("the checksum does not match")
    return raw


def public_text(prefix: Prefix, key: bytes) -> str:
    """The text of a 32-byte public key."""
    if len(key) != 32:
        raise BadKey("a public key has 32 bytes")
    return _encode(bytes([_BYTE[prefix]]) + key)


def public_bytes(prefix: Prefix, text: str) -> bytes:
    """The 32 bytes of a public key of exactly this kind. Raises :class:`BadKey`."""
    raw = _decode(text)
    if len(raw) != 33 or raw[0] != _BYTE[prefix]:
        raise BadKey(f"not a public {prefix} key")
    return raw[1:]


def is_public(prefix: Prefix, text: str) -> bool:
    """Whether ``text`` is the text of a public key of this kind."""
    try:
        public_bytes(prefix, text)
    except BadKey:
        return False
    return True


def seed_text(prefix: Prefix, seed: bytes) -> str:
    """The text (``SU…``, ``SA…``, ``SX…``) of a 32-byte seed."""
    if len(seed) != 32:
        raise BadKey("a seed has 32 bytes")
    kind = _BYTE[prefix]
    return _encode(bytes([_SEED | kind >> 5, (kind & 31) << 3]) + seed)


def seed_bytes(prefix: Prefix, text: str) -> bytes:
    """The 32 bytes of a seed of exactly this kind. Raises :class:`BadKey`, which never contains the text."""
    raw = _decode(text)
    if len(raw) != 34 or raw[0] & 0xF8 != _SEED or (raw[0] & 7) << 5 | raw[1] >> 3 != _BYTE[prefix]:
        raise BadKey(f"not the seed of a {prefix} key")
    return raw[2:]


def public_of(prefix: Prefix, seed: str) -> str:
    """The public text of a seed's key."""
    raw = seed_bytes(prefix, seed)
    if prefix == "X":
        return public_text(prefix, bytes(PrivateKey(raw).public_key))
    return public_text(prefix, crypto_sign_seed_keypair(raw)[0])


def sign(prefix: Prefix, seed: str, data: bytes) -> bytes:
    """The 64-byte Ed25519 signature (RFC 8032) of ``data``."""
    _, secret = crypto_sign_seed_keypair(seed_bytes(prefix, seed))
    return crypto_sign(data, secret)[:crypto_sign_BYTES]


def verify(prefix: Prefix, public: str, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is ``public``'s over ``data``. False for every malformed input."""
    try:
        VerifyKey(public_bytes(prefix, public)).verify(data, signature)
    except (BadKey, CryptoError, ValueError, TypeError):
        return False
    return True


def open_sealed(seed: str, sender: str, data: bytes) -> bytes:
    """Open what ``sender`` (a public ``X`` key) sealed for the ``X`` key of ``seed``. Raises :class:`BadKey`."""
    if data[:4] != _XKEY_VERSION:
        raise BadKey("not sealed with an xkey")
    box = Box(PrivateKey(seed_bytes("X", seed)), PublicKey(public_bytes("X", sender)))
    try:
        return bytes(box.decrypt(data[4:]))
    except (CryptoError, ValueError, TypeError):
        raise BadKey("sealed for another key, or changed") from None


def seal(seed: str, receiver: str, data: bytes, nonce: bytes) -> bytes:
    """Seal ``data`` for ``receiver``; ``nonce`` are :data:`NONCE_BYTES` random bytes, used once."""
    box = Box(PrivateKey(seed_bytes("X", seed)), PublicKey(public_bytes("X", receiver)))
    return _XKEY_VERSION + bytes(box.encrypt(data, nonce))
