"""Other ways in which a text reads: without its escapes, without what disguises its letters, decoded from base64 or hex.

A reading is another text and a way back: which bytes of the text it was made from stand for a part of it. What is found in
what was decoded from a run of base64 or hex stands for the whole run.
"""

from __future__ import annotations

import binascii
import html
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import re2  # type: ignore[import-untyped,unused-ignore]

from remit_broker.adapters.content.hidden import MIXED

Back = Callable[[int, int], tuple[int, int]]


class Reading(NamedTuple):
    """``data`` is what the text says, read so; ``back`` gives the bytes of the text for those of ``data``."""

    data: bytes
    back: Back


class Way(NamedTuple):
    """One way to read. ``key`` is found in every text that it can make anything of."""

    key: str
    read: Callable[[bytes], Iterator[Reading]]


def _compile(pattern: str) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    return re2.compile(pattern.encode(), options)


class _Map:
    """Where the parts of a reading come from: each part as it was, or made of something else."""

    def __init__(self) -> None:
        self._made: list[int] = []
        self._parts: list[tuple[int, int, bool]] = []

    def add(self, at: int, start: int, end: int, *, same: bool) -> None:
        """What begins at ``at`` of the reading comes from ``start`` to ``end`` of the text."""
        self._made.append(at)
        self._parts.append((start, end, same))

    def back(self, start: int, end: int) -> tuple[int, int]:
        first = bisect_right(self._made, start) - 1
        last = bisect_right(self._made, max(start, end - 1)) - 1
        from_, _, same = self._parts[first]
        begin = from_ + start - self._made[first] if same else from_
        from_, to, same = self._parts[last]
        return begin, from_ + end - self._made[last] if same else to


# --- Escapes ---------------------------------------------------------------------------------------------------------------

_ENTITIES: Final = (
    "amp|lt|gt|quot|apos|nbsp|lowbar|commat|period|colon|semi|equals|plus|sol|bsol|num|hyphen|dash|Tab|NewLine"
)
_ESCAPE: Final = (
    r"%[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\[uxU]\{[0-9A-Fa-f]{1,6}\}|\\U[0-9A-Fa-f]{8}|\\x[0-9A-Fa-f]{2}"
    r"|\\[0-3][0-7]{2}"
    rf"|&#[0-9]{{1,7}};?|&#[xX][0-9A-Fa-f]{{1,6}};?|&(?:{_ENTITIES});|\\[\\\"'/nrt]|\\\n"
)
_ESCAPES: Final = _compile(_ESCAPE)
_PLAIN: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\n": b""}


def unescaped(data: bytes) -> Iterator[Reading]:
    """Percent encoding, the escapes of JSON, JavaScript, Python and C, and the character references of HTML."""
    made, parts, at = bytearray(), _Map(), 0
    high = 0
    for match in _ESCAPES.finditer(data):
        start, end = match.span()
        if start > at:
            parts.add(len(made), at, start, same=True)
            made += data[at:start]
            high = 0
        value, high = _unescape(data[start:end], high)
        if value:
            parts.add(len(made), start, end, same=False)
            made += value
        at = end
    if at == 0:
        return
    if at < len(data):
        parts.add(len(made), at, len(data), same=True)
        made += data[at:]
    if made:
        yield Reading(bytes(made), parts.back)


def _unescape(text: bytes, high: int) -> tuple[bytes, int]:
    """The bytes that an escape stands for, and the first half of a surrogate pair that waits for its second."""
    if text[:1] == b"%":
        return bytes([int(text[1:], 16)]), 0
    if text[:1] == b"&":
        return html.unescape(text.decode()).encode(errors="surrogatepass"), 0
    if (text[1:2] in b"uU" and len(text) > 2) or text[1:2] == b"x":
        code = int(text[2:].strip(b"{}"), 16)
        if 0xD800 <= code < 0xDC00:
            return b"", code
        if high and 0xDC00 <= code < 0xE000:
            code = 0x10000 + ((high - 0xD800) << 10) + code - 0xDC00
        return chr(min(code, 0x10FFFF)).encode(errors="surrogatepass"), 0
    if text[1:2].isdigit():
        return chr(int(text[1:], 8)).encode(), 0
    return _PLAIN.get(text[1:], text[1:]), 0


