"""When one name can be taken for another: by a person who reads it, or by a model that was told of both. Pure.

A name's skeleton is what is left of it when everything a reader does not tell apart is made the same: compatibility forms (NFKC),
case, marks and characters that are not shown, and letters of one shape (after Unicode Technical Standard 39, section 4, for the
letters that names of tools are made of; not its whole table).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

_SHAPES: Final[dict[str, str]] = {
    "a": "\u0430\u0251\u03b1",
    "b": "\u042c\u0185",
    "c": "\u0441\u03f2\u1d04",
    "d": "\u0501\u0257",
    "e": "\u0435\u04bd\u212e",
    "g": "\u0261\u0581",
    "h": "\u04bb\u0570",
    "i": "\u0456\u0269\u03b9",
    "j": "\u0458\u03f3",
    "k": "\u03ba\u043a",
    "l": "1|\u04cf\u2113\u026b",
    "m": "\u043c\u1e43",
    "n": "\u0578\u057c\u043f",
    "o": "0\u043e\u03bf\u0585\u03c3",
    "p": "\u0440\u03c1",
    "q": "\u051b\u0563",
    "r": "\u0433\u1d26",
    "s": "\u0455\ua731",
    "t": "\u0442\u03c4",
    "u": "\u03c5\u057d\u1d1c",
    "v": "\u0475\u03bd",
    "w": "\u051d\u0461",
    "x": "\u0445\u03c7",
    "y": "\u0443\u03b3\u04af",
    "z": "\u1d22",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2212\ufe58",
    "/": "\u2044\u2215\u29f8",
    ".": "\u2024",
}
_LIKE: Final[dict[int, str]] = {ord(one): plain for plain, all_ in _SHAPES.items() for one in all_}
_PAIR: Final = ("rn", "m")
"""Two letters side by side that look like one."""


def skeleton(name: str) -> str:
    """What a reader sees of ``name``; two names with one skeleton look alike."""
    shown = "".join(char for char in name if not hides(char))
    plain = unicodedata.normalize("NFKC", shown).casefold().translate(_LIKE)
    bare = "".join(char for char in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(char))
    # A capital I has become an i by now, which is what it is taken for in most names.
    bare = bare.translate(_LIKE)
    return bare.replace(*_PAIR)


def hides(char: str) -> bool:
    """Whether ``char`` is read by a machine and not shown: control, format, private, unassigned, and separators beside the space."""
    return char != " " and (not char.isprintable() or char in "\u115f\u1160\u3164\uffa0" or _variation(char))


def hidden(text: str) -> tuple[str, ...]:
    """The characters of ``text`` that are not shown, as ``U+200B``, each once."""
    return tuple(dict.fromkeys(f"U+{ord(char):04X}" for char in text if hides(char)))


def twins(names: Iterable[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of ``names`` each that looks like one before it, or like one of ``known`` (skeleton → name), and which that is."""
    seen = dict(known or {})
    found: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(skeleton(name), name)
        if other != name:
            found[name] = other
    return found


def _variation(char: str) -> bool:
    return "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
