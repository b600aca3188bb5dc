"""Time stamps of RFC 3161 over checkpoints: what is asked of an authority, and whether an answer is one. Pure.

Who signed an answer is not looked at here: that is for whoever verifies evidence, with the certificate that they bring.
"""

from __future__ import annotations

import hashlib
from typing import Final

_SHA256: Final = bytes.fromhex("300d06096086480165030402010500")
"""AlgorithmIdentifier of SHA-256, with NULL."""
_SEQUENCE, _INTEGER, _OCTETS = 0x30, 0x02, 0x04


def ask(note: str, nonce: int) -> bytes:
    """The TimeStampReq for a checkpoint, a signed note (RFC 3161 §2.4.1): SHA-256 of it, a number, and that certificates are wanted."""
    imprint = _der(_SEQUENCE, _SHA256 + _der(_OCTETS, _imprint(note)))
    return _der(_SEQUENCE, _integer(1) + imprint + _integer(nonce) + b"\x01\x01\xff")


def answers(answer: bytes, note: str, nonce: int) -> None:
    """Raises ``ValueError``, in words, for what is no TimeStampResp to what :func:`ask` asks."""
    response = _inside(answer, _SEQUENCE)
    status, token = _parts(response[0], 2, "it is no answer")
    granted = _parts(status[1], 1, "it has no status")[0]
    if granted not in ((_INTEGER, b"\x00"), (_INTEGER, b"\x01")):
        raise ValueError("it grants no stamp")
    content = _parts(_parts(token[1], 2, "it has no token")[1][1], 1, "it has no signed data")[0][1]
    signed = _parts(content, 3, "it signs nothing")[2][1]
    stamp = _inside(_inside(_parts(signed, 2, "it signs nothing")[1][1], _OCTETS)[0], _SEQUENCE)[0]
    fields = _parts(stamp, 5, "its stamp is none")
    alg, imprint = _parts(fields[2][1], 2, "its stamp is over nothing")
    # INVARIANT: a stamp over something else is none of this checkpoint (test_a_stamp_over_something_else_is_not_kept).
    if alg[1] not in (_SHA256[2:], _SHA256[2:-2]) or imprint != (_OCTETS, _imprint(note)):
        raise ValueError("its stamp is over something else")
    if not any(field == (_INTEGER, _integer(nonce)[2:]) for field in fields[5:]):
        raise ValueError("its stamp answers another request")


def _imprint(note: str) -> bytes:
    return hashlib.sha256(note.encode()).digest()


def _integer(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([0x81, size])
    return bytes([tag]) + length + content


def _parts(data: bytes, least: int, otherwise: str) -> list[tuple[int, bytes]]:
    """The elements one after another: tag and content of each. Raises ``ValueError`` for fewer than ``least``."""
    found = []
    while data:
        content, data, tag = _one(data)
        found.append((tag, content))
    if len(found) < least:
        raise ValueError(otherwise)
    return found


def _inside(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """The content of the first element, which has ``tag``, and what follows it."""
    content, rest, found = _one(data)
    if found != tag:
        raise ValueError("it is of another form")
    return content, rest


def _one(data: bytes) -> tuple[bytes, bytes, int]:
    """Content, what follows, and tag of the first element (X.690 §8.1, definite lengths alone)."""
    if len(data) < 2:
        raise ValueError("it is cut off")
    tag, size, at = data[0], data[1], 2
    if size >= 128:
        count = size - 128
        if not 1 <= count <= 3 or len(data) < 2 + count:
            raise ValueError("its form is none")
        size, at = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if len(data) < at + size:
        raise ValueError("it is cut off")
    return data[at : at + size], data[at + size :], tag
