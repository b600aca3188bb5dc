"""A message that the library's parser refuses as a whole, for one place in it: nesting beyond what it reads, or half a character.

Such a place becomes NaN, which nothing accepts where it stands: a tool with it is left out, a result with it is refused. The rest of
the message is what it was, and whoever waits for it has an answer.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

from pydantic import TypeAdapter

DEPTH: Final = 150
"""Levels that are read; the library's parser reads 200."""

_anything = TypeAdapter(Any).validate_json
"""The parser of the library's own messages."""
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def readable(line: bytes) -> bytes:
    """``line``, mended where that makes a message of it; as it is where it can be read, or is none in any case."""
    if not line.lstrip().startswith(b"{"):
        return line
    try:
        _anything(line)
    except ValueError:
        try:
            return json.dumps(_texts(json.loads(_shallow(line)))).encode()
        except (ValueError, RecursionError):
            pass
    return line


def _shallow(line: bytes) -> bytes:
    """``line`` with NaN for whatever begins below :data:`DEPTH`."""
    kept: list[bytes] = []
    depth = done = 0
    for found in _TOKEN.finditer(line):
        sign = found.group()
        if sign in (b"{", b"["):
            depth += 1
            if depth == DEPTH + 1:
                kept.append(line[done : found.start()])
        elif sign in (b"}", b"]"):
            if depth == DEPTH + 1:
                kept.append(b"NaN")
                done = found.end()
            depth -= 1
    kept.append(line[done:] if depth <= DEPTH else b"")
    return b"".join(kept)


def _texts(value: Any) -> Any:
    """``value`` with NaN for each text that is none (lone surrogates), also under a name that is none."""
    if isinstance(value, dict):
        return {
            name if _is_text(name) else ascii(name): _texts(said) if _is_text(name) else math.nan
            for name, said in value.items()
        }
    if isinstance(value, list):
        return [_texts(one) for one in value]
    return value if not isinstance(value, str) or _is_text(value) else math.nan


def _is_text(value: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in value)