# --- Letters that look like others ------------------------------------------------------------------------------------------

_LOOKS: Final = str.maketrans(
    "\u0410\u0412\u0415\u0405\u0406\u0408\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u050c"
    "\u051c\u051a\u0430\u0435\u0455\u0456\u0458\u043e\u0440\u0441\u0443\u0445\u04bb\u0501\u051b\u051d"
    "\u0475\u0437\u04cf\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5"
    "\u03a7\u03bf\u03b9\u03bd\u03c1\u03c5\u03b1\u0251\u0261\u0131\u2113\u029f\u2044\u2215\u2013\u2014"
    "\u2010\u2011\u2212\u2018\u2019\u201c\u201d\ua4d0\ua4d1\ua4da\ua4d3\ua4ec",
    "ABESIJKMHOPCTYXGWQaesijopcyxhdqwv3lABEZHIKMNOPTYXoivpuaagilL//-----''\"\"BPCDY",
)  # fmt: skip
_HIDDEN_ASCII: Final[dict[int, str]] = {0xE0000 + code: chr(code) for code in range(0x20, 0x7F)} | {
    # Variation selectors 17 to 256 carry the bytes 16 to 255.
    0xE0100 + code - 16: chr(code)
    for code in range(0x20, 0x7F)
}
_LETTERS: Final[dict[int, int | str | None]] = {**_LOOKS, **_HIDDEN_ASCII}
_ODD: Final = _compile(
    rf"{MIXED}|[A-Za-z](?:\xd0|\xd1|\xce|\xcf|\xc9|\xe2)|(?:[\xd0\xd1\xce\xcf\xc9][\x80-\xbf])[A-Za-z0-9]"
    rf"|\xf3\xa0|\xea\x93|\xc4\xb1|\xe2"
)


def undisguised(data: bytes) -> Iterator[Reading]:
    """ASCII of what looks like it: NFKD without accents and invisible characters, other alphabets' letters of the same shape."""
    text = data.decode(errors="replace") if b"\xed" not in data else data.decode(errors="surrogatepass")
    # Only what needs it is read letter by letter, which takes long.
    plain = _ascii(text) if _ODD.search(data) else unicodedata.normalize("NFKD", text).encode("ascii", "ignore")
    if not plain:
        return
    parts: list[_Map] = []

    def back(start: int, end: int) -> tuple[int, int]:
        if not parts:
            parts.append(_letters(text))
        return parts[0].back(start, end)

    yield Reading(plain, back)


def _ascii(text: str) -> bytes:
    return unicodedata.normalize("NFKD", text.translate(_LETTERS)).encode("ascii", "ignore")


def _letters(text: str) -> _Map:
    """Letter by letter, the same as at once: NFKD moves only marks, which are dropped."""
    parts, made, at = _Map(), 0, 0
    for letter in text:
        size = len(letter.encode(errors="surrogatepass"))
        if reads := len(_ascii(letter)):
            parts.add(made, at, at + size, same=False)
            made += reads
        at += size
    return parts


# --- Base64 and hex -----------------------------------------------------------------------------------------------------------

_BASE64: Final = _compile(r"(?:[0-9A-Za-z+/_-]{40,}[ \t]*\r?\n[ \t]*)*[0-9A-Za-z+/_-]{20,}={0,2}")
_HEX: Final = _compile(r"[0-9A-Fa-f]{24,}|\b(?:(?:0x|\\x)?[0-9A-Fa-f]{2}(?:, ?|[ :-])){11,}(?:0x|\\x)?[0-9A-Fa-f]{2}\b")
_PRINTED: Final = _compile(r"[\t\n\r -~]{12,}")
_PRINTABLE: Final = bytes([9, 10, 13, *range(32, 127), *range(128, 256)])
_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_SPACE: Final = b" \t\r\n"


