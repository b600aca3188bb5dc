"""What a person reads before they decide: text that hides nothing, and says what was asked. Pure."""

from __future__ import annotations

import json
from typing import Any


def visible_json(value: Any) -> str:
    """``value`` as indented JSON, with an escape for every character that is not seen: control characters, those of no width, and
    those that turn text round (Unicode Cc, Cf, Zl, Zp and all spaces but the plain one).
    """
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return "".join(char if char.isprintable() or char == "\n" else escape(char) for char in text)


def escape(char: str) -> str:
    """A character as JSON's escape."""
    data = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(data[at : at + 2], 'big'):04x}" for at in range(0, len(data), 2))


def hidden(value: Any) -> int:
    """How many characters of ``value`` nobody would see."""
    text = json.dumps(value, ensure_ascii=False)
    return sum(not char.isprintable() for char in text)
