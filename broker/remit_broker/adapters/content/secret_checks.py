"""How a secret is told from what only looks like one."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from typing import Final

from remit_broker.adapters.content.kinds import Check, entropy


def random(bits: float) -> Check:
    return lambda text: entropy(text) >= bits


def mixed(text: bytes) -> bool:
    """Looks drawn rather than written: letters and digits, and little repetition."""
    return entropy(text) >= 3.0 and any(48 <= byte <= 57 for byte in text) and text.upper() != text.lower()


def json_segment(text: bytes) -> bool:
    """Whether the first segment is base64url of a JSON object that names an algorithm: a JOSE header (RFC 7515)."""
    first = text.split(b".", 1)[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(first + b"=" * (-len(first) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and "alg" in header


def numeric_id(text: bytes) -> bool:
    """A Discord token begins with the base64 of the numeric id of the bot."""
    first = text.split(b".", 1)[0]
    try:
        return base64.urlsafe_b64decode(first + b"=" * (-len(first) % 4)).isdigit()
    except (binascii.Error, ValueError):
        return False


_PLACEHOLDERS: Final = (
    b"example",
    b"changeme",
    b"placeholder",
    b"your",
    b"xxxx",
    b"****",
    b"....",
    b"redacted",
    b"dummy",
)


def chosen(text: bytes) -> bool:
    """Neither a placeholder nor a variable: what somebody really put where a password goes."""
    lower = text.lower()
    return not any(word in lower for word in _PLACEHOLDERS) and text[:1] not in b"$<{%[(" and entropy(text) >= 2.0


def password(text: bytes) -> bool:
    """Chosen, and not a word or a piece of code: with letters and digits, without brackets, hardly repeating itself."""
    letters, digits = any(chr(byte).isalpha() for byte in text), any(48 <= byte <= 57 for byte in text)
    code = any(byte in b"()[]{};" for byte in text)
    return letters and digits and not code and entropy(text) >= 2.75 and chosen(text)


def in_url(text: bytes) -> bool:
    return chosen(text) and text.lower() not in (b"password", b"passwd", b"secret")


def checksummed(text: bytes) -> bool:
    """GitHub's and npm's tokens end with the CRC-32 of what stands between the prefix and it, in six digits of base 62."""
    body, _, tail = text.rpartition(b"_")[2], b"", text[-6:]
    return _base62(zlib.crc32(body[:-6])) == tail


def _base62(number: int) -> bytes:
    digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    found = b""
    while number:
        number, rest = divmod(number, 62)
        found = digits[rest : rest + 1] + found
    return found.rjust(6, b"0")


KEYED: Final = (
    r"(?i)^(?:.*[_.-])?(?:pass(?:word|wd|phrase)|pwd|secret|api[_-]?key|access[_-]?key|auth[_-]?token|access[_-]?token"
    r"|refresh[_-]?token|client[_-]?secret|private[_-]?key|secret[_-]?key)$"
)
"""Names of members whose value is a secret by its name alone, if it looks like one."""


def looks_assigned(text: bytes) -> bool:
    """Whether ``text``, the whole value of a member with such a name, is a secret rather than a word or a remark."""
    word = text.isalpha() and (text.islower() or text.isupper() or text.istitle())
    return 8 <= len(text) <= 512 and not word and not any(byte in b" \t\r\n" for byte in text) and chosen(text)