def decoded64(data: bytes) -> Iterator[Reading]:
    """Base64 and base64url, over several lines too, and where something of their alphabet stands right before it."""
    for match in _BASE64.finditer(data):
        start, end = match.span()
        # Text in base64 has letters of both cases: what has not is a path, a name or a number.
        if data[start:end].islower() or data[start:end].isupper():
            continue
        run = data[start:end].translate(_TO_STANDARD, _SPACE).rstrip(b"=")
        for skip in range(4):
            part = run[skip:]
            part = part[:-1] if len(part) % 4 == 1 else part
            try:
                found, whole = _text(binascii.a2b_base64(part + b"=" * (-len(part) % 4)))
            except binascii.Error:
                continue
            if found:
                yield Reading(found, _whole(start, end))
            if whole:
                break


def decoded16(data: bytes) -> Iterator[Reading]:
    """Hexadecimal digits, together or apart."""
    for match in _HEX.finditer(data):
        start, end = match.span()
        run = data[start:end].replace(b"0x", b"").replace(b"\\x", b"").translate(None, b" ,:-")
        for skip in (0, 1):
            part = run[skip : len(run) - (len(run) - skip) % 2]
            found, whole = _text(binascii.unhexlify(part))
            if found:
                yield Reading(found, _whole(start, end))
            if whole:
                break


def _whole(start: int, end: int) -> Back:
    return lambda _first, _last: (start, end)


def _text(data: bytes) -> tuple[bytes, bool]:
    """What is text in ``data``, and whether all of it is: UTF-8, UTF-16, or what is printable between other bytes."""
    if not data.translate(None, _PRINTABLE):
        try:
            data.decode()
        except UnicodeDecodeError:
            pass
        else:
            return data, True
    for zeros in (0, 1):
        other = data[1 - zeros :: 2]
        if len(data) >= 16 and data[zeros::2].count(0) * 10 >= len(data) * 4 and not other.translate(None, _PRINTABLE):
            return other, True
    return b"\n\xff\n".join(match[0] for match in _PRINTED.finditer(data)), False


WAYS: Final[tuple[Way, ...]] = (
    Way(_ESCAPE, unescaped),
    Way(
        r"[0-9A-Za-z](?:\xcc[\x80-\xbf]|\xcd[\x80-\xaf]|\xe2\x80[\x80-\x8f\xaa-\xaf]|\xe2\x81[\xa0-\xaf]"
        r"|\xc2[\xa0\xad]|\xe3\x80\x80|\xef\xbb\xbf|\xef\xb8[\x80-\x8f])"
        r"|[A-Za-z]\xc3[\x80-\xbf]|\xc3[\x80-\xbf][A-Za-z]|[A-Za-z][\xc4-\xc9\xe1][\x80-\xbf]|[\xc4-\xc9\xe1][\x80-\xbf]{1,2}[A-Za-z]"
        r"|\xef\xbc[\x90-\xba]|\xef\xbd[\x81-\x9a]|\xef\xbc\xa0|\xf0\x9d[\x90-\x9f]|\xf0\x9f[\x84\x85]"
        r"|\xe2[\x92\x93][\x80-\xbf]|\xf3\xa0[\x80\x81\x84-\x87]"
        rf"|\xef\xb8[\x80-\x8f](?:\xef\xb8|\xf3\xa0)|{MIXED}|[A-Za-z](?:\xd0|\xd1|\xce|\xcf)|(?:\xd0[\x80-\xbf]"
        rf"|\xd1[\x80-\xbf]|\xce[\x80-\xbf]|\xcf[\x80-\xbf])[A-Za-z0-9]",
        undisguised,
    ),
    Way(r"[0-9A-Za-z+/]{20}", decoded64),
    Way(r"[0-9A-Fa-f]{16}|(?:[0-9A-Fa-f]{2}(?:, ?|[ :-])(?:0x|\\x)?){4}", decoded16),
)
