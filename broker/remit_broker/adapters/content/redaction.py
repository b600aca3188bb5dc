"""Putting placeholders in the place of what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remit_broker.adapters.content.search import Span, cover
from remit_broker.adapters.content.walk import Path, encode


class Redaction:
    """One redaction: the placeholders given so far, and the paths of the strings that changed, in order."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, bytes], int] = {}
        self._last: dict[str, int] = {}
        self.changed: dict[Path, None] = {}

    def apply(self, value: Any, spans: Mapping[Path, Sequence[Span]], *, whole: bool) -> tuple[Any, bool]:
        """``value`` with ``spans`` replaced (or the ``whole`` strings that they are in), and whether anything changed."""
        if not spans:
            return value, False
        return self._below(value, (), spans, whole), True

    def _below(self, value: Any, path: Path, spans: Mapping[Path, Sequence[Span]], whole: bool) -> Any:
        if isinstance(value, str):
            return self._text(value, path, spans[path], whole) if path in spans else value
        if isinstance(value, dict):
            return {name: self._below(below, (*path, str(name)), spans, whole) for name, below in value.items()}
        if isinstance(value, list | tuple):
            return [self._below(below, (*path, str(index)), spans, whole) for index, below in enumerate(value)]
        return value

    def _text(self, value: str, path: Path, spans: Sequence[Span], whole: bool) -> str:
        text = encode(value)
        self.changed[path] = None
        found = cover([_widened(text, span) for span in spans])
        if whole:
            return self._placeholder(found[0].kind, text).decode()
        parts, at = [], 0
        for span in found:
            parts += [text[at : span.start], self._placeholder(span.kind, text[span.start : span.end])]
            at = span.end
        return b"".join([*parts, text[at:]]).decode(errors="surrogatepass")

    def _placeholder(self, kind: str, text: bytes) -> bytes:
        number = self._numbers.get((kind, text))
        if number is None:
            number = self._numbers[kind, text] = self._last[kind] = self._last.get(kind, 0) + 1
        return f"[redacted:{kind}#{number}]".encode()


def _widened(text: bytes, span: Span) -> Span:
    """``span`` from the first byte of a character to the last one of a character: patterns are of bytes.

    INVARIANT: no part of a character is left (test_what_is_found_within_a_character_takes_all_of_it).
    """
    start, end = span.start, span.end
    while 0 < start < len(text) and text[start] & 0xC0 == 0x80:
        start -= 1
    while end < len(text) and text[end] & 0xC0 == 0x80:
        end += 1
    return Span(start, end, span.kind)
