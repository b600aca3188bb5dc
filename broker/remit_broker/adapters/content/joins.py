"""What is only found when neighbours are read together: a secret in pieces in an array, in members or in their names.

Tokens and numbers are put together without anything between them, and only kinds that hardly anything else looks like are
looked for; signs of injection may go from the end of one string to the beginning of the next. Of a long string the ends are
read. Pieces that others stand between are not put together.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import re2  # type: ignore[import-untyped,unused-ignore]

from remit_broker.adapters.content.kinds import BEHIND
from remit_broker.adapters.content.search import KINDS, PASS, Gate, Work, group, options
from remit_broker.adapters.content.walk import BETWEEN, SHORTEST_JOINED, Part, Quick

EDGE: Final = 128
"""Bytes at either end of a string that may be a piece of something."""

MAX_PIECES: Final = 64
"""Strings that one thing may be in pieces over."""

_BREAK: Final = BETWEEN.encode()


class Piece(NamedTuple):
    """Bytes ``start`` to ``end`` of a part."""

    part: Part
    start: int
    end: int


class Joined(NamedTuple):
    """One thing found in pieces."""

    kind: str
    pieces: tuple[Piece, ...]


def _loose(pattern: str) -> str:
    return (
        pattern.replace(r"\b", "")
        .replace(BEHIND, "")
        .replace("(?:^|[^0-9A-Za-z_.+-])", "")
        .replace("(?:[^0-9A-Za-z_]|$)", "")
    )


class Joins:
    """The kinds that are looked for across strings."""

    def __init__(self) -> None:
        kinds = [kind for kind in KINDS if kind.joins]
        compiled = options()
        self._gate = Gate([_loose(kind.key) for kind in kinds])
        self._kinds: list[tuple[str, Any, Any, Any]] = [
            (kind.name, re2.compile(_loose(kind.pattern).encode(), compiled), re2.compile(kind.pattern.encode(), compiled),
             kind.check)
            for kind in kinds
        ]  # fmt: skip

    def possible(self, found: Quick, work: Work) -> bool:
        """Whether there may be something: no, for nearly every value."""
        rows = [*("".join(map(_ends, run)) for run in (found.texts, found.names) if len(run) > 1)]
        rows += map("".join, map(_pair, found.pairs))
        text = BETWEEN.join(row for row in rows if len(row) >= SHORTEST_JOINED)
        if not text:
            return False
        data = text.encode(errors="surrogatepass")
        if not work.spend(len(data)):
            return True
        return any(self._kinds[index][1].search(data) for index in self._gate(data))

    def find(self, parts: Sequence[Part], work: Work) -> Iterator[Joined]:
        """What is found in the strings of ``parts`` together, in their names, and in names with the strings they name."""
        texts = [part for part in parts if part.sort == "text"]
        names = [part for part in parts if part.sort == "name"]
        named = {part.path: part for part in texts}
        yield from self._in_run(texts, work)
        yield from self._in_run(names, work)
        for name in names:
            if name.path in named and len(name.text) <= EDGE:
                yield from self._in_run([name, named[name.path]], work)

    def _in_run(self, parts: Sequence[Part], work: Work) -> Iterator[Joined]:
        if len(parts) < 2:
            return
        data = b"".join(map(_cut, parts))
        if not work.spend(len(data)):
            return
        hits = [index for index in self._gate(data) if self._kinds[index][1].search(data)]
        pieces = _pieces(parts) if hits else []
        starts = [at for at, _ in pieces]
        seen: set[tuple[Part, int]] = set()
        for index in hits:
            kind, loose, strict, check = self._kinds[index]
            for match in loose.finditer(data):
                if not work.spend(PASS):
                    return
                start, end = match.span()
                over = pieces[bisect_right(starts, start) - 1 : bisect_left(starts, end)]
                if not 2 <= len(over) <= MAX_PIECES:
                    continue
                for joined in _strictly(kind, strict, check, data, over):
                    if (joined.pieces[0].part, joined.pieces[0].start) not in seen:
                        seen.add((joined.pieces[0].part, joined.pieces[0].start))
                        yield joined


def _strictly(kind: str, strict: Any, check: Any, data: bytes, over: list[tuple[int, Piece]]) -> Iterator[Joined]:
    """The longest row of pieces from the first one on in which the kind is found as it must be."""
    first = over[0][0]
    for last in range(len(over), 1, -1):
        at, piece = over[last - 1]
        text = data[first : at + piece.end - piece.start]
        for match in strict.finditer(text):
            start, end = group(match, strict)
            if check is not None and not check(text[start:end]):
                continue
            pieces = tuple(
                Piece(
                    piece.part,
                    piece.start + max(0, start + first - at),
                    piece.start + min(piece.end - piece.start, end + first - at),
                )
                for at, piece in over[:last]
                if at < end + first and at + piece.end - piece.start > start + first
            )
            if len(pieces) > 1:
                yield Joined(kind, pieces)
                return


def _cut(part: Part) -> bytes:
    text = part.text
    return text if len(text) <= 2 * EDGE else text[:EDGE] + _BREAK + text[-EDGE:]


def _pieces(parts: Sequence[Part]) -> list[tuple[int, Piece]]:
    """Where each piece of the parts begins in the row of them."""
    pieces, at = [], 0
    for part in parts:
        size = len(part.text)
        if size <= 2 * EDGE:
            pieces.append((at, Piece(part, 0, size)))
            at += size
        else:
            pieces.append((at, Piece(part, 0, EDGE)))
            at += EDGE + len(_BREAK)
            pieces.append((at, Piece(part, size - EDGE, size)))
            at += EDGE
    return pieces


def _ends(text: str) -> str:
    return text if len(text) <= 2 * EDGE else f"{text[:EDGE]}{BETWEEN}{text[-EDGE:]}"


def _pair(pair: tuple[str, str]) -> tuple[str, str]:
    name, text = pair
    return name[-EDGE:], text[:EDGE]
