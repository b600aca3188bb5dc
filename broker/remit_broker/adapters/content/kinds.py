"""What one kind of finding looks like, and the helpers that the tables of kinds share.

A pattern is RE2 over the bytes of UTF-8 text and uses ASCII classes only. Where it has a group, the group is what was
found and the rest says what makes it that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

Check = Callable[[bytes], bool]


class Kind(NamedTuple):
    """One kind of finding. Kinds earlier in a table win where two of one class match the same bytes."""

    name: str
    """``secret.npm_token``: the part before the first dot is its class."""
    pattern: str
    key: str
    """A cheap pattern that is found wherever ``pattern`` is: what holds no key of any kind is searched once and no more."""
    check: Check | None = None
    """Says no to matches that cannot be one."""
    joins: bool = False
    """Whether it is recognised across strings that are neighbours: only what hardly anything else looks like."""


def entropy(text: bytes) -> float:
    """Shannon entropy of the bytes of ``text`` in bits per byte."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


BEHIND: Final = r"(?:[^0-9A-Za-z_]|$)"
"""What stands behind a token that may itself end with a character that is no part of a word."""


def word(body: str) -> str:
    """``body`` as a word of its own: part of a longer word is none."""
    return rf"\b({body})\b"


def utf8(text: str) -> str:
    """``text`` as RE2 in Latin-1 reads its UTF-8 bytes: for single characters outside ASCII and alternatives of them."""
    return "".join(c if c.isascii() else "".join(f"\\x{byte:02x}" for byte in c.encode()) for c in text)
