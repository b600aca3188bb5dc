"""base64url without padding (RFC 7515 §2), in exactly one form per byte string."""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from typing import Final

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_TO_URL = bytes.maketrans(b"+/", b"-_")
_PADDING: Final = (b"", b"", b"==", b"=")


def encode(data: bytes) -> str:
    """The text of ``data``."""
    return _encode(data).decode()


def decode(text: bytes) -> bytes:
    """The bytes whose text is exactly ``text``. Raises ``ValueError`` where there are none.

    INVARIANT: one byte string has one text: no padding, no white space, no foreign character, no non-zero unused bits
    (RFC 4648 §3.5), so a token cannot be rewritten and stay the same one (test_non_canonical_base64url_is_refused).
    """
    raw = a2b_base64(text.translate(_TO_STANDARD) + _PADDING[len(text) % 4])
    # The decoder skips what it does not know; encoding again shows whether it skipped anything.
    if _encode(raw) != text:
        raise ValueError("not canonical base64url")
    return raw


def _encode(data: bytes) -> bytes:
    return b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=")
