"""JSON as Remit accepts it and as Remit hashes it.

Accepting is strict (RFC 8259 §4 leaves duplicate names open; we refuse them, and NaN, and what exceeds the caps);
hashing is over the canonical form of RFC 8785.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Final, NoReturn

import msgspec
import rfc8785

from remit_schemas.errors import Code, refusal

MAX_DEPTH: Final = 64
"""Deepest nesting of arrays and objects that is accepted."""

MAX_INTEGER: Final = 2**53 - 1
"""Integers beyond ± this are not interoperable (RFC 8785 §3.2.2.3, RFC 7493 §2.2) and are refused."""


_encoder = msgspec.json.Encoder(order="sorted")


def canonical(value: Any) -> bytes:
    """The RFC 8785 form of ``value``. Raises ``ValueError`` for what it cannot represent (NaN, large integers)."""
    # For nearly everything that is hashed here the two encoders agree to the byte and one is ten times as fast
    # (test_both_encoders_agree); what they might differ in goes to the one that is written for the standard.
    return _encoder.encode(value) if _is_simple(value) else rfc8785.dumps(value)


def canonical_document(value: Any) -> bytes:
    """:func:`canonical` for what a JSON parser returned, several times as fast: other types are not looked for."""
    data = quick(value)
    return canonical(value) if data is None else data


def quick(value: Any) -> bytes | None:
    """The RFC 8785 form of JSON values or a struct of them where it is certain without looking at each; else None.

    It is certain where the text is ASCII (names are then in the same order in every encoding) and reads as plain.
    """
    try:
        data = _encoder.encode(value)
        if not data.isascii():
            return None
        _read_plain(data)
    except (ValueError, RecursionError):
        return None
    return data


_SHALLOW: Final = 6
_Whole = Annotated[int, msgspec.Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)]


def _plain_type(levels: int) -> Any:
    """Text, whole interoperable numbers, booleans and null, nested ``levels`` deep."""
    leaf = str | bool | _Whole | None
    below: Any = leaf
    for _ in range(levels):
        below = leaf | list[below] | dict[str, below]
    return below


_read_plain = msgspec.json.Decoder(_plain_type(_SHALLOW)).decode
"""Reads what is nearly always sent, and refuses what would need a closer look: floats, large integers, deep nesting."""

_TEXT: Final = {str}


def _is_simple(value: Any) -> bool:
    """Whether ``value`` holds only ASCII names, strings, booleans, null and interoperable integers."""
    waiting = [value]
    for item in waiting:
        kind = type(item)
        if kind is str:
            # A lone surrogate has no UTF-8 form: the standard's encoder says so in its own words.
            if not item.isascii() and not _encodes(item):
                return False
        elif kind is int:
            if not -MAX_INTEGER <= item <= MAX_INTEGER:
                return False
        elif kind is dict:
            if item and (set(map(type, item)) != _TEXT or not "".join(item).isascii()):
                return False
            waiting.extend(item.values())
        elif kind is list or kind is tuple:
            waiting.extend(item)
        elif kind is not bool and item is not None:
            return False
    return True


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def digest(data: bytes) -> str:
    """Lower-case hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def _constant(name: str) -> NoReturn:
    raise refusal(Code.MALFORMED, f"{name} is not JSON", rule="json.number", ask="send finite numbers only")


def _integer(text: str) -> int:
    # Before int(): converting a million digits is itself an attack.
    if len(text) > 17 or not -MAX_INTEGER <= (value := int(text)) <= MAX_INTEGER:
        raise refusal(
            Code.MALFORMED, "an integer beyond 2^53-1", rule="json.number", ask="send large integers as strings"
        )
    return value


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise refusal(Code.MALFORMED, "a number out of range", rule="json.number", ask="send finite numbers only")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise refusal(
            Code.MALFORMED, "an object has the same name twice", rule="json.duplicate", ask="send each name once"
        )
    return value


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float, strict=True
)


def _depth_within(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(v for v in item.values() if isinstance(v, dict | list))
            elif isinstance(item, list):
                below.extend(v for v in item if isinstance(v, dict | list))
        if not below:
            return True
        level = below
    return False


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


_ODD: Final = object()
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def _plain_document(data: bytes) -> Any:
    """The value of a document that is certain to be strict, or ``_ODD``: then only the strict parser can tell.

    It is certain where writing the value again gives the same bytes (so no name comes twice and nothing follows) and the
    value holds nothing but plain names, text and interoperable integers. This is ten times as fast, and what programs
    send is nearly always so.
    """
    try:
        value = _read_plain(data)
        return value if _encode(value) == data else _ODD
    except msgspec.ValidationError:
        pass
    except ValueError:
        return _ODD
    try:
        value = _decode(data)
        return value if _encode(value) == data and _is_simple(value) else _ODD
    except (ValueError, RecursionError):
        return _ODD


def loads(data: bytes, *, max_bytes: int, max_depth: int = MAX_DEPTH) -> Any:
    """Parse untrusted JSON.

    Raises :class:`~remit_schemas.errors.Refusal` with ``TOO_LARGE`` over ``max_bytes`` (checked before parsing) or
    ``MALFORMED`` for anything that is not one strict, UTF-8 JSON document no deeper than ``max_depth``.
    """
    if len(data) > max_bytes:
        raise refusal(
            Code.TOO_LARGE, f"{len(data)} bytes, at most {max_bytes} are accepted", rule="json.size",
            ask="send less, or send a reference instead of the content",
        )  # fmt: skip
    # INVARIANT: the short way accepts nothing that the long way refuses or reads otherwise (test_the_short_way_is_exact).
    if data.count(b"{") + data.count(b"[") <= max_depth and (known := _plain_document(data)) is not _ODD:
        return known
    try:
        value = _decoder.decode(data.decode())
    except UnicodeDecodeError:
        raise refusal(Code.MALFORMED, "not UTF-8", rule="json.encoding", ask="send UTF-8") from None
    except RecursionError:
        raise refusal(
            Code.MALFORMED, "nested too deeply", rule="json.depth", ask=f"nest at most {max_depth} levels"
        ) from None
    except ValueError as error:
        raise refusal(
            Code.MALFORMED, "not a JSON document", rule="json.syntax", ask="send one JSON document", cause=str(error)
        ) from None
    if isinstance(value, dict | list) and not _depth_within(value, max_depth):
        raise refusal(Code.MALFORMED, "nested too deeply", rule="json.depth", ask=f"nest at most {max_depth} levels")
    # INVARIANT: every text that is accepted has bytes, so that it can be scanned, hashed and recorded
    # (test_text_that_is_not_unicode_is_refused_beside_a_good_grant; RFC 7493 §2.1, RFC 8259 §8.2).
    if _SURROGATE.search(data) and not _is_unicode(value):
        raise refusal(
            Code.MALFORMED, "half of a surrogate pair", rule="json.encoding", ask="send text without lone surrogates"
        )
    return value
